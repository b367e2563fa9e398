// What an answer took, in one line under it, and more behind it.
import { lazy } from "../shared/lazy.js";
import { html, useId, useSignal } from "../shared/view.js";
import { shortFigures } from "./figures.js";

/** @typedef {import("../shared/types.js").Message} Message */

/** @type {(props: {message: Message}) => any} */
const Details = lazy(async () => (await import("./details.js")).Details);

/** @param {{message: Message}} props */
export function AnswerFacts({ message }) {
  const isOpen = useSignal(false);
  const id = useId();
  const figures = shortFigures(message);
  if (message.state === "writing" || !message.requested) return null;
  return html`<div class="facts">
    <button type="button" class="facts-line" aria-expanded=${isOpen.value} aria-controls=${id}
      onClick=${() => (isOpen.value = !isOpen.value)}>
      ${figures.length ? figures.map((text) => html`<span>${text}</span>`) : html`<span>About this answer</span>`}
    </button>
    <div id=${id} class="facts-more" hidden=${!isOpen.value}>
      ${isOpen.value && html`<${Details} message=${message} />`}
    </div>
  </div>`;
}
