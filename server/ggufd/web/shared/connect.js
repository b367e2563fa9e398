// The addresses by which other programs reach this server.
import { base } from "./api.js";
import { CopyButton } from "./copy.js";
import { Dialog } from "./components.js";
import { key } from "./key.js";
import { facts } from "./server.js";
import { html } from "./view.js";

/** Who connects, in which words, and what follows this server's address there. */
const CLIENTS = [
  ["SillyTavern, Text Completion", "API type llama.cpp, API URL", ""],
  ["SillyTavern, Chat Completion", "source Custom (OpenAI-compatible), endpoint", "/v1"],
  ["Programs for OpenAI's API", "base URL", "/v1"],
  ["Programs for Anthropic's API", "base URL", ""],
  ["Programs for KoboldCpp", "URL", "/api"],
  ["Programs for Ollama", "host", ""],
];

/** @param {{onClose: () => void}} props */
export function Connect({ onClose }) {
  const url = base.href.replace(/\/$/, "");
  const said = facts.value;
  return html`<${Dialog} title="Connect other programs" onClose=${onClose}>
    ${said && html`<p class="quiet">${said.model}, served by ggufd ${said.version}${about(said)}.</p>`}
    <table class="addresses"><tbody>
      ${CLIENTS.map(
        ([who, what, path]) => html`<tr><th scope="row">${who}</th><td>${what}
          <${Address} text=${url + path} /></td></tr>`,
      )}
    </tbody></table>
    <p class="quiet">${key.value ? "Use one of this server's keys as the API key." : "No API key is needed."}
      ${" "}For programs on other machines: start the server with <code>--host 0.0.0.0</code>, and give them this
      machine's address.</p>
    <p class="links">
      ${Object.entries(said?.links ?? { docs: "/docs" }).map(
        ([name, path]) => html`<a href=${path.slice(1)} target="_blank" rel="noopener">${name}</a>`,
      )}
    </p>
  <//>`;
}

/** @param {import("./types.js").ServerFacts} said */
function about(said) {
  return said.n_ctx ? `: ${said.slots} conversations at once, ${said.n_ctx} tokens of context for each` : "";
}

/** @param {{text: string}} props */
function Address({ text }) {
  return html`<span class="address"><code>${text}</code><${CopyButton} text=${text} name=${`Copy ${text}`} /></span>`;
}
