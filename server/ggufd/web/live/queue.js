// The queue: who waits, how long still, and what may be ended.
import { html } from "../shared/view.js";
import { endQuestion, useQuestions, whoseOf } from "./act.js";
import { count, duration } from "./format.js";
import { replicaColumn } from "./replicas.js";
import { Owner, Section, Table } from "./table.js";

/** @typedef {import("./state.js").Waiting} Waiting */

/** @param {{state: import("./state.js").LiveState}} props */
export function Queue({ state }) {
  const { server } = state;
  const questions = useQuestions();
  const end = (/** @type {Waiting} */ one) =>
    questions.ask(endQuestion(one.request, whoseOf(one.owner, server.you), one.state === "running"));
  const columns = [
    { name: "Place", kind: "number key", cell: (/** @type {Waiting} */ one) => one.position ?? "–" },
    { name: "Whose", cell: (/** @type {Waiting} */ one) => html`<${Owner} name=${one.owner} you=${server.you} />` },
    ...replicaColumn(server),
    { name: "Its turn", kind: "number", cell: turn },
    { name: "Waits for", kind: "number", cell: (/** @type {Waiting} */ one) => duration(one.age_s) },
    { name: "Tokens", kind: "number", cell: (/** @type {Waiting} */ one) => count(one.prompt_tokens) },
    { name: "Priority", kind: "number", cell: (/** @type {Waiting} */ one) => one.priority },
    {
      name: "Actions",
      kind: "act",
      cell: (/** @type {Waiting} */ one) => html`<button type="button" class="button small" onClick=${() => end(one)}
        aria-label=${`End request ${one.request}`}>End</button>`,
    },
  ];
  return html`<${Section} title="Queue" note=${note(state)} failure=${questions.failure}>
    <${Table} caption="Requests that wait" columns=${columns} rows=${state.queue}
      keyOf=${(/** @type {Waiting} */ one) => one.request} empty=${emptyText(state)} />
    ${questions.dialog}
  <//>`;
}

/** @param {Waiting} one */
function turn(one) {
  if (one.state === "running") return "being computed";
  const when = one.eta_s === null || one.eta_s < 0.5 ? "now" : `in ${duration(one.eta_s)}`;
  return one.model ? `${when}, waits for ${one.model}` : when;
}

/** @param {import("./state.js").LiveState} state */
function note({ totals }) {
  return totals.waiting ? `${totals.waiting} waiting` : "";
}

/** @param {import("./state.js").LiveState} state */
function emptyText({ totals, server }) {
  if (!totals.waiting) return "Nobody is waiting.";
  if (server.sees === "own") return "None of your requests is waiting.";
  return `${totals.waiting} waiting for the model.`;
}
