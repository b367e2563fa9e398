// The cache doctor's advice to the owner of the chats; nothing where the server has none.
import { ApiError, getJson } from "../shared/api.js";
import { html, useEffect, useSignal } from "../shared/view.js";
import { counted, duration } from "./format.js";
import { Section } from "./table.js";

const EVERY_MS = 30_000;

/**
 * One finding of `GET /v1/cache/advice`; `quote` only of one's own chats.
 * @typedef {{class: string, position: number, turns: number, tokens_per_turn: number, seconds_per_turn: number,
 *   advice: string, key: string | null, own: boolean, quote: {before: string, now: string} | null}} Finding
 */

/** Advice on one's own chats, where there is any. */
export function Advice() {
  const findings = useSignal(/** @type {Finding[] | null} */ (null));
  const failure = useSignal("");
  useEffect(() => {
    let timer = 0;
    const ask = async () => {
      try {
        findings.value = (await getJson("v1/cache/advice")).data.filter((/** @type {Finding} */ one) => one.own);
        failure.value = "";
      } catch (error) {
        if (error instanceof ApiError && error.status === 404) return;
        failure.value = error instanceof ApiError && error.status ? error.message : "";
      }
      timer = setTimeout(ask, EVERY_MS);
    };
    ask();
    return () => clearTimeout(timer);
  }, []);
  if (!failure.value && !findings.value?.length) return null;
  return html`<${Section} title="Advice" note="on your chats" failure=${failure.value} kind="whole">
    <ul class="advice">${(findings.value ?? []).map((one) => html`<${Finding} finding=${one} />`)}</ul>
  <//>`;
}

/** @param {{finding: Finding}} props */
function Finding({ finding }) {
  const { quote } = finding;
  return html`<li><p>${finding.advice}</p>
    <p class="quiet small">At token ${finding.position}; in ${counted(finding.turns, "turn")} it cost
      ${" "}${counted(finding.tokens_per_turn, "token")} and ${duration(finding.seconds_per_turn)} each.</p>
    ${quote && html`<p class="small">Was <code>${quote.before}</code>, became <code>${quote.now}</code>.</p>`}</li>`;
}
