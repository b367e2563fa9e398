// State of a chat: a tree of messages with versions. Pure functions; a changed chat is a new object.

/** @typedef {import("../shared/types.js").Chat} Chat */
/** @typedef {import("../shared/types.js").Message} Message */

const ROOT = "";
const TITLE_LENGTH = 60;

/** @returns {string} */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {number} now @returns {Chat} */
export function newChat(now = Date.now()) {
  return { id: newId(), title: "", created: now, changed: now, system: "", messages: {}, children: {}, chosen: {} };
}

/**
 * A message that is in no chat yet.
 * @param {Message["role"]} role
 * @param {string} text
 * @param {Partial<Message>} more
 * @returns {Message}
 */
export function newMessage(role, text, more = {}) {
  return { id: newId(), parent: null, role, text, created: Date.now(), state: "done", ...more };
}

/**
 * The chat with a message under `parent` (null: at the beginning), which is chosen.
 * @param {Chat} chat
 * @param {string | null} parent
 * @param {Message} message
 * @returns {Chat}
 */
export function add(chat, parent, message) {
  const place = parent ?? ROOT;
  return {
    ...chat,
    changed: Math.max(chat.changed, message.created),
    messages: { ...chat.messages, [message.id]: { ...message, parent } },
    children: { ...chat.children, [place]: [...(chat.children[place] ?? []), message.id] },
    chosen: { ...chat.chosen, [place]: message.id },
  };
}

/**
 * The chat with other values in a message.
 * @param {Chat} chat
 * @param {string} id
 * @param {Partial<Message>} values
 * @returns {Chat}
 */
export function change(chat, id, values) {
  const message = chat.messages[id];
  if (!message) return chat;
  return { ...chat, changed: Date.now(), messages: { ...chat.messages, [id]: { ...message, ...values } } };
}

/**
 * The messages that are shown: from the beginning along what is chosen.
 * @param {Chat} chat
 * @returns {Message[]}
 */
export function path(chat) {
  const found = [];
  for (let id = chat.chosen[ROOT]; id; id = chat.chosen[id]) found.push(chat.messages[id]);
  return found;
}

/**
 * The messages from the beginning down to one, itself included.
 * @param {Chat} chat
 * @param {string | null} id
 * @returns {Message[]}
 */
export function pathTo(chat, id) {
  const found = [];
  for (let at = id; at; at = chat.messages[at].parent) found.push(chat.messages[at]);
  return found.reverse();
}

/**
 * The versions of a message, in the order they were made, and the place of this one.
 * @param {Chat} chat
 * @param {string} id
 * @returns {{ids: string[], at: number}}
 */
export function versions(chat, id) {
  const ids = chat.children[chat.messages[id].parent ?? ROOT];
  return { ids, at: ids.indexOf(id) };
}

/**
 * The chat that shows a message: it and all above it are chosen.
 * @param {Chat} chat
 * @param {string} id
 * @returns {Chat}
 */
export function choose(chat, id) {
  const chosen = { ...chat.chosen };
  for (const message of pathTo(chat, id)) chosen[message.parent ?? ROOT] = message.id;
  return { ...chat, chosen };
}

/**
 * The chat without a message and all that follows it; its neighbour among the versions is shown instead.
 * @param {Chat} chat
 * @param {string} id
 * @returns {Chat}
 */
export function remove(chat, id) {
  const place = chat.messages[id].parent ?? ROOT;
  const { ids, at } = versions(chat, id);
  const left = ids.filter((one) => one !== id);
  const copy = {
    ...chat,
    changed: Date.now(),
    messages: { ...chat.messages },
    children: { ...chat.children, [place]: left },
    chosen: { ...chat.chosen },
  };
  if (copy.chosen[place] === id) copy.chosen[place] = left[Math.max(0, at - 1)];
  if (!left.length) {
    delete copy.children[place];
    delete copy.chosen[place];
  }
  const doomed = [id];
  for (let one = doomed.pop(); one !== undefined; one = doomed.pop()) {
    doomed.push(...(copy.children[one] ?? []));
    delete copy.messages[one];
    delete copy.children[one];
    delete copy.chosen[one];
  }
  return copy;
}

/**
 * The last message that is shown.
 * @param {Chat} chat
 * @returns {Message | undefined}
 */
export function last(chat) {
  return path(chat).at(-1);
}

/**
 * The name of a chat: the person's, else its beginning.
 * @param {Chat} chat
 * @returns {string}
 */
export function titleOf(chat) {
  if (chat.title) return chat.title;
  const first = path(chat).find((message) => message.role === "user");
  const text = (first?.text ?? "").trim().replace(/\s+/g, " ") || (first?.images ? "Image" : "");
  return text.length > TITLE_LENGTH ? `${text.slice(0, TITLE_LENGTH).trimEnd()}…` : text || "New chat";
}

/**
 * Whether every word is somewhere in the chat, in any branch.
 * @param {Chat} chat
 * @param {string} words
 * @returns {boolean}
 */
export function matches(chat, words) {
  const texts = [titleOf(chat), chat.system, ...Object.values(chat.messages).map((message) => message.text)];
  const all = texts.join("\n").toLowerCase();
  return words
    .toLowerCase()
    .split(/\s+/)
    .every((word) => all.includes(word));
}

/**
 * A new chat that holds what leads to a message, and that message.
 * @param {Chat} chat
 * @param {string} id
 * @returns {Chat}
 */
export function upTo(chat, id) {
  let copy = { ...newChat(), system: chat.system, ...(chat.model ? { model: chat.model } : {}) };
  for (const message of pathTo(chat, id)) {
    const parent = last(copy)?.id ?? null;
    copy = add(copy, parent, { ...message, id: newId(), state: message.state === "writing" ? "stopped" : message.state });
  }
  return { ...copy, changed: Date.now() };
}
