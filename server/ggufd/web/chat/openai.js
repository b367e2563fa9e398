// Messages in OpenAI's form, as they are sent. Pure functions.
import { pathTo } from "./tree.js";

/** @typedef {import("../shared/types.js").Chat} Chat */
/** @typedef {import("../shared/types.js").Message} Message */

/**
 * A message as a request carries it. `text` may be what it was at another time.
 * @param {Message} message
 * @param {string} text
 * @returns {Record<string, unknown>}
 */
export function toOpenAi(message, text = message.text) {
  /** @type {Record<string, unknown>} */
  const made = { role: message.role, content: message.images?.length ? partsOf(message.images, text) : text };
  if (message.role === "tool") made.tool_call_id = message.toolCallId ?? "";
  if (message.reasoning) made.reasoning_content = message.reasoning;
  if (message.toolCalls?.length) {
    made.tool_calls = message.toolCalls.map((call) => ({
      id: call.id,
      type: "function",
      function: { name: call.name, arguments: call.arguments },
    }));
  }
  return made;
}

/** @param {string[]} images @param {string} text */
function partsOf(images, text) {
  const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return text ? [...parts, { type: "text", text }] : parts;
}

/**
 * The messages of a request that is answered below `parent`, as they were at a time.
 * @param {Chat} chat
 * @param {string | null} parent
 * @param {string} system
 * @param {number} time
 * @returns {Array<Record<string, unknown>>}
 */
export function messagesTo(chat, parent, system, time = Infinity) {
  const sent = pathTo(chat, parent).map((message) => toOpenAi(message, textAt(message, time)));
  return system ? [{ role: "system", content: system }, ...sent] : sent;
}

/** What a message said at a time: people edit. @param {Message} message @param {number} time */
function textAt(message, time) {
  return message.edits?.find((edit) => edit.until > time)?.text ?? message.text;
}

/**
 * The body of the request that made an answer, whole.
 * @param {Chat} chat
 * @param {Message} message
 * @returns {Record<string, unknown>}
 */
export function requestOf(chat, message) {
  const { system = "", ...fields } = /** @type {any} */ (message.request ?? {});
  const messages = messagesTo(chat, message.parent, system, message.requested);
  const begun = message.begun ? [{ ...toOpenAi({ ...message, toolCalls: [] }, message.begun) }] : [];
  return { messages: [...messages, ...begun], ...fields };
}
