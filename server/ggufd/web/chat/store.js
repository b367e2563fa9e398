// Chats in the browser's IndexedDB: each message is a record, so that only what changed is written.

/** @typedef {import("../shared/types.js").Chat} Chat */
/** @typedef {import("../shared/types.js").ChatHead} ChatHead */
/** @typedef {import("../shared/types.js").Message} Message */

const NAME = "ggufd chats";
const CHATS = "chats";
const MESSAGES = "messages";

/** @type {Promise<IDBDatabase> | null} */
let opening = null;

/** @returns {Promise<IDBDatabase>} */
function database() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(CHATS, { keyPath: "id" });
      request.result.createObjectStore(MESSAGES);
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** The keys of a chat's messages. @param {string} id */
function keysOf(id) {
  return IDBKeyRange.bound([id], [id, []]);
}

/**
 * All chats, the latest first, and the ids of those in which an answer has not ended.
 * @returns {Promise<{all: ChatHead[], unfinished: string[]}>}
 */
export async function listChats() {
  const store = (await database()).transaction(CHATS).objectStore(CHATS);
  const found = await result(store.getAll());
  const all = found.map(({ id, heading, changed }) => ({ id, title: heading, changed }));
  return {
    all: all.sort((a, b) => b.changed - a.changed),
    unfinished: found.filter((one) => one.isUnfinished).map((one) => one.id),
  };
}

/** @param {string} id @returns {Promise<Chat | null>} */
export async function loadChat(id) {
  const transaction = (await database()).transaction([CHATS, MESSAGES]);
  const [chat, messages] = await Promise.all([
    result(transaction.objectStore(CHATS).get(id)),
    result(transaction.objectStore(MESSAGES).getAll(keysOf(id))),
  ]);
  if (!chat) return null;
  const { heading, isUnfinished, ...kept } = chat;
  return { ...kept, messages: Object.fromEntries(messages.map((message) => [message.id, message])) };
}

/**
 * Keep a chat. `before` is what was kept of it last, null where nothing was.
 * @param {Chat} chat
 * @param {Chat | null} before
 * @param {string} heading its name in the list
 */
export async function saveChat(chat, before, heading) {
  const transaction = (await database()).transaction([CHATS, MESSAGES], "readwrite");
  const { messages, ...kept } = chat;
  const isUnfinished = Object.values(messages).some((message) => message.state === "writing");
  transaction.objectStore(CHATS).put({ ...kept, heading, isUnfinished });
  const store = transaction.objectStore(MESSAGES);
  for (const [id, message] of Object.entries(messages)) {
    if (before?.messages[id] !== message) store.put(message, [chat.id, id]);
  }
  for (const id of Object.keys(before?.messages ?? {})) {
    if (!messages[id]) store.delete([chat.id, id]);
  }
  await new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

/** @param {string} id */
export async function deleteChat(id) {
  const transaction = (await database()).transaction([CHATS, MESSAGES], "readwrite");
  transaction.objectStore(MESSAGES).delete(keysOf(id));
  await result(transaction.objectStore(CHATS).delete(id));
}
