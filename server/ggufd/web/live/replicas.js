// The replicas of a cluster, whose live views are one; a server alone has none.
import { html } from "../shared/view.js";
import { count } from "./format.js";
import { Section, Table } from "./table.js";

/** @typedef {import("./state.js").Replica} Replica */

/**
 * The column that says where something is, and no column where there is one server only.
 * @param {import("./state.js").Server} server
 * @returns {import("./table.js").Column[]}
 */
export function replicaColumn(server) {
  if (!server.replicas) return [];
  return [{ name: "Replica", cell: (/** @type {{replica?: string}} */ one) => one.replica ?? "–" }];
}

/** Nothing where there is one server only. @param {{state: import("./state.js").LiveState}} props */
export function Replicas({ state }) {
  const { replicas } = state.server;
  if (!replicas) return null;
  const columns = [
    { name: "Replica", kind: "key", cell: (/** @type {Replica} */ one) => html`<span class="cut">${one.id}</span>` },
    { name: "State", cell: (/** @type {Replica} */ one) => one.state },
    { name: "Model", cell: (/** @type {Replica} */ one) => html`<span class="cut">${one.model}</span>` },
    {
      name: "Busy slots",
      kind: "number",
      cell: (/** @type {Replica} */ one) => `${count(one.reading + one.writing)} of ${count(one.slots)}`,
    },
    { name: "Waiting", kind: "number", cell: (/** @type {Replica} */ one) => count(one.waiting) },
  ];
  return html`<${Section} title="Replicas" note=${`${replicas.length} answer`}>
    <${Table} caption="Replicas" columns=${columns} rows=${replicas} keyOf=${(/** @type {Replica} */ one) => one.id}
      empty="No replica answers." />
  <//>`;
}
