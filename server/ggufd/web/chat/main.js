// The chat page.
import { watchServer } from "../shared/server.js";
import { html, render } from "../shared/view.js";
import { App, openFromAddress } from "./app.js";

watchServer();
openFromAddress();
render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
