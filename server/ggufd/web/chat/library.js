// The chats that are kept in this browser: their list, and which one is open.
import { signal } from "../shared/view.js";
import { deleteChat, listChats, loadChat, saveChat } from "./store.js";
import { matches, titleOf } from "./tree.js";

/** @typedef {import("../shared/types.js").Chat} Chat */
/** @typedef {import("../shared/types.js").ChatHead} ChatHead */

/** @type {import("../vendor/preact.js").Signal<ChatHead[]>} */
export const heads = signal([]);

/** Chats in which answers were being written when they were kept last. @type {string[]} */
let unfinished = [];

/** Why chats cannot be kept; "" is that they can. */
export const keepTrouble = signal("");

/** The id of the open chat, which the page's address ends with; "" is a new one. */
export const openChatId = signal(location.hash.slice(1));

/** What is kept of each chat, for the next time it is written. @type {Map<string, Chat>} */
const kept = new Map();
/** Chats to be written, by id, and whether that is under way. @type {Map<string, Chat>} */
const unkept = new Map();
let isWriting = false;

/** Tells other tabs which chat was written; a tab hears all but itself. */
const otherTabs = new BroadcastChannel("ggufd chats");

/** Read the list. */
export async function readLibrary() {
  await tryTo(async () => {
    const { all, unfinished: found } = await listChats();
    heads.value = all;
    unfinished = found;
  });
}

/** The ids of the chats in which answers were being written when the page was closed. */
export function unfinishedIds() {
  return unfinished;
}

/** Call `act` with the id of each chat that another tab has changed, once the list is up to date. */
export function onChangeElsewhere(/** @type {(id: string) => void} */ act) {
  otherTabs.onmessage = async ({ data: id }) => {
    kept.delete(id);
    await readLibrary();
    act(id);
  };
}

/** @param {string} id @returns {Promise<Chat | null>} */
export async function readChat(id) {
  const waiting = unkept.get(id);
  if (waiting) return waiting;
  const found = (await tryTo(() => loadChat(id))) ?? null;
  if (found) kept.set(id, found);
  return found;
}

/** Keep a chat that has something in it. @param {Chat} chat */
export function keepChat(chat) {
  if (!Object.keys(chat.messages).length && !kept.has(chat.id)) return;
  const head = { id: chat.id, title: titleOf(chat), changed: chat.changed };
  const others = heads.value.filter((one) => one.id !== chat.id);
  heads.value = [head, ...others].sort((a, b) => b.changed - a.changed);
  unkept.set(chat.id, chat);
  write();
}

async function write() {
  if (isWriting) return;
  isWriting = true;
  for (const [id, chat] of unkept) {
    unkept.delete(id);
    const before = kept.get(id) ?? null;
    kept.set(id, chat);
    await tryTo(() => saveChat(chat, before, titleOf(chat)));
    otherTabs.postMessage(id);
  }
  isWriting = false;
}

/** @param {string} id */
export async function forgetChat(id) {
  heads.value = heads.value.filter((one) => one.id !== id);
  unkept.delete(id);
  kept.delete(id);
  await tryTo(() => deleteChat(id));
  otherTabs.postMessage(id);
}

/**
 * The chats in which all these words are; `goes` says whether the search is still wanted.
 * @param {string} words
 * @param {() => boolean} goes
 */
export async function search(words, goes) {
  const found = [];
  for (const head of heads.value) {
    if (!goes()) return [];
    const chat = unkept.get(head.id) ?? (await tryTo(() => loadChat(head.id)));
    if (chat && matches(chat, words)) found.push(head);
  }
  return found;
}

/** @template T @param {() => Promise<T>} act @returns {Promise<T | undefined>} */
async function tryTo(act) {
  try {
    const done = await act();
    keepTrouble.value = "";
    return done;
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    keepTrouble.value = `This browser does not keep chats: ${why}. They are lost when the page is closed.`;
    return undefined;
  }
}
