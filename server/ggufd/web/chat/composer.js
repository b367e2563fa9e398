// The field in which a person writes, and the button that sends or stops.
import { IconButton } from "../shared/components.js";
import { facts } from "../shared/server.js";
import { html, signal, useEffect, useRef } from "../shared/view.js";
import { attach, attached, pastedFiles, takeAttached } from "./attachments.js";
import * as conversation from "./conversation.js";
import { ModelNote, several } from "./model.js";
import { AttachButton, AttachedImages } from "./images.js";

/** What is written and not sent; it outlives a change of the chat. */
export const draft = signal("");

const MAX_HEIGHT = 240;
const MEASURED = 4000;

/** A finger has no Shift-Enter: there Enter is a new line, and the button sends. */
function sendsByEnter() {
  return !matchMedia("(pointer: coarse)").matches;
}

/** Back to the field, where that opens no keyboard over the page. */
export function focusComposer() {
  if (sendsByEnter()) /** @type {HTMLElement | null} */ (document.querySelector(".composer-field"))?.focus();
}

/** @param {{editLast: () => boolean}} props */
export function Composer({ editLast }) {
  const ref = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  const isBusy = conversation.isRunning(conversation.chat.value.id);
  const text = draft.value;
  useEffect(() => {
    const field = /** @type {HTMLTextAreaElement} */ (ref.current);
    field.style.height = "auto";
    field.style.height = `${text.length > MEASURED ? MAX_HEIGHT : Math.min(field.scrollHeight + 2, MAX_HEIGHT)}px`;
  }, [text]);
  useEffect(() => {
    if (sendsByEnter()) ref.current?.focus();
  }, [conversation.chat.value.id]);
  const canSend = () =>
    attached.value.every((one) => one.uri) && (draft.value.trim() !== "" || attached.value.length > 0);
  const send = () => {
    if (isBusy || !canSend()) return;
    const said = draft.value;
    draft.value = "";
    conversation.send(said, takeAttached());
    ref.current?.focus();
  };
  /** @param {ClipboardEvent} event */
  const paste = (event) => {
    const files = pastedFiles(event.clipboardData);
    if (!files.length) return;
    event.preventDefault();
    attach(files);
  };
  /** @param {KeyboardEvent} event */
  const press = (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey && sendsByEnter()) send();
    else if (event.key !== "ArrowUp" || draft.value || !editLast()) return;
    event.preventDefault();
  };
  const model = conversation.chat.value.model || facts.value?.model;
  return html`<form class="composer" onSubmit=${(/** @type {Event} */ event) => (event.preventDefault(), send())}>
    ${several.value && html`<${ModelNote} />`}
    <${AttachedImages} />
    <div class="composer-row">
      <${AttachButton} />
      <textarea ref=${ref} rows="1" class="composer-field" aria-label="Message" enterkeyhint="enter"
        placeholder=${model ? `Message ${model}` : "Message"} value=${text} onKeyDown=${press} onPaste=${paste}
        onInput=${(/** @type {any} */ event) => (draft.value = event.target.value)}></textarea>
      ${isBusy
        ? html`<${IconButton} kind="send" icon="stop" name="Stop (Esc)" onClick=${conversation.stop} />`
        : html`<${IconButton} kind="send" icon="send" name="Send" disabled=${!canSend()} onClick=${send} />`}
    </div>
  </form>`;
}
