// Batches that have not ended: how far they are, and until when they may take.
import { html } from "../shared/view.js";
import { clock, count } from "./format.js";
import { replicaColumn } from "./replicas.js";
import { Owner, Section, Table } from "./table.js";

/** @typedef {import("./state.js").Batch} Batch */

/** Nothing where there is none. @param {{state: import("./state.js").LiveState}} props */
export function Batches({ state }) {
  const { batches, server } = state;
  if (!batches.length) return null;
  const columns = [
    { name: "Batch", kind: "key", cell: (/** @type {Batch} */ one) => html`<span class="cut">${one.id}</span>` },
    { name: "Whose", cell: (/** @type {Batch} */ one) => html`<${Owner} name=${one.owner} you=${server.you} />` },
    ...replicaColumn(server),
    { name: "State", cell: (/** @type {Batch} */ one) => one.state.replace("_", " ") },
    { name: "Lines left", kind: "number", cell: left },
    { name: "Failed", kind: "number", cell: (/** @type {Batch} */ one) => count(one.lines_failed) },
    { name: "Until", kind: "number", cell: (/** @type {Batch} */ one) => clock(one.expires_at) },
  ];
  return html`<${Section} title="Batches" note="computed while nobody waits">
    <${Table} caption="Batches that have not ended" columns=${columns} rows=${batches}
      keyOf=${(/** @type {Batch} */ one) => one.id} empty="" />
  <//>`;
}

/** @param {Batch} one */
function left(one) {
  return `${count(one.lines_left)} of ${count(one.lines)}`;
}
