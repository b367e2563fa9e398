// The chats that are kept here: found, opened, named, exported, deleted.
import { Confirm, Dialog, IconButton, Menu } from "../shared/components.js";
import { Icon } from "../shared/icons.js";
import { html, signal, useEffect, useSignal } from "../shared/view.js";
import * as conversation from "./conversation.js";
import { forgetChat, heads, keepChat, keepTrouble, readChat, search } from "./library.js";
import { newChat } from "./tree.js";

/** @typedef {import("../shared/types.js").ChatHead} ChatHead */

const SEARCH_MS = 200;
const SOON_MS = 1000;

/** Whether the list lies over the page, on a screen that is too narrow for both. */
export const isOpen = signal(false);

/** How chats become files and come from them: not among what the first page waits for. */
function chatFiles() {
  return import("./chat_files.js");
}

/** Load what exporting needs while the server is there: chats are wanted most when it is gone. */
export function prepareFiles() {
  setTimeout(() => chatFiles().catch(() => {}), SOON_MS);
}

/** Open a chat by its id. @param {string} id */
export async function openChat(id) {
  if (!id) return beginChat();
  isOpen.value = false;
  if (id === conversation.chat.value.id) return;
  const found = await readChat(id);
  if (found) conversation.show(found);
}

/** Begin a new one. */
export function beginChat() {
  isOpen.value = false;
  if (Object.keys(conversation.chat.value.messages).length) conversation.show(newChat());
}

export function Sidebar() {
  const words = useSignal("");
  const found = useFound(words.value.trim());
  return html`<aside class="sidebar ${isOpen.value ? "open" : ""}" aria-label="Chats">
    <div class="sidebar-head">
      <button type="button" class="button new-chat" onClick=${beginChat}><${Icon} name="add" />New chat</button>
      <${Menu} name="Import and export" items=${[
        { name: "Import…", icon: "upload", onClick: importFile },
        { name: "Export all chats", icon: "download", onClick: exportAll, disabled: !heads.value.length },
      ]} />
    </div>
    <label class="search"><${Icon} name="search" /><span class="unseen">Search chats</span>
      <input type="search" class="field" placeholder="Search" value=${words.value}
        onInput=${(/** @type {any} */ event) => (words.value = event.target.value)} /></label>
    ${keepTrouble.value && html`<p class="sidebar-note bad">${keepTrouble.value}</p>`}
    <ul class="chats">
      ${found.map((head) => html`<${ChatRow} key=${head.id} head=${head} />`)}
    </ul>
    ${!found.length && html`<p class="sidebar-note">${words.value.trim() ? "No chat has these words." : "No chats yet."}</p>`}
    <${ImportTrouble} />
  </aside>
  ${isOpen.value && html`<div class="cover" onClick=${() => (isOpen.value = false)}></div>`}`;
}

/** The chats with these words, once they are found. @param {string} words @returns {ChatHead[]} */
function useFound(words) {
  const found = useSignal(/** @type {ChatHead[] | null} */ (null));
  useEffect(() => {
    if (!words) {
      found.value = null;
      return undefined;
    }
    let goes = true;
    const timer = setTimeout(async () => {
      const all = await search(words, () => goes);
      if (goes) found.value = all;
    }, SEARCH_MS);
    return () => {
      goes = false;
      clearTimeout(timer);
    };
  }, [words]);
  return words ? (found.value ?? []) : heads.value;
}

