// The chat page.
import { watchServer } from "../shared/server.js";
import { html, render } from "../shared/view.js";
import { App } from "./app.js";

watchServer();
render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
