// One message of a conversation, its versions, and what can be done with it.
import { Confirm, IconButton, Menu, Spinner } from "../shared/components.js";
import { isHeldToFormat } from "../shared/formats.js";
import { copy } from "../shared/copy.js";
import { lazy } from "../shared/lazy.js";
import { html, signal, useEffect, useLayoutEffect, useRef, useSignal } from "../shared/view.js";
import * as conversation from "./conversation.js";
import { AnswerFacts } from "./facts.js";
import { GrowingText } from "./growing_text.js";
import { MessageImages } from "./images.js";
import { requestOf } from "./openai.js";
import { TokenView } from "./tokens.js";
import { versions } from "./tree.js";

/** @typedef {import("../shared/types.js").Message} Message */

const PIECE = 6000;

/** Fields for what came of an answer's calls. */
const ToolResults = lazy(async () => (await import("./tool_results.js")).ToolResults);

/** Messages whose answers are shown as tokens, all versions of them. */
const tokensBelow = signal(/** @type {ReadonlySet<string | null>} */ (new Set()));

/** @param {string | null} parent */
function turnTokens(parent) {
  const shown = new Set(tokensBelow.value);
  if (!shown.delete(parent)) shown.add(parent);
  tokensBelow.value = shown;
}

/**
 * `isEditing` shows the message's text in a field; `edit` begins or ends that.
 * @param {{message: Message, isLast: boolean, isEditing: boolean, edit: (isEditing: boolean) => void,
 *   onGrow: () => void}} props
 */
export function MessageView({ message, isLast, isEditing, edit, onGrow }) {
  const run = conversation.runs.value.get(message.id);
  const isOwn = message.role === "user";
  const who = isOwn ? "You" : message.role === "tool" ? "Tool" : "Answer";
  // What stands under an answer comes with its end.
  useLayoutEffect(onGrow, [Boolean(run)]);
  return html`<article class="message ${message.role}" aria-label=${who} aria-busy=${Boolean(run)}
    data-message=${message.id}>
    ${isOwn && message.images && html`<${MessageImages} images=${message.images} />`}
    ${isEditing
      ? html`<${Editor} message=${message} onClose=${() => edit(false)} />`
      : isOwn
        ? (message.text || !message.images) && html`<${PlainText} text=${message.text} />`
        : html`<${Answer} message=${message} run=${run} isLast=${isLast} onGrow=${onGrow} />`}
    ${!isEditing && html`<${Actions} message=${message} isLast=${isLast} isRunning=${Boolean(run)} edit=${edit} />`}
  </article>`;
}

/** Text as it was typed; a long one in pieces, each of which is laid out by itself. @param {{text: string}} props */
function PlainText({ text }) {
  const pieces = [];
  for (let at = 0; at < text.length; at += PIECE) pieces.push(text.slice(at, at + PIECE));
  return html`<div class="bubble">${pieces.map((piece, at) => html`<div class="plain" key=${at}>${piece}</div>`)}</div>`;
}

/** @param {{message: Message, run: conversation.Run | undefined, isLast: boolean, onGrow: () => void}} props */
function Answer({ message, run, isLast, onGrow }) {
  run?.revision.value;
  const { text, reasoning = "", toolCalls = [] } = run ? { ...message, ...run.reader.values } : message;
  const showsTokens = tokensBelow.value.has(message.parent);
  const canShowTokens = !run && Boolean(text);
  return html`
    ${reasoning && html`<${Reasoning} text=${reasoning} isRunning=${Boolean(run) && !text} />`}
    ${showsTokens && canShowTokens
      ? html`<${TokenView} message=${message}
          goOnFrom=${(/** @type {string} */ begun, /** @type {any[]} */ tokens) =>
            conversation.goOnFrom(message.id, begun, tokens)} />`
      : html`<${MarkdownText} text=${text} onGrow=${onGrow} />`}
    ${toolCalls.map((call) => html`<${Call} call=${call} key=${call.id} />`)}
    ${isLast && !run && toolCalls.length > 0 && html`<${ToolResults} message=${message} key=${message.id} onShow=${onGrow} />`}
    ${run && html`<${Waiting} run=${run} />`}
    ${message.state === "stopped" && !run && html`<p class="note">Stopped.</p>`}
    ${!run && message.state === "done" && !text && !toolCalls.length && html`<p class="note">The answer is empty.</p>`}
    ${!run && message.state === "done" && message.finishReason === "length" &&
    html`<p class="note">Cut off at the limit of its length.</p>`}
    ${message.error && !run && html`<${Failed} message=${message} />`}
    ${!run && html`<${AnswerFacts} message=${whole(message)} />`}
    ${canShowTokens &&
    html`<button type="button" class="small-button" aria-pressed=${showsTokens}
      onClick=${() => turnTokens(message.parent)}>Tokens</button>`}
  `;
}

