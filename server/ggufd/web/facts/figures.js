/** Figures of one answer, as people read them. Knows no page. */

/**
 * What is known of an answer when it has ended: `timings` and `usage` as the server sent them, `firstTokenMs` as it
 * was measured here, the waiting and the way included.
 * @typedef {object} AnswerReport
 * @property {Record<string, any>} [usage]
 * @property {Record<string, any>} [timings]
 * @property {number} [firstTokenMs]
 * @property {string} [finishReason]
 * @property {{ignored?: string, repairs?: string}} [notes] Fields of the request that did nothing, and what the chat
 *   template needed.
 */

/**
 * The short line: tokens, rate, first token, share from the cache.
 * @param {AnswerReport} report
 * @returns {string[]}
 */
export function shortFigures({ usage, timings, firstTokenMs }) {
  const made = usage?.completion_tokens ?? timings?.predicted_n;
  const first = firstTokenMs ?? (timings && timings.prompt_ms + (timings.queue_ms ?? 0));
  const cached = usage?.prompt_tokens_details?.cached_tokens ?? timings?.cache_n;
  const prompt = usage?.prompt_tokens ?? (timings && timings.cache_n + timings.prompt_n);
  return [
    made === undefined ? "" : `${count(made)} ${made === 1 ? "token" : "tokens"}`,
    timings?.predicted_per_second ? `${rate(timings.predicted_per_second)} tokens/s` : "",
    first === undefined ? "" : `first token after ${duration(first / 1000)}`,
    cached === undefined || prompt === undefined ? "" : `${count(cached)} of ${count(prompt)} prompt tokens cached`,
  ].filter(Boolean);
}

/**
 * What is worth a word besides, each with a name.
 * @param {AnswerReport} report
 * @returns {[string, string][]}
 */
export function moreFigures({ usage, timings, finishReason, notes }) {
  const thought = usage?.completion_tokens_details?.reasoning_tokens;
  /** @type {[string, string | false | undefined][]} */
  const figures = [
    ["Ended", ENDS[finishReason ?? ""]],
    ["Waited", timings && timings.queue_ms >= 1 && duration(timings.queue_ms / 1000)],
    [
      "Prompt",
      timings &&
        timings.prompt_n > 1 &&
        `${count(timings.prompt_n)} tokens at ${rate(timings.prompt_per_second)} tokens/s`,
    ],
    ["Reasoning", thought > 0 && `${count(thought)} tokens`],
    [
      "Drafted",
      timings?.draft_n > 0 &&
        `${count(timings?.draft_n)} tokens, ${count(timings?.draft_n_accepted ?? 0)} of them accepted`,
    ],
    ["Taken back", timings?.banned_rewinds > 0 && `${count(timings?.banned_rewinds)} times, for banned strings`],
    [
      "Left behind",
      timings?.dropped_tokens > 0 && `${count(timings?.dropped_tokens)} tokens, since the context was full`,
    ],
    ["Not done here", notes?.ignored],
    ["Conversation changed for the template", notes?.repairs],
  ];
  return /** @type {[string, string][]} */ (figures.filter(([, text]) => text));
}

/** @type {Record<string, string>} */
const ENDS = {
  stop: "by itself, or at a stop string",
  length: "at the limit: the longest answer, or the context",
  tool_calls: "with a call of a tool",
  abort: "stopped by you",
};

/** @param {number} value */
const count = (value) => value.toLocaleString("en");

/** @param {number} value */
const rate = (value) => (value < 100 ? value.toFixed(1) : String(Math.round(value)));

/**
 * @param {number} seconds
 * @returns {string}
 */
export function duration(seconds) {
  if (seconds < 0.01) return `${Math.round(seconds * 1e4) / 10} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}
