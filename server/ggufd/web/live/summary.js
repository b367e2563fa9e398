// At a glance: the engine's state, how much is going on, and how quick it is.
import { server as reached } from "../shared/server.js";
import { html } from "../shared/view.js";
import { counted, duration, percent, rate } from "./format.js";
import { latest } from "./state.js";

/** @type {Record<string, [string, string]>} */
const STATES = {
  ready: ["Serving", "good"],
  loading: ["Loading", "busy"],
  waking: ["Waking", "busy"],
  sleeping: ["Asleep", "rest"],
  restarting: ["Restarting", "bad"],
  failed: ["Failed", "bad"],
  draining: ["Draining", "busy"],
  stopped: ["Stopped", "bad"],
};

/** @param {{state: import("./state.js").LiveState}} props */
export function Summary({ state }) {
  const { server, totals, cache } = state;
  const isGone = reached.value.state === "gone";
  const [word, kind] = isGone ? ["No answer", "bad"] : (STATES[server.state] ?? [server.state, "busy"]);
  const prompt = cache ? cache.cached_tokens + cache.computed_tokens : 0;
  const isIdle = !isGone && server.state === "ready" && !totals.running && !totals.waiting;
  return html`<dl class="tiles">
    <${Tile} name="Server" value=${html`<span class="state ${kind}">${isIdle ? "Idle" : word}</span>`}
      note=${server.trouble || server.model} />
    ${server.beside?.map((one) => html`<${Beside} key=${one.model} one=${one} />`)}
    <${Tile} name="Being served" value=${totals.running}
      note=${totals.slots ? `${totals.reading} reading, ${totals.writing} writing` : ""} />
    <${Tile} name="Waiting" value=${totals.waiting} note=${totals.waiting ? "for a slot" : "nobody"}
      kind=${totals.waiting ? "warn" : ""} />
    <${Tile} name="Written" value=${rate(latest(state, "written"))} note="tokens a second" />
    <${Tile} name="Read" value=${rate(latest(state, "read"))} note="tokens a second" />
    <${Tile} name="First token" value=${duration(latest(state, "first_p50"))} note="half of them within" />
    <${Tile} name="From the cache" value=${prompt ? percent((cache?.cached_tokens ?? 0) / prompt) : "–"}
      note=${prompt ? `of ${counted(prompt, "prompt token")}` : "no prompt yet"} />
  </dl>`;
}

/** A model that stays loaded beside the one that is swapped. @param {{one: import("./state.js").Beside}} props */
function Beside({ one }) {
  const [word, kind] = STATES[one.state] ?? [one.state, "busy"];
  const isIdle = one.state === "ready" && !one.running && !one.waiting;
  const doing = isIdle ? "" : `, ${one.running} running, ${one.waiting} waiting`;
  return html`<${Tile} name="Beside it" value=${html`<span class="state ${kind}">${isIdle ? "Idle" : word}</span>`}
    note=${one.model + doing} />`;
}

/** @param {{name: string, value: any, note: string, kind?: string}} props */
function Tile({ name, value, note, kind = "" }) {
  return html`<div class="tile ${kind}"><dt>${name}</dt><dd><span class="value">${value}</span>
    <span class="quiet small cut" title=${note}>${note}</span></dd></div>`;
}
