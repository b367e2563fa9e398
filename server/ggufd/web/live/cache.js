// The tiers of the prefix cache: how full, how often they helped, what had to go.
import { html } from "../shared/view.js";
import { bytes, count, percent } from "./format.js";
import { Bar } from "./slots.js";
import { Section, Table } from "./table.js";

/**
 * @typedef {{name: string, note: string, used: number, limit: number, hits: string, evictions: string}} Tier
 */

/** @param {{state: import("./state.js").LiveState}} props */
export function CacheTiers({ state }) {
  const { cache } = state;
  const columns = [
    { name: "Where", kind: "key", cell: (/** @type {Tier} */ tier) => tier.name },
    {
      name: "Holds",
      kind: "wide",
      cell: (/** @type {Tier} */ tier) =>
        html`<span>${holds(tier)}</span>${tier.limit > 0 && html`<${Bar} of=${tier.limit}
          parts=${[["kept", tier.used]]} />`}`,
    },
    { name: "Helped", kind: "number", cell: (/** @type {Tier} */ tier) => tier.hits },
    { name: "Evicted", kind: "number", cell: (/** @type {Tier} */ tier) => tier.evictions },
  ];
  return html`<${Section} title="Cache" note=${cache ? note(cache) : ""}>
    <${Table} caption="Tiers of the cache" columns=${columns} rows=${cache ? tiersOf(cache) : []}
      keyOf=${(/** @type {Tier} */ tier) => tier.name} empty="Nothing is kept while the model is not there." />
  <//>`;
}

/** @param {import("./state.js").Cache} cache */
function note({ cached_tokens: cached, computed_tokens: computed }) {
  return cached + computed ? `${percent(cached / (cached + computed))} of all prompt tokens came from it` : "";
}

/** @param {Tier} tier */
function holds(tier) {
  if (!tier.limit) return html`<span class="quiet">${tier.note}</span>`;
  return `${bytes(tier.used)} of ${bytes(tier.limit)}${tier.note && `, ${tier.note}`}`;
}

/** @param {import("./state.js").Cache} cache @returns {Tier[]} */
function tiersOf({ cached_tokens: cached, slots, ram, disk }) {
  return [
    {
      name: "Slots",
      note: `${count(slots.tokens)} tokens`,
      used: slots.bytes,
      limit: slots.limit_bytes,
      hits: `${count(cached)} tokens`,
      evictions: count(slots.evictions),
    },
    {
      name: "RAM",
      note: ram.limit_bytes ? "" : "off (--cache-ram)",
      used: ram.bytes,
      limit: ram.limit_bytes,
      hits: times(ram.hits),
      evictions: count(ram.evictions),
    },
    {
      name: "Disk",
      note: disk.limit_bytes ? "" : "off (--cache-disk)",
      used: disk.bytes,
      limit: disk.limit_bytes,
      hits: times(disk.hits),
      evictions: "–",
    },
  ];
}

/** @param {number} hits */
function times(hits) {
  return hits === 1 ? "once" : `${count(hits)} times`;
}
