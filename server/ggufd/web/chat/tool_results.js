// What came of the calls of an answer: a person says it, since this page runs no tools.
import { html, useLayoutEffect, useSignal } from "../shared/view.js";
import * as conversation from "./conversation.js";

/** @param {{message: import("../shared/types.js").Message, onShow: () => void}} props */
export function ToolResults({ message, onShow }) {
  useLayoutEffect(onShow, []);
  const calls = message.toolCalls ?? [];
  const texts = useSignal(calls.map(() => ""));
  /** @param {Event} event */
  const submit = (event) => {
    event.preventDefault();
    conversation.giveResults(message.id, texts.value);
  };
  return html`<form class="tool-results" onSubmit=${submit}>
    ${calls.map(
      (call, at) => html`<label key=${call.id}>Result of ${call.name}
        <textarea class="field" rows="2" value=${texts.value[at]}
          onInput=${(/** @type {any} */ event) => (texts.value = texts.value.with(at, event.target.value))}></textarea>
      </label>`,
    )}
    <button class="button" disabled=${!texts.value.every(Boolean)}>Send ${calls.length > 1 ? "the results" : "the result"}</button>
  </form>`;
}