/** The message with the whole body of its request, made when it is asked for. @param {Message} message */
function whole(message) {
  const chat = conversation.chat.value;
  return Object.defineProperty({ ...message }, "request", {
    enumerable: true,
    get: () => (message.request ? requestOf(chat, message) : undefined),
  });
}

/** @param {{text: string, onGrow?: () => void}} props */
function MarkdownText({ text, onGrow }) {
  const ref = useRef(/** @type {HTMLDivElement | null} */ (null));
  const shown = useRef(/** @type {GrowingText | null} */ (null));
  useLayoutEffect(() => {
    shown.current ??= new GrowingText(/** @type {HTMLDivElement} */ (ref.current), onGrow);
    shown.current.show(text);
  }, [text]);
  useEffect(() => () => shown.current?.stop(), []);
  return html`<div class="markdown" ref=${ref}></div>`;
}

/** @param {{text: string, isRunning: boolean}} props */
function Reasoning({ text, isRunning }) {
  const isOpen = useSignal(false);
  /** @param {Event} event */
  const toggle = (event) => (isOpen.value = /** @type {HTMLDetailsElement} */ (event.target).open);
  return html`<details class="reasoning" onToggle=${toggle}>
    <summary>${isRunning ? html`<${Spinner} /> Thinking` : "Thoughts"}</summary>
    ${isOpen.value && html`<${MarkdownText} text=${text} />`}
  </details>`;
}

/** @param {{call: import("../shared/types.js").ToolCall}} props */
function Call({ call }) {
  return html`<div class="code call">
    <div class="code-head"><span>calls ${call.name}</span></div>
    <pre tabindex="0"><code>${call.arguments}</code></pre>
  </div>`;
}

/** Where an answer stands that has not begun. @param {{run: conversation.Run}} props */
function Waiting({ run }) {
  const { phase, position, etaS, model, done, total } = run.progress.value;
  if (phase === "writing") return null;
  return html`<p class="waiting" role="status"><${Spinner} />
    ${phase === "waiting" && html`<span>${placeText(Number(position), Number(etaS), model)}</span>`}
    ${phase === "reading" && html`<span>Reading: ${done} of ${total} tokens</span>
      <progress aria-label="Read" value=${done} max=${total}></progress>`}
    ${phase === "sent" && html`<span class="unseen">Waiting for the answer</span>`}
  </p>`;
}

/** @param {number} position @param {number} etaS @param {string} [model] */
function placeText(position, etaS, model) {
  const inQueue = position === 1 ? "Next in the queue" : `Place ${position} in the queue`;
  const place = model ? `Waiting for ${model} to be loaded` : inQueue;
  return etaS >= 1 ? `${place}, in about ${duration(etaS)}` : place;
}

