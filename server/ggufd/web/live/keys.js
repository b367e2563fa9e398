// The keys: what each was served lately beside its fair share, its limits and its refusals.
import { html } from "../shared/view.js";
import { count, percent } from "./format.js";
import { Owner, Section, Table } from "./table.js";

/** @typedef {import("./state.js").Account} Account */

/** @param {{state: import("./state.js").LiveState}} props */
export function Keys({ state }) {
  const { server } = state;
  const columns = [
    {
      name: server.has_keys ? "Key" : "Address",
      kind: "key",
      cell: (/** @type {Account} */ one) => html`<${Owner} name=${one.name} you=${server.you} />`,
    },
    {
      name: "Served in ten minutes",
      kind: "wide",
      cell: (/** @type {Account} */ one) => html`<${Served} account=${one} />`,
    },
    { name: "Runs", kind: "number", cell: (/** @type {Account} */ one) => ofLimit(one.running, one.max_running) },
    { name: "Waits", kind: "number", cell: (/** @type {Account} */ one) => ofLimit(one.waiting, one.max_waiting) },
    {
      name: "Tokens/min",
      kind: "number",
      cell: (/** @type {Account} */ one) =>
        one.tokens_per_minute === null ? "no limit" : count(one.tokens_per_minute),
    },
    {
      name: "Refused",
      kind: "number",
      cell: (/** @type {Account} */ one) =>
        one.refusals ? html`<strong class="warn">${count(one.refusals)}</strong>` : "0",
    },
  ];
  return html`<${Section} title=${server.has_keys ? "Keys" : "Addresses"} note=${server.sees === "own" ? "yours" : ""}>
    <${Table} caption="What each was served" columns=${columns} rows=${state.keys}
      keyOf=${(/** @type {Account} */ one) => one.name ?? ""} empty="Nobody was served in the last ten minutes." />
  <//>`;
}

/** @param {number} value @param {number | null} limit */
function ofLimit(value, limit) {
  return limit === null ? count(value) : `${count(value)} of ${count(limit)}`;
}

/** The share served, with a mark where the fair share lies. @param {{account: Account}} props */
function Served({ account }) {
  const { share, fair_share: fair } = account;
  const text = account.served ? percent(share) : "nothing";
  return html`<span>${text}${fair !== null && html`<span class="quiet"> · fair share${" "}${percent(fair)}</span>`}
      ${account.weight !== 1 && html`<span class="quiet"> · weight ${account.weight}</span>`}</span>
    <span class="bar" aria-hidden="true"><span class="written" style=${{ width: `${share * 100}%` }}></span>
      ${fair !== null && html`<span class="mark" style=${{ left: `${fair * 100}%` }}></span>`}</span>`;
}
