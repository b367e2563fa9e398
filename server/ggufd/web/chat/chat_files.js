// Chats as files: exported and imported in OpenAI's form. Pure functions.
import { isImage } from "./image_files.js";
import { toOpenAi } from "./openai.js";
import { add, newChat, newMessage, path, titleOf } from "./tree.js";

/** @typedef {import("../shared/types.js").Chat} Chat */
/** @typedef {import("../shared/types.js").Message} Message */

const FORMAT = 1;
const ROLES = ["user", "assistant", "tool"];

/** A file that is no chat, and why. */
export class NotAChat extends Error {}

/**
 * A chat as a file holds it: what is shown in OpenAI's form, and every branch beside it.
 * @param {Chat} chat
 * @returns {Record<string, unknown>}
 */
export function exported(chat) {
  const shown = path(chat).map((message) => toOpenAi(message));
  return {
    title: titleOf(chat),
    messages: chat.system ? [{ role: "system", content: chat.system }, ...shown] : shown,
    ggufd: {
      format: FORMAT,
      title: chat.title,
      system: chat.system,
      created: chat.created,
      changed: chat.changed,
      messages: inOrder(chat),
      shown: path(chat).map((message) => message.id),
      chosen: Object.values(chat.chosen),
    },
  };
}

/** Every message, parents and older versions first. @param {Chat} chat @returns {Message[]} */
function inOrder(chat) {
  /** @type {Message[]} */
  const found = [];
  const waiting = [...(chat.children[""] ?? [])].reverse();
  for (let id = waiting.pop(); id !== undefined; id = waiting.pop()) {
    found.push(chat.messages[id]);
    waiting.push(...[...(chat.children[id] ?? [])].reverse());
  }
  return found;
}

/**
 * The chats in a file: one of `exported`, a list of such, `{"chats": [...]}`, or any list of OpenAI's messages. Raises
 * NotAChat.
 * @param {any} data
 * @returns {Chat[]}
 */
export function imported(data) {
  if (Array.isArray(data?.chats)) return data.chats.map(importedOne);
  if (Array.isArray(data) && data.length && data.every((one) => Array.isArray(one?.messages))) {
    return data.map(importedOne);
  }
  return [importedOne(Array.isArray(data) ? { messages: data } : data)];
}

/** @param {any} data @returns {Chat} */
function importedOne(data) {
  if (!Array.isArray(data?.messages)) {
    throw new NotAChat("This is no chat: expected an object with a list of messages, as OpenAI writes them.");
  }
  const own = data.ggufd;
  return own?.format === FORMAT && Array.isArray(own.messages) ? fromBranches(own) : fromMessages(data);
}

/** @param {any} data @returns {Chat} */
function fromMessages(data) {
  let chat = { ...newChat(), title: textOf(data.title) };
  let parent = null;
  for (const [at, one] of data.messages.entries()) {
    if (["system", "developer"].includes(one?.role)) {
      chat.system = [chat.system, contentOf(one)].filter(Boolean).join("\n\n");
      continue;
    }
    if (!ROLES.includes(one?.role)) {
      throw new NotAChat(`Message ${at + 1} has no role that a chat knows; expected ${ROLES.join(", ")} or system.`);
    }
    const message = newMessage(one.role, contentOf(one), more(one));
    chat = add(chat, parent, message);
    parent = message.id;
  }
  return chat;
}

/** @param {any} one @returns {Partial<Message>} */
function more(one) {
  /** @type {Partial<Message>} */
  const found = {};
  const images = imagesOf(one.content);
  if (images.length) found.images = images;
  if (one.role === "tool") found.toolCallId = textOf(one.tool_call_id);
  if (typeof one.reasoning_content === "string") found.reasoning = one.reasoning_content;
  if (Array.isArray(one.tool_calls)) {
    found.toolCalls = one.tool_calls.map((/** @type {any} */ call) => ({
      id: textOf(call?.id),
      name: textOf(call?.function?.name),
      arguments: textOf(call?.function?.arguments),
    }));
  }
  return found;
}

