// The panel in which requests are set.
import { html } from "../shared/view.js";

/** Everything a request can say, with the server's defaults. */
export function SettingsPanel() {
  return html`<p class="quiet">The server's defaults hold.</p>`;
}
