// What an admin may do with the server: another model, adapter scales, sleep, drain.
import { html, useSignal } from "../shared/view.js";
import { drain, resume, sleep, useQuestions } from "./act.js";
import { AdapterDialog } from "./adapters.js";
import { count } from "./format.js";
import { LoadDialog } from "./load.js";
import { Section } from "./table.js";

/** @param {{state: import("./state.js").LiveState}} props */
export function Control({ state }) {
  const { server, totals } = state;
  const open = useSignal("");
  const questions = useQuestions();
  const close = () => (open.value = "");
  const isDraining = server.state === "draining";
  return html`<${Section} title="Server" note=${`ggufd ${server.version}`} failure=${questions.failure}>
    <p class="model"><strong class="wrap">${server.model}</strong>${" "}
      <span class="quiet">${server.n_ctx && `${server.slots} at once, ${count(server.n_ctx)} tokens each`}</span></p>
    <div class="buttons">
      ${server.can_load && html`<button type="button" class="button"
        onClick=${() => (open.value = "load")}>Load another model…</button>`}
      ${server.adapters.length > 0 && html`<button type="button" class="button"
        onClick=${() => (open.value = "adapters")}>Adapter scales…</button>`}
      ${
        isDraining
          ? html`<button type="button" class="button primary"
            onClick=${() => questions.perform(resume)}>Take requests again</button>`
          : html`<button type="button" class="button"
            onClick=${() => questions.ask(drainQuestion(totals.running + totals.waiting))}>Drain…</button>`
      }
      ${server.state !== "sleeping" && html`<button type="button" class="button"
        onClick=${() => questions.ask(sleepQuestion())}>Sleep…</button>`}
    </div>
    ${questions.dialog}
    ${open.value === "load" && html`<${LoadDialog} server=${server} running=${totals.running} onClose=${close} />`}
    ${open.value === "adapters" && html`<${AdapterDialog} adapters=${server.adapters} onClose=${close} />`}
  <//>`;
}

/** @param {number} open */
function drainQuestion(open) {
  const left = open ? `The ${open} that run or wait are served.` : "Nothing runs now.";
  return {
    title: "Take no new requests?",
    text: `${left} Everybody else is told to come back later, until you take requests again.`,
    action: "Drain",
    run: drain,
  };
}

function sleepQuestion() {
  return {
    title: "Unload the model?",
    text:
      "Its memory is free until the next request, which waits until the model is loaded again. " +
      "What the slots keep is lost.",
    action: "Sleep",
    run: sleep,
  };
}