/** @param {{head: ChatHead}} props */
function ChatRow({ head }) {
  const asks = useSignal(/** @type {"" | "delete" | "rename"} */ (""));
  const isHere = head.id === conversation.chat.value.id;
  const isBusy = conversation.isRunning(head.id);
  const close = () => (asks.value = "");
  return html`<li class="chat-row ${isHere ? "here" : ""}">
    <button type="button" class="chat-name" aria-current=${isHere ? "true" : undefined} title=${head.title}
      onClick=${() => openChat(head.id)}><span class="cut">${head.title}</span>${isBusy && html`<span class="dot"
      role="img" aria-label="is being answered"></span>`}</button>
    <${Menu} name=${`More on ${head.title}`} items=${[
      { name: "Rename", icon: "edit", onClick: () => (asks.value = "rename") },
      { name: "Export", icon: "download", onClick: () => exportOne(head.id) },
      { name: "Delete", icon: "trash", kind: "bad", onClick: () => (asks.value = "delete") },
    ]} />
    ${asks.value === "delete" && html`<${Confirm} title="Delete this chat?" action="Delete" onNo=${close}
      text=${`“${head.title}” and all its versions are deleted from this browser.`}
      onYes=${() => (close(), deleteOne(head.id))} />`}
    ${asks.value === "rename" && html`<${Rename} head=${head} onClose=${close} />`}
  </li>`;
}

/** @param {{head: ChatHead, onClose: () => void}} props */
function Rename({ head, onClose }) {
  const name = useSignal(head.title);
  /** @param {Event} event */
  const submit = (event) => {
    event.preventDefault();
    onClose();
    rename(head.id, name.value.trim());
  };
  return html`<${Dialog} title="Name of the chat" kind="small" onClose=${onClose}>
    <form class="key-form" onSubmit=${submit}>
      <input class="field" autofocus aria-label="Name" value=${name.value} maxlength="200"
        onInput=${(/** @type {any} */ event) => (name.value = event.target.value)} />
      <p class="quiet">Without one it is named by its beginning.</p>
      <div class="dialog-actions"><button class="button primary">Save</button></div>
    </form>
  <//>`;
}

/** @param {string} id @param {string} title */
async function rename(id, title) {
  if (id === conversation.chat.value.id || conversation.isRunning(id)) {
    conversation.update(id, (chat) => ({ ...chat, title }));
    return;
  }
  const chat = await readChat(id);
  if (chat) keepChat({ ...chat, title });
}

/** @param {string} id */
async function deleteOne(id) {
  conversation.forget(id);
  await forgetChat(id);
}

/** @param {string} id */
async function exportOne(id) {
  const chat = id === conversation.chat.value.id ? conversation.chat.value : await readChat(id);
  if (chat) download((await chatFiles()).exported(chat), "chat");
}

async function exportAll() {
  const { exported } = await chatFiles();
  const all = [];
  for (const { id } of heads.value) {
    const chat = await readChat(id);
    if (chat) all.push(exported(chat));
  }
  download({ chats: all }, "chats");
}

/** @param {unknown} data @param {string} name */
function download(data, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(data, null, 1)], { type: "application/json" }));
  link.download = `${name}-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Why a file could not be imported; "" is nothing. */
const importTrouble = signal("");

function ImportTrouble() {
  const close = () => (importTrouble.value = "");
  if (!importTrouble.value) return null;
  return html`<${Dialog} title="Nothing was imported" kind="small" onClose=${close}><p>${importTrouble.value}</p><//>`;
}

function importFile() {
  const field = document.createElement("input");
  field.type = "file";
  field.accept = "application/json,.json";
  field.addEventListener("change", async () => {
    const file = field.files?.[0];
    if (file) await importText(file.name, await file.text());
  });
  field.click();
}

/** @param {string} name @param {string} text */
async function importText(name, text) {
  const { imported, NotAChat } = await chatFiles();
  try {
    const chats = imported(JSON.parse(text));
    for (const chat of chats) keepChat(chat);
    conversation.show(chats[0]);
    isOpen.value = false;
  } catch (error) {
    const why = error instanceof NotAChat ? error.message : `${name} is not JSON.`;
    importTrouble.value = why;
  }
}

/** Opens the list on a narrow screen. */
export function SidebarButton() {
  return html`<${IconButton} kind="narrow-only" icon="menu" name="Chats" expanded=${isOpen.value}
    onClick=${() => (isOpen.value = !isOpen.value)} />`;
}
