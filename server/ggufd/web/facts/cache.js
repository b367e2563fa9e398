/** The cache's report on a prompt (`explain_cache`) as sentences. Knows no page. */
import { duration } from "./figures.js";

/**
 * @typedef {object} Difference
 * @property {number} token
 * @property {number} character
 * @property {number | null} message
 * @property {string | null} role
 * @property {string} prompt
 * @property {string | null} cached
 */

/**
 * @typedef {object} CacheReport
 * @property {number} reused
 * @property {number} of
 * @property {string | null} from
 * @property {number} computed_s
 * @property {Difference | null} first_difference
 */

/** A message of the request. @typedef {{role: string, content?: unknown}} Sent */

/** Characters by which a message is found again. */
const BEGINNING = 12;

/** @type {Record<string, string>} */
const SOURCES = {
  same_slot: "still in their slot",
  copied: "copied from another slot",
  moved: "moved from another place of the text",
  restored: "restored from RAM or disk",
};

const MAX_QUOTED = 60;

/**
 * What came from the cache, and why the rest was computed.
 * @param {CacheReport} report
 * @param {readonly Sent[]} messages Those that were sent.
 * @returns {string}
 */
export function cacheSentence(report, messages) {
  const { reused, of, first_difference: difference } = report;
  const rest = of - reused;
  if (reused === 0 && !difference)
    return `Nothing of this prompt was in the cache: all ${tokens(of)} were computed${took(report)}.`;
  const found = reused === 0 ? `None of the prompt’s ${tokens(of)} came from the cache` : foundSentence(report);
  if (!difference && rest === 0) return `${found}.`;
  if (!difference && rest === 1)
    return `${found}; the last one is always computed, which took ${duration(report.computed_s)}.`;
  if (!difference) return `${found}; the other ${rest} were new and computed${took(report)}.`;
  return `${found}; ${reused === 0 ? "all" : `the other ${rest}`} were computed${took(report)}, because ${reason(difference, messages)}.`;
}

/** @param {CacheReport} report */
function foundSentence({ reused, of, from }) {
  const source = from && SOURCES[from] ? ` (${SOURCES[from]})` : "";
  return `${reused} of the prompt’s ${tokens(of)} came from the cache${source}`;
}

/**
 * @param {Difference} difference
 * @param {readonly Sent[]} messages
 */
function reason({ message, role, prompt, cached, character }, messages) {
  const isBefore = message !== null && character === 0 && !begins(messages[message], prompt);
  const where = `${isBefore ? "what the template writes before " : ""}${placeOf(message, role, messages)}`;
  if (cached === null) return `${where} differs from what the cache had, which is somebody else’s and not shown`;
  const [now, before] = differing(prompt, cached);
  if (!before) return `${where} goes on where the cache ended, with ${now}`;
  if (!now) return `${where} ends where the cache went on, with ${before}`;
  return `${where} has ${now} where the cache had ${before}`;
}

/**
 * Whether the beginning of a message is in this text; what the template writes before it, as tools, counts as its own.
 * @param {Sent | undefined} message
 * @param {string} prompt
 */
function begins(message, prompt) {
  return typeof message?.content !== "string" || prompt.includes(message.content.trim().slice(0, BEGINNING));
}

/**
 * A message as one would point at it.
 * @param {number | null} message
 * @param {string | null} role
 * @param {readonly {role: string}[]} messages
 */
export function placeOf(message, role, messages) {
  if (message === null) return "the text around the messages";
  const nth = messages.slice(0, message + 1).filter((other) => other.role === role).length;
  const count = messages.filter((other) => other.role === role).length;
  switch (role) {
    case "system":
    case "developer":
      return count > 1 ? `system prompt ${nth}` : "the system prompt";
    case "user":
      return count > 1 ? `your message ${nth}` : "your message";
    case "assistant":
      return count > 1 ? `answer ${nth}` : "the answer";
    default:
      return `message ${message + 1} (${role})`;
  }
}

/**
 * The two texts from where they differ, without the template's marks, quoted.
 * @param {string} prompt
 * @param {string} cached
 * @returns {[string, string]} "" where there is nothing.
 */
export function differing(prompt, cached) {
  const ours = Array.from(prompt);
  const theirs = Array.from(cached);
  let first = 0;
  while (first < ours.length && first < theirs.length && ours[first] === theirs[first]) first += 1;
  while (first > 0 && /[\p{L}\p{N}]/u.test(ours[first - 1])) first -= 1;
  return [quoted(ours.slice(first)), quoted(theirs.slice(first))];
}

/**
 * Up to the mark that ends the message, where the template has such marks.
 * @param {string[]} characters
 */
function quoted(characters) {
  const [message] = characters.join("").split(/<\|[^|<>]*\|>/);
  const text = message.replace(/\s+/g, " ").trim();
  const short = Array.from(text).slice(0, MAX_QUOTED).join("");
  return text && `“${short}${short.length < text.length ? "…" : ""}”`;
}

/** @param {CacheReport} report */
const took = ({ computed_s: seconds }) => (seconds > 0 ? ` in ${duration(seconds)}` : "");

/** @param {number} count */
const tokens = (count) => `${count.toLocaleString("en")} ${count === 1 ? "token" : "tokens"}`;
