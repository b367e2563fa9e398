// What an answer took, in one line under it.
import { html } from "../shared/view.js";

/** @param {{message: import("../shared/types.js").Message}} props */
export function AnswerFacts({ message }) {
  const tokens = message.usage?.completion_tokens;
  const rate = message.timings?.predicted_per_second;
  if (!tokens) return null;
  return html`<p class="facts">${tokens} tokens${rate ? `, ${rate.toFixed(1)} a second` : ""}</p>`;
}
