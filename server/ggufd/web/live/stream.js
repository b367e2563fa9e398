// The live stream: read as long as somebody looks, begun again where it ends.
import { call, errorFrom } from "../shared/api.js";
import { key } from "../shared/key.js";
import { checkServer, server } from "../shared/server.js";
import { eventsOf } from "../shared/sse.js";
import { signal } from "../shared/view.js";
import { merge } from "./state.js";

const AGAIN_MS = 1000;
const REFUSED = new Set([401, 403, 404]);

/**
 * What is known now; null before the first message.
 * @type {import("../vendor/preact.js").Signal<import("./state.js").LiveState | null>}
 */
export const live = signal(null);

/** Whether the stream is there: what is shown may be old where it is not. */
export const isConnected = signal(false);

/** Why nothing is read, and nothing will be by itself; "" where all is well. */
export const refusal = signal("");

/** @type {AbortController | null} */
let reading = null;
let timer = 0;

/** Begin to look; a page that nobody sees does not. */
export function watchLive() {
  document.addEventListener("visibilitychange", () => (document.visibilityState === "visible" ? start() : stop()));
  key.subscribe(() => {
    stop();
    start();
  });
}

/** Begin anew, after a refusal too. */
export function start() {
  clearTimeout(timer);
  if (reading || document.visibilityState !== "visible") return;
  const own = (reading = new AbortController());
  refusal.value = "";
  read(own.signal)
    .catch((error) => failed(error, own))
    .finally(() => {
      if (reading !== own) return;
      reading = null;
      isConnected.value = false;
      if (!refusal.value) timer = setTimeout(start, AGAIN_MS);
    });
}

function stop() {
  clearTimeout(timer);
  reading?.abort();
  reading = null;
}

/** @param {any} error @param {AbortController} own */
function failed(error, own) {
  if (own.signal.aborted) return;
  if (REFUSED.has(error?.status)) refusal.value = error.message;
  else checkServer();
}

/** @param {AbortSignal} signal */
async function read(signal) {
  const response = await call("v1/live", { signal, headers: { Accept: "text/event-stream" } });
  for await (const events of eventsOf(response)) {
    for (const event of events) if (event.data) take(JSON.parse(event.data));
  }
}

/** The banner over both pages asks seldom; this page knows at once. @param {import("./state.js").Server} said */
function tellBanner({ state, trouble }) {
  const name = state === "ready" ? "ok" : state;
  if (server.value.state !== name) server.value = { state: name, why: trouble };
}

/** @param {any} message */
function take(message) {
  const error = errorFrom(message, 401);
  if (error) throw error;
  live.value = merge(live.value, message);
  tellBanner(message.server);
  isConnected.value = true;
}
