// What stands around both pages: banners of the server's state, and the dialog that asks for a key.
import { Banner, Dialog } from "./components.js";
import { giveKey, keyWanted } from "./key.js";
import { server } from "./server.js";
import { html, useSignal } from "./view.js";

/** @type {Record<string, string>} */
const STATES = {
  gone: "The server does not answer. This page goes on as soon as it does.",
  loading: "The model is loading.",
  waking: "The model was asleep and is loading again.",
  restarting: "The engine has stopped and is starting again.",
  swapping: "Another model is being loaded.",
  draining: "The server takes no new requests now; it finishes what runs.",
  stopped: "The server is stopping.",
};

/** What keeps the server from answering now; nothing while all is well. */
export function ServerBanner() {
  const { state, why } = server.value;
  if (state in STATES) return html`<${Banner} kind=${state === "gone" ? "bad" : "busy"}>${STATES[state]}<//>`;
  if (["", "ok", "sleeping", "queue_full"].includes(state)) return null;
  return html`<${Banner} kind="bad">${why || `The server takes no requests now: ${state}.`}<//>`;
}

/** The dialog that asks for a key, while one is wanted. */
export function KeyDialog() {
  const typed = useSignal("");
  if (!keyWanted.value) return null;
  const isWrong = keyWanted.value === "wrong";
  /** @param {Event} event */
  const submit = (event) => {
    event.preventDefault();
    const given = typed.value.trim();
    if (given) giveKey(given);
    typed.value = "";
  };
  return html`<${Dialog} title="This server asks for a key" kind="small" key=${keyWanted.value}
    onClose=${() => giveKey("")}>
    <form class="key-form" onSubmit=${submit}>
      ${isWrong && html`<p class="key-wrong" role="alert">The server does not know that key.</p>`}
      <label for="key-field">API key</label>
      <input id="key-field" class="field" type="password" autocomplete="off" autofocus value=${typed.value}
        aria-describedby="key-note" onInput=${(/** @type {any} */ event) => (typed.value = event.target.value)} />
      <p id="key-note" class="quiet">It is kept in this tab only, until the tab is closed.</p>
      <div class="dialog-actions"><button class="button primary" disabled=${!typed.value.trim()}>Use this key</button></div>
    </form>
  <//>`;
}