/** The text of a message, also where it is in parts. @param {any} one @returns {string} */
function contentOf(one) {
  if (!Array.isArray(one.content)) return textOf(one.content);
  return one.content.map((/** @type {any} */ part) => textOf(part?.text) || elsewhere(part)).join("");
}

/** The address of an image that is in a part. @param {any} part @returns {unknown} */
function addressIn(part) {
  return part?.type === "image_url" ? (part.image_url?.url ?? part.image_url) : undefined;
}

/** The images that a content holds itself. @param {unknown} content @returns {string[]} */
function imagesOf(content) {
  return Array.isArray(content) ? content.map(addressIn).filter(isImage) : [];
}

/** An image that lies elsewhere is no more than its address: the page fetches nothing. @param {any} part @returns {string} */
function elsewhere(part) {
  const address = addressIn(part);
  return typeof address === "string" && !address.startsWith("data:") ? `[image: ${address}]` : "";
}

/** @param {unknown} value @returns {string} */
function textOf(value) {
  return typeof value === "string" ? value : "";
}

/** Every branch, under new names: a chat may be imported twice. @param {any} own @returns {Chat} */
function fromBranches(own) {
  let chat = { ...newChat(), title: textOf(own.title), system: textOf(own.system) };
  /** @type {Map<unknown, string>} */
  const names = new Map();
  for (const [at, one] of own.messages.entries()) {
    const parent = one?.parent === null ? null : names.get(one?.parent);
    if (parent === undefined || !ROLES.includes(one?.role) || typeof one.text !== "string") {
      throw new NotAChat(`Branches of this chat are broken at message ${at + 1}; its plain messages may still be right.`);
    }
    const message = newMessage(one.role, one.text, known(one));
    names.set(one.id, message.id);
    chat = add(chat, parent, message);
  }
  for (const id of [...listOf(own.chosen), ...listOf(own.shown)]) {
    const name = names.get(id);
    if (name) chat = { ...chat, chosen: { ...chat.chosen, [chat.messages[name].parent ?? ""]: name } };
  }
  return { ...chat, changed: Number.isFinite(own.changed) ? own.changed : chat.changed };
}

/** Of each field of a message that a file may have, what it must be. @type {Record<string, (value: any) => boolean>} */
const FIELDS = {
  reasoning: isText,
  toolCallId: isText,
  images: (value) => isListOf(value, isImage) && value.length > 0,
  begun: isText,
  responseId: isText,
  model: isText,
  finishReason: isText,
  created: Number.isFinite,
  requested: Number.isFinite,
  firstTokenMs: Number.isFinite,
  totalMs: Number.isFinite,
  request: isObject,
  usage: isObject,
  timings: isObject,
  cache: isObject,
  error: (value) => isText(value?.message),
  edits: (value) => isListOf(value, (one) => isText(one?.text) && Number.isFinite(one?.until)),
  toolCalls: (value) => isListOf(value, (one) => [one?.id, one?.name, one?.arguments].every(isText)),
  logprobs: (value) =>
    isListOf(value, (one) => isToken(one) && (!one.top_logprobs || isListOf(one.top_logprobs, isToken))),
};

/** The fields of a file's message that are what they must be. @param {any} one @returns {Partial<Message>} */
function known(one) {
  const right = Object.entries(FIELDS).filter(([name, isRight]) => Object.hasOwn(one, name) && isRight(one[name]));
  return { ...Object.fromEntries(right.map(([name]) => [name, one[name]])), state: one.state === "done" ? "done" : "stopped" };
}

/** @param {unknown} value */
function isText(value) {
  return typeof value === "string";
}

/** @param {any} value */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** @param {any} value @param {(one: any) => boolean} isRight */
function isListOf(value, isRight) {
  return Array.isArray(value) && value.every(isRight);
}

/** @param {any} value */
function isToken(value) {
  return isText(value?.token) && Number.isFinite(value.logprob);
}

/** @param {unknown} value @returns {unknown[]} */
function listOf(value) {
  return Array.isArray(value) ? value : [];
}