/** @param {number} seconds */
function duration(seconds) {
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

/** @param {{message: Message}} props */
function Failed({ message }) {
  return html`<div class="failed" role="alert">
    <span>${message.error?.message}</span>
    <button type="button" class="button" onClick=${() => conversation.regenerate(message.id)}>Try again</button>
  </div>`;
}

/** @param {{message: Message, isLast: boolean, isRunning: boolean, edit: (isEditing: boolean) => void}} props */
function Actions({ message, isLast, isRunning, edit }) {
  const { ids, at } = versions(conversation.chat.value, message.id);
  const isAnswer = message.role === "assistant";
  const canMake = isAnswer && isLast && !isRunning;
  const isAsking = useSignal(false);
  const more = [
    { name: "New chat from here", icon: "talk", onClick: () => conversation.branchOff(message.id) },
    { name: "Delete", icon: "trash", kind: "bad", onClick: () => (isAsking.value = true) },
  ];
  const close = () => (isAsking.value = false);
  return html`<div class="actions">
    ${(ids.length > 1 || canMake) &&
    html`<span class="versions" role="group" aria-label="Versions">
      <${IconButton} kind="small" icon="back" name="Version before" disabled=${at === 0}
        onClick=${() => conversation.turn(message.id, -1)} />
      <span class="place" aria-label=${`Version ${at + 1} of ${ids.length}`}>${at + 1}/${ids.length}</span>
      ${at + 1 < ids.length || !canMake
        ? html`<${IconButton} kind="small" icon="forward" name="Version after" disabled=${at + 1 >= ids.length}
            onClick=${() => conversation.turn(message.id, 1)} />`
        : html`<${IconButton} kind="small" icon="forward" name="Another version"
            onClick=${() => conversation.regenerate(message.id)} />`}
    </span>`}
    ${(message.text || !isRunning) && html`<${CopyText} text=${message.text} />`}
    ${!isRunning && html`<${IconButton} kind="small" icon="edit" name="Edit" onClick=${() => edit(true)} />`}
    ${isAnswer && !isRunning &&
    html`<${IconButton} kind="small" icon="redo" name="Regenerate" onClick=${() => conversation.regenerate(message.id)} />`}
    ${canMake && message.text && !isHeldToFormat(message) &&
    html`<${IconButton} kind="small" icon="play" name="Continue" onClick=${() => conversation.goOn(message.id)} />`}
    ${!isRunning && html`<${Menu} name="More" items=${more} />`}
    ${isAsking.value && html`<${Confirm} title="Delete this message?" action="Delete" onNo=${close}
      text="This version of it and everything that follows it are deleted."
      onYes=${() => (close(), conversation.removeMessage(message.id))} />`}
  </div>`;
}

/** @param {{text: string}} props */
function CopyText({ text }) {
  const isDone = useSignal(false);
  const click = async () => {
    isDone.value = await copy(text);
    setTimeout(() => (isDone.value = false), 1500);
  };
  return html`<${IconButton} kind="small" icon=${isDone.value ? "check" : "copy"}
    name=${isDone.value ? "Copied" : "Copy"} onClick=${click} />`;
}

/** A field to change a message in. Own ones are sent again, answers can be gone on with. */
function Editor(/** @type {{message: Message, onClose: () => void}} */ { message, onClose }) {
  const ref = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  const isOwn = message.role === "user";
  useLayoutEffect(() => {
    const field = /** @type {HTMLTextAreaElement} */ (ref.current);
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }, []);
  /** @param {(id: string, text: string) => void} act */
  const close = (act) => () => {
    const text = ref.current?.value ?? "";
    onClose();
    if (text.trim() || message.images) act(message.id, text);
  };
  const goOn = close(isOwn ? conversation.sendInstead : conversation.goOnFrom);
  const isBusy = conversation.isRunning(conversation.chat.value.id);
  /** @param {KeyboardEvent} event */
  const press = (event) => {
    if (event.key === "Escape") onClose();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !isBusy) goOn();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  const rows = Math.min(16, Math.max(3, message.text.slice(0, PIECE).split("\n").length + 1));
  return html`<div class="editor">
    <textarea ref=${ref} class="field" rows=${rows} aria-label="Text of the message" onKeyDown=${press}
      defaultValue=${message.text}></textarea>
    <div class="dialog-actions">
      <button type="button" class="button" onClick=${onClose}>Cancel</button>
      <button type="button" class="button" onClick=${close(conversation.reword)}
        title="Change the text; what follows it stays">Save</button>
      <button type="button" class="button primary" disabled=${isBusy} onClick=${goOn}
        title=${isOwn ? "A new version of this message, and its answer" : "A new version that goes on after this text"}>
        ${isOwn ? "Send" : "Go on from here"}</button>
    </div>
  </div>`;
}
