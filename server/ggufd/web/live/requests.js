// The last requests that ended: what they cost, and what the cache had of each.
import { html } from "../shared/view.js";
import { clock, count, duration, rate } from "./format.js";
import { replicaColumn } from "./replicas.js";
import { Owner, Section, Table } from "./table.js";

/** @typedef {import("./state.js").Ended} Ended */

/** @type {Record<string, [string, string]>} */
const CLASSES = {
  continued: ["continued", "It went on where another request had ended: only what was new was computed."],
  parted: ["parted", "It began like something that was kept, and differed from there on: the rest was computed."],
  new: ["new", "Nothing that was kept begins like it: all of it was computed."],
};

/** @type {Record<string, string>} */
const REASONS = {
  stop: "finished",
  length: "at its limit",
  abort: "ended early",
  disconnect: "client left",
  request_ended: "ended by hand",
  engine_down: "engine lost",
};

/** @param {{state: import("./state.js").LiveState}} props */
export function LastRequests({ state }) {
  const columns = [
    { name: "Ended", kind: "key", cell: (/** @type {Ended} */ one) => clock(one.time) },
    { name: "Whose", cell: (/** @type {Ended} */ one) => html`<${Owner} name=${one.owner} you=${state.server.you} />` },
    ...replicaColumn(state.server),
    { name: "Route", kind: "wide", cell: (/** @type {Ended} */ one) => html`<code class="cut">${one.path}</code>` },
    { name: "Prompt", kind: "number", cell: (/** @type {Ended} */ one) => count(one.prompt_tokens) },
    { name: "Cached", kind: "number", cell: (/** @type {Ended} */ one) => count(one.cached_tokens) },
    { name: "Cache", cell: (/** @type {Ended} */ one) => html`<${CacheClass} kind=${one.cache} />` },
    { name: "Answer", kind: "number", cell: (/** @type {Ended} */ one) => count(one.completion_tokens) },
    { name: "Waited", kind: "number", cell: (/** @type {Ended} */ one) => duration(one.queue_s) },
    { name: "First token", kind: "number", cell: (/** @type {Ended} */ one) => duration(one.first_s) },
    { name: "Tokens/s", kind: "number", cell: (/** @type {Ended} */ one) => rate(one.tokens_per_s) },
    {
      name: "End",
      cell: (/** @type {Ended} */ one) =>
        html`<span class=${isWell(one) ? "" : "warn"}>${REASONS[one.reason] ?? one.reason.replaceAll("_", " ")}</span>`,
    },
  ];
  const rows = state.requests.toReversed();
  return html`<${Section} title="Last requests" kind="whole"
    note=${rows.length ? `${rows.length}, the newest first` : ""}>
    <div class="scrolled" tabindex=${rows.length ? 0 : undefined} role="group" aria-label="Last requests">
      <${Table} caption="Requests that ended" columns=${columns} rows=${rows} keyOf=${(/** @type {Ended} */ one) =>
        one.number}
        empty=${`${state.server.sees === "own" ? "None of your requests" : "No request"} has ended since the server started.`} />
    </div>
  <//>`;
}

/** @param {Ended} one */
function isWell(one) {
  return one.reason === "stop" || one.reason === "length";
}

/** @param {{kind: string | null}} props */
function CacheClass({ kind }) {
  if (kind === null) return html`<span class="quiet">–</span>`;
  const [name, why] = CLASSES[kind] ?? [kind, ""];
  return html`<span class="tag ${kind}" title=${why}>${name}</span>`;
}
