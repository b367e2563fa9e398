// The messages of the open chat, from the top to the field at the bottom.
import { facts } from "../shared/server.js";
import { html, useEffect, useLayoutEffect, useRef, useSignal } from "../shared/view.js";
import { IconButton } from "../shared/components.js";
import { Composer, focusComposer } from "./composer.js";
import * as conversation from "./conversation.js";
import { DropZone } from "./images.js";
import { MessageView } from "./message_view.js";
import { SystemPrompt } from "./system_prompt.js";
import { path, titleOf } from "./tree.js";

const NEAR = 48;
const ANNOUNCED = 300;
const BEGINNINGS = [
  "Explain how a refrigerator works.",
  "Write a short story about a lighthouse.",
  "What can I cook from rice, eggs and an onion?",
];

export function ConversationView() {
  const chat = conversation.chat.value;
  const messages = path(chat);
  const editing = useSignal("");
  const scroller = useScroller(chat.id, messages.length);
  const edit = (/** @type {string} */ id) => {
    editing.value = id;
    if (!id) focusComposer();
  };
  const editLast = () => {
    const own = messages.findLast((message) => message.role === "user");
    edit(own?.id ?? "");
    return Boolean(own);
  };
  const title = messages.length ? `${titleOf(chat)} - ggufd` : "ggufd";
  useEffect(() => {
    document.title = title;
  }, [title]);
  useKeys(messages, editing.value !== "");
  return html`<main class="conversation">
    <div class="scroll" ref=${scroller.ref} onScroll=${scroller.onScroll} tabindex="-1">
      <div class="column">
        <${SystemPrompt} key=${chat.id} />
        ${messages.length === 0 ? html`<${Welcome} />` : html`<h1 class="unseen">${titleOf(chat)}</h1>`}
        ${messages.map(
          (message, at) => html`<${MessageView} key=${message.id} message=${message}
            isLast=${at === messages.length - 1} isEditing=${editing.value === message.id} onGrow=${scroller.follow}
            edit=${(/** @type {boolean} */ is) => edit(is ? message.id : "")} />`,
        )}
      </div>
      <div class="bottom"><div class="column">
        ${!scroller.isAtEnd.value &&
        html`<${IconButton} kind="to-end" icon="forward" name="To the end" onClick=${scroller.toEnd} />`}
        <${Composer} editLast=${editLast} />
      </div></div>
    </div>
    <${Announcer} />
    <${DropZone} />
  </main>`;
}

/** Keys that hold wherever the focus is: Esc stops, arrows turn the versions of the last answer. */
function useKeys(/** @type {import("../shared/types.js").Message[]} */ messages, /** @type {boolean} */ isEditing) {
  // As soon as the answer is shown, not after it was painted: a key in between would turn the one before.
  useLayoutEffect(() => {
    /** @param {KeyboardEvent} event */
    const press = (event) => {
      if (event.defaultPrevented || isEditing || document.querySelector("dialog[open]")) return;
      if (event.key === "Escape" && conversation.stop()) event.preventDefault();
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const last = messages.at(-1);
      if (!step || !last || event.ctrlKey || event.altKey || event.metaKey || isInText(event.target)) return;
      conversation.turn(last.id, step);
    };
    document.addEventListener("keydown", press);
    return () => document.removeEventListener("keydown", press);
  });
}

/** Whether a key is for what has the focus: a field, or a panel beside the chat. @param {EventTarget | null} target */
function isInText(target) {
  if (target instanceof HTMLTextAreaElement) return !target.classList.contains("composer-field") || target.value !== "";
  if (target instanceof Element && target.closest("aside")) return true;
  return target instanceof HTMLInputElement || target instanceof HTMLSelectElement || target instanceof HTMLPreElement;
}

/** Scrolling that stays at the end while a person is there. @param {string} chatId @param {number} n */
function useScroller(chatId, n) {
  const ref = useRef(/** @type {HTMLDivElement | null} */ (null));
  const isAtEnd = useSignal(true);
  const toEnd = () => {
    const box = ref.current;
    if (!box) return;
    isAtEnd.value = true;
    box.scrollTop = box.scrollHeight;
  };
  const follow = () => {
    if (isAtEnd.peek()) toEnd();
  };
  const onScroll = () => {
    const box = /** @type {HTMLDivElement} */ (ref.current);
    isAtEnd.value = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
  };
  useLayoutEffect(toEnd, [chatId, n]);
  return { ref, isAtEnd, toEnd, follow, onScroll };
}

/** What a stranger sees first. */
function Welcome() {
  const model = conversation.chat.value.model || facts.value?.model;
  return html`<div class="welcome">
    <h1>${model ? html`Chat with <span class="model-name">${model}</span>` : "Chat"}</h1>
    <p class="quiet">Write below, or begin with one of these. Chats stay in this browser.</p>
    <div class="beginnings">
      ${BEGINNINGS.map(
        (text) => html`<button type="button" class="beginning" onClick=${() => conversation.send(text)}>${text}</button>`,
      )}
    </div>
  </div>`;
}

/** For screen readers: that an answer began, and what it says when it ended; not each token. */
function Announcer() {
  const said = useSignal("");
  const before = useRef(false);
  const chat = conversation.chat.value;
  const isRunning = conversation.isRunning(chat.id);
  useEffect(() => {
    if (isRunning) said.value = "The answer is being written.";
    else if (before.current) said.value = `Answer: ${path(chat).at(-1)?.text.slice(0, ANNOUNCED) ?? ""}`;
    before.current = isRunning;
  }, [isRunning]);
  return html`<div class="unseen" aria-live="polite">${said.value}</div>`;
}
