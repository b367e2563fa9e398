/**
 * Tokens of an answer with their probabilities: shade, shown text, and what one may go on from.
 *
 * A token may be a part of a character. Its bytes tell; the text that the server gives it is then empty. Knows no page.
 */

/**
 * An alternative to a token, as OpenAI writes it.
 * @typedef {object} Alternative
 * @property {string} token
 * @property {number} logprob
 * @property {number[] | null} [bytes]
 */

/** @typedef {Alternative & {top_logprobs?: Alternative[]}} TokenEntry */

/** Probabilities at which the shade changes, from likely to unlikely. */
const SHADES = [0.9, 0.7, 0.5, 0.3, 0.15, 0.05];

/** @param {Alternative} entry */
export const probability = (entry) => Math.min(1, Math.exp(entry.logprob));

/**
 * A shade from 0 (likely) to 6 (hardly).
 * @param {Alternative} entry
 */
export function shade(entry) {
  const share = probability(entry);
  const found = SHADES.findIndex((limit) => share >= limit);
  return found < 0 ? SHADES.length : found;
}

/** @param {Alternative} entry */
export function percent(entry) {
  const share = probability(entry) * 100;
  return share < 0.1 ? "< 0.1 %" : `${share < 10 ? share.toFixed(1) : Math.round(share)} %`;
}

/**
 * Bytes of a token.
 * @param {Alternative} entry
 * @returns {Uint8Array}
 */
const bytesOf = (entry) => (entry.bytes ? Uint8Array.from(entry.bytes) : new TextEncoder().encode(entry.token));

/**
 * Text of a token on its own; bytes that are no character are written as numbers.
 * @param {Alternative} entry
 */
export function label(entry) {
  const text = strict(bytesOf(entry));
  if (text !== null) return text.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥");
  return Array.from(bytesOf(entry), (byte) => `‹${byte.toString(16).toUpperCase().padStart(2, "0")}›`).join("");
}

/**
 * Text of a token where it stands: the one that completes a character shows it, and those before it are a dot.
 * @param {Alternative} entry
 */
export function shownText(entry) {
  if (!isPart(entry)) return label(entry);
  return entry.token === "" ? "·" : label({ token: entry.token, logprob: 0 });
}

/** @param {Alternative} entry */
export const isPart = (entry) => strict(bytesOf(entry)) === null;

/**
 * The same token as another, so that the chosen one is told among its alternatives.
 * @param {Alternative} one
 * @param {Alternative} other
 */
export function sameToken(one, other) {
  const [ours, theirs] = [bytesOf(one), bytesOf(other)];
  return ours.length === theirs.length && ours.every((byte, place) => byte === theirs[place]);
}

/**
 * Whether it is a mark of the chat template, as the end of an answer is, and no text to go on from.
 * @param {Alternative} entry
 */
export const isMark = (entry) => /^<[|｜][^<>]*[|｜]>$|^<\/?s>$|^<end_of_turn>$/.test(entry.token);

/**
 * The text of these tokens.
 * @param {readonly Alternative[]} entries
 */
export const textOf = (entries) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(joined(entries));

/**
 * Where the tokens lie in the content of an answer: those from `first` up to `end` make it, behind `before`, which was
 * there already (an answer that was continued), and before `after`, whose tokens are not known. Others are reasoning,
 * calls or what ended the answer.
 * @typedef {object} Alignment
 * @property {string} before
 * @property {number} first
 * @property {number} end
 * @property {string} after
 */

/**
 * @param {string} content
 * @param {readonly TokenEntry[]} entries
 * @returns {Alignment | null} null where they are not the content's tokens.
 */
export function align(content, entries) {
  const text = textOf(entries);
  const all = { before: "", first: 0, end: entries.length, after: "" };
  if (content.endsWith(text)) return { ...all, before: content.slice(0, content.length - text.length) };
  if (content.startsWith(text)) return { ...all, after: content.slice(text.length) };
  const start = content === "" ? -1 : text.lastIndexOf(content);
  if (start < 0) return null;
  const offsets = offsetsOf(entries);
  const first = offsets.indexOf(start);
  const last = offsets.findIndex((offset) => offset >= start + content.length);
  return first < 0 ? null : { ...all, first, end: last < 0 ? entries.length : last };
}

/**
 * Where each token begins in their text; within a character that is where the character begins.
 * @param {readonly Alternative[]} entries
 */
function offsetsOf(entries) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  let length = 0;
  return entries.map((entry) => {
    const offset = length;
    length += decoder.decode(bytesOf(entry), { stream: true }).length;
    return offset;
  });
}

/**
 * The beginning of the content that ends with this alternative instead of the token at `place`.
 * @param {Alignment} alignment
 * @param {readonly TokenEntry[]} entries
 * @param {number} place
 * @param {Alternative} alternative
 * @returns {string | null} null where it would end within a character, outside of the content or in a mark.
 */
export function prefixWith({ before, first, end }, entries, place, alternative) {
  if (place < first || place > end || isMark(alternative)) return null;
  const text = strict(joined([...entries.slice(first, place), alternative]));
  return text === null ? null : before + text;
}

/**
 * The tokens of that text, so that their probabilities stay known.
 * @param {Alignment} alignment
 * @param {readonly TokenEntry[]} entries
 * @param {number} place
 * @param {Alternative} alternative
 * @returns {TokenEntry[]}
 */
export function tokensWith({ first }, entries, place, alternative) {
  const { token, logprob, bytes } = alternative;
  return [...entries.slice(first, place), { token, logprob, bytes, top_logprobs: entries[place].top_logprobs }];
}

/** @param {readonly Alternative[]} entries */
function joined(entries) {
  return Uint8Array.from(entries.flatMap((entry) => [...bytesOf(entry)]));
}

/** @param {Uint8Array} bytes */
function strict(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
}
