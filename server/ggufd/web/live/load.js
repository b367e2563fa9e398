// Another model: first what it would need and what fits, then the change itself, with how far it is.
import { call, errorFrom, getJson } from "../shared/api.js";
import { Dialog, Spinner } from "../shared/components.js";
import { eventsOf } from "../shared/sse.js";
import { html, useSignal } from "../shared/view.js";
import { useQuestions } from "./act.js";
import { bytes, count } from "./format.js";

/** @param {{server: import("./state.js").Server, running: number, onClose: () => void}} props */
export function LoadDialog({ server, running, onClose }) {
  const model = useSignal("");
  const plan = useSignal(/** @type {any} */ (null));
  const stage = useSignal("");
  const { perform, failure } = useQuestions();
  const busy = stage.value !== "" && stage.value !== "ready" && !failure;
  const ask = (/** @type {Event} */ event) => {
    event.preventDefault();
    plan.value = null;
    stage.value = "planning";
    perform(
      async () => (plan.value = await getJson("v1/models/plan", { body: { model: model.value.trim() } })),
    ).finally(() => (stage.value = ""));
  };
  const type = (/** @type {any} */ event) => {
    model.value = event.target.value;
    plan.value = null;
  };
  const load = () => perform(() => change(model.value.trim(), (said) => (stage.value = said)));
  return html`<${Dialog} title="Load another model" onClose=${onClose}>
    <form class="form" onSubmit=${ask}>
      <label for="load-model">Model</label>
      <input id="load-model" class="field" value=${model.value} autocomplete="off" spellcheck=${false} required
        disabled=${busy} aria-describedby="load-note" onInput=${type} />
      <p id="load-note" class="quiet small">A file or folder on the server, hf:OWNER/REPO, or ollama:NAME. Nothing
        is loaded before you have seen what it needs.</p>
      ${plan.value && html`<${Plan} plan=${plan.value} />`}
      ${plan.value && stage.value !== "ready" && html`<p class="small">${loss(server.model, running)}</p>`}
      ${failure && html`<p class="failure" role="alert">${failure}</p>`}
      <p class="stage" role="status">${busy && html`<${Spinner} />`}${STAGES[stage.value] ?? stage.value}</p>
      <div class="dialog-actions">
        <button type="button" class="button" onClick=${onClose}>${stage.value === "ready" ? "Close" : "Cancel"}</button>
        ${
          plan.value && stage.value !== "ready"
            ? html`<button type="button" class="button danger" disabled=${busy} onClick=${load}>Load it</button>`
            : html`<button class="button primary" disabled=${busy || !model.value.trim()}>What does it need?</button>`
        }
      </div>
    </form>
  <//>`;
}

/** @type {Record<string, string>} */
const STAGES = { planning: "Reading the model's header…", ready: "It is loaded and served." };

/** @param {string} model @param {number} running */
function loss(model, running) {
  const open = running ? ` What runs (${running}) may end first, but not for long.` : "";
  return `${model} is unloaded, and what its slots keep is lost.${open} A model that cannot be served changes nothing.`;
}

/** What the planner says: what it is, what it needs, whether that fits. @param {{plan: any}} props */
function Plan({ plan }) {
  const { best, machine } = plan;
  const needed = best.ram.needed;
  return html`<dl class="plan">
    <dt>Model</dt><dd>${plan.architecture}, ${short(plan.parameters)} parameters, ${plan.quantisation || "mixed types"},${" "}
      ${bytes(plan.size)}</dd>
    <dt>Context</dt><dd>${count(best.slots)} at once, ${count(best.tokens_each)} tokens each</dd>
    <dt>Needs</dt><dd>${bytes(needed)} of RAM${best.vram.total > 0 && html`, ${bytes(best.vram.total)} on GPUs`}</dd>
    <dt>Free now</dt><dd>${bytes(machine.ram_free)} of ${bytes(machine.ram_total)} of RAM, beside the model that is
      served</dd>
    <dt>Fits</dt><dd><strong class=${best.fits ? "good" : "bad"}>${best.fits ? "yes" : "no"}</strong>${best.why &&
      `: ${best.why}`}</dd>
  </dl>`;
}

/** @param {number} value */
function short(value) {
  return new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(value);
}

/**
 * Change the model, and tell how far that is. Throws what the server says is wrong.
 * @param {string} model @param {(stage: string) => void} tell
 */
async function change(model, tell) {
  tell("Beginning…");
  for await (const events of eventsOf(await call("v1/models/load", { body: { model } }))) {
    for (const { data } of events) if (data) report(JSON.parse(data), tell);
  }
}

/** @param {any} said @param {(stage: string) => void} tell */
function report(said, tell) {
  const error = errorFrom(said, 400);
  if (error) throw error;
  const share =
    typeof said.progress === "number" && said.status !== "ready" ? ` ${Math.round(said.progress * 100)} %` : "";
  tell(said.status === "ready" ? "ready" : `${said.status[0].toUpperCase()}${said.status.slice(1)}…${share}`);
}
