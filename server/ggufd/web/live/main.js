// The live view: what the server is doing now.
import { Banner, Spinner } from "../shared/components.js";
import { KeyDialog, ServerBanner } from "../shared/frame.js";
import { Header } from "../shared/header.js";
import { server, watchServer } from "../shared/server.js";
import { html, render } from "../shared/view.js";
import { Advice } from "./advice.js";
import { Batches } from "./batches.js";
import { CacheTiers } from "./cache.js";
import { Control } from "./control.js";
import { Keys } from "./keys.js";
import { Plots } from "./plots.js";
import { Queue } from "./queue.js";
import { Replicas } from "./replicas.js";
import { LastRequests } from "./requests.js";
import { Slots } from "./slots.js";
import { isConnected, live, refusal, start, watchLive } from "./stream.js";
import { Summary } from "./summary.js";

const OLD_S = 5;

function Live() {
  const state = live.value;
  return html`<div class="live-page">
    <${Header} page="live" />
    <${ServerBanner} />
    <${StreamBanner} state=${state} />
    <main class="live ${isConnected.value ? "" : "old"}" tabindex="0" aria-label="What the server is doing">
      <h1 class="unseen">What the server is doing</h1>
      ${state ? html`<${Everything} state=${state} />` : html`<${Nothing} />`}
    </main>
    <${KeyDialog} />
  </div>`;
}

/**
 * What is wrong with what is shown: it is old, or the engine takes long.
 * @param {{state: import("./state.js").LiveState | null}} props
 */
function StreamBanner({ state }) {
  if (refusal.value)
    return html`<${Banner} kind="bad">${refusal.value} <button type="button" class="button small"
      onClick=${start}>Try again</button><//>`;
  if (!state || server.value.state === "gone") return null;
  if (!isConnected.value)
    return html`<${Banner} kind="busy">This is not up to date: the stream has ended and is begun again.<//>`;
  if (state.age_s !== null && state.age_s > OLD_S)
    return html`<${Banner} kind="note">The engine is busy with one long step, and was last heard of${" "}
      ${Math.round(state.age_s)} s ago.<//>`;
  return null;
}

/** Before the first message. */
function Nothing() {
  if (refusal.value || server.value.state === "gone") return null;
  return html`<p class="nothing"><${Spinner} /> Asking the server…</p>`;
}

/** @param {{state: import("./state.js").LiveState}} props */
function Everything({ state }) {
  return html`<div class="board">
    <${Summary} state=${state} />
    <div class="column">
      <${Replicas} state=${state} />
      <${Slots} state=${state} />
      <${Queue} state=${state} />
      <${Batches} state=${state} />
      <${Keys} state=${state} />
    </div>
    <div class="column side">
      ${state.server.is_admin && html`<${Control} state=${state} />`}
      <${CacheTiers} state=${state} />
    </div>
    <${Advice} />
    <${Plots} state=${state} />
    <${LastRequests} state=${state} />
  </div>`;
}

watchServer();
watchLive();
render(html`<${Live} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
