// The system prompt of the open chat.
import { html, useSignal } from "../shared/view.js";
import * as conversation from "./conversation.js";

export function SystemPrompt() {
  const text = conversation.chat.value.system;
  const isOpen = useSignal(false);
  /** @param {any} event */
  const change = (event) => conversation.setSystem(event.target.value);
  return html`<details class="system" open=${isOpen.value}
    onToggle=${(/** @type {any} */ event) => (isOpen.value = event.target.open)}>
    <summary><span class="system-name">System prompt</span>
      ${!isOpen.value && html`<span class="cut quiet">${text || "none"}</span>`}</summary>
    <textarea class="field" rows="4" aria-label="System prompt" value=${text} onChange=${change}
      placeholder="What the model is told before the conversation, such as: Answer in one sentence."></textarea>
  </details>`;
}
