// What the cache did for an answer and what else it took, and its request for a shell and for Python.
import { base } from "../shared/api.js";
import { Dialog } from "../shared/components.js";
import { CopyButton } from "../shared/copy.js";
import { key } from "../shared/key.js";
import { html, useSignal } from "../shared/view.js";
import { cacheSentence } from "./cache.js";
import { moreFigures } from "./figures.js";
import { KEY_VARIABLE, asCurl, asPython, shortened } from "./snippets.js";

/** @typedef {import("../shared/types.js").Message} Message */

/** @type {Record<"curl" | "Python", typeof asCurl>} */
const WRITERS = { curl: asCurl, Python: asPython };

/** @param {{message: Message}} props */
export function Details({ message }) {
  const shown = useSignal(/** @type {"curl" | "Python" | ""} */ (""));
  const request = message.request ?? {};
  const report = /** @type {import("./cache.js").CacheReport | undefined} */ (message.cache);
  const sent = /** @type {import("./cache.js").Sent[]} */ (request.messages ?? []);
  return html`${report && html`<p>${cacheSentence(report, sent)}</p>`}
    <dl>
      ${moreFigures(message).map(([name, text]) => html`<div><dt>${name}</dt><dd>${text}</dd></div>`)}
    </dl>
    <p class="facts-actions">
      <span>The same request</span>
      <button type="button" class="button small" onClick=${() => (shown.value = "curl")}>as curl</button>
      <button type="button" class="button small" onClick=${() => (shown.value = "Python")}>as Python</button>
    </p>
    ${
      shown.value && html`<${Program} language=${shown.value} request=${request} onClose=${() => (shown.value = "")} />`
    }`;
}

/** @param {{language: "curl" | "Python", request: Record<string, unknown>, onClose: () => void}} props */
function Program({ language, request, onClose }) {
  const hasKey = key.value !== "";
  const text = WRITERS[language](base.href.replace(/\/$/, ""), request, hasKey);
  return html`<${Dialog} title=${`This request as ${language}`} onClose=${onClose}>
    <p class="quiet">
      ${language === "Python" && html`Needs the package <code>openai</code>. `}The answer comes in one piece instead of a
      stream; all else is as it was sent.${" "}
      ${shortened(text) !== text && html`Images are cut short here, not in what is copied.${" "}`}
      ${hasKey && html`It takes the key from the variable <code>${KEY_VARIABLE}</code> of the environment.`}
    </p>
    <div class="program">
      <${CopyButton} text=${text} name=${`Copy as ${language}`} />
      <pre tabindex="0" role="region" aria-label=${language}><code>${shortened(text)}</code></pre>
    </div>
  <//>`;
}
