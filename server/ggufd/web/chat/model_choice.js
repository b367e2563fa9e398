// The choice of the model that answers a chat, where the server knows several.
import { getJson } from "../shared/api.js";
import { facts } from "../shared/server.js";
import { effect, html, signal } from "../shared/view.js";
import * as conversation from "./conversation.js";
import { chatModels, lineOf, noteOn } from "./models.js";
import { last } from "./tree.js";

/** @type {import("../vendor/preact.js").Signal<import("./models.js").ChatModel[]>} */
const models = signal([]);

async function readModels() {
  try {
    models.value = chatModels((await getJson("v1/models", { isBackground: true })).data ?? []);
  } catch {
    // Then there is nothing to choose, as with one model.
  }
}

// Again whenever another one may have been loaded.
effect(() => {
  if (facts.value) readModels();
});

/** The field in the header. A chat without a choice is answered by whichever model is loaded. */
export function ModelChoice() {
  const chosen = conversation.chat.value.model ?? "";
  const isGone = chosen && !models.value.some(({ id }) => id === chosen);
  const loaded = facts.value?.model;
  if (models.value.length < 2 && !isGone) return html`<span class="cut" title=${loaded}>${loaded}</span>`;
  return html`<select class="model-choice" aria-label="Model" title=${chosen || loaded} value=${chosen}
    onFocus=${readModels} onChange=${(/** @type {any} */ event) => conversation.setModel(event.target.value)}>
    <option value="">${loaded ? `The loaded model: ${loaded}` : "The loaded model"}</option>
    ${models.value.map((one) => html`<option key=${one.id} value=${one.id}>${lineOf(one)}</option>`)}
    ${isGone && html`<option value=${chosen}>${chosen} (not known here)</option>`}
  </select>`;
}

/** What is to be known of the chosen model before something is sent to it. */
export function ModelNote() {
  const chat = conversation.chat.value;
  // What failed says it itself.
  const isSaid = conversation.isRunning(chat.id) || last(chat)?.state === "failed";
  const note = models.value.length && !isSaid ? noteOn(models.value, chat.model ?? "") : null;
  return note && html`<p class="model-note ${note.isBad ? "bad" : ""}" role="status">${note.text}</p>`;
}
