// What the page knows of the server: whether it answers, and which model it has. Asked for only while somebody looks.
import { base, getJson } from "./api.js";
import { signal } from "./view.js";

const QUIET_MS = 5000;
const TROUBLED_MS = 1000;

/**
 * The engine's state as `/health` says it ("ready", "loading", "restarting", ...); "gone" where nobody answers, "" as
 * long as it is not known. `why` is the server's sentence.
 * @type {import("../vendor/preact.js").Signal<{state: string, why: string}>}
 */
export const server = signal({ state: "", why: "" });

/** @type {import("../vendor/preact.js").Signal<import("./types.js").ServerFacts | null>} */
export const facts = signal(null);

const FINE = new Set(["ok", "sleeping", "waking"]);

/** Whether requests are taken now. */
export function isUp() {
  return server.value.state === "" || FINE.has(server.value.state);
}

let timer = 0;

/** Ask now, and again from time to time. Whoever saw a call fail may call it too. */
export async function checkServer() {
  clearTimeout(timer);
  timer = 0;
  const before = server.value.state;
  const now = await health();
  if (now.state !== before || now.why !== server.value.why) server.value = now;
  if (isUp() && (before !== now.state || !facts.value)) readFacts();
  clearTimeout(timer);
  if (document.visibilityState === "visible") timer = setTimeout(checkServer, isUp() ? QUIET_MS : TROUBLED_MS);
}

/** Begin to watch. */
export function watchServer() {
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible") checkServer();
  });
  checkServer();
}

/** @returns {Promise<{state: string, why: string}>} */
async function health() {
  try {
    const said = await (await fetch(new URL("health", base))).json();
    return { state: String(said.status), why: said.error?.message ?? "" };
  } catch {
    return { state: "gone", why: "" };
  }
}

/** Read what `GET /` says, again where another model may have come. */
export async function readFacts() {
  try {
    facts.value = await getJson("", { isBackground: true });
  } catch {
    // Said where it matters: the banner, or the dialog that asks for a key.
  }
}
