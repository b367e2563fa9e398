// The live view: what the server is doing now.
import { KeyDialog, ServerBanner } from "../shared/frame.js";
import { Header } from "../shared/header.js";
import { watchServer } from "../shared/server.js";
import { html, render } from "../shared/view.js";

function Live() {
  return html`<div class="live-page">
    <${Header} page="live" />
    <${ServerBanner} />
    <main class="live"></main>
    <${KeyDialog} />
  </div>`;
}

watchServer();
render(html`<${Live} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
