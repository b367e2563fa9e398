/** The fields of the settings in groups, with the words for people. */
import { FIELDS } from "./fields.js";
import { ESCAPES } from "./request.js";

/**
 * `hint` says what it does, `unset` what holds without it where the server does not tell; a choice has `options`.
 * @typedef {import("./fields.js").Field & {label: string, hint?: string, unset?: string,
 *   options?: [string, string][]}} Labelled
 */

/**
 * @typedef {object} Group
 * @property {string} id
 * @property {string} title
 * @property {Labelled[]} fields
 */

/** @type {[string, string][]} */
const ON_OFF = [
  ["true", "on"],
  ["false", "off"],
];

/** @type {(id: string, label: string, hint: string, more?: Partial<Labelled>) => Labelled} */
const field = (id, label, hint, more) => {
  const known = /** @type {import("./fields.js").Field} */ (FIELDS.get(id));
  return { ...known, label, hint, ...(known.kind === "switch" ? { options: ON_OFF } : {}), ...more };
};

/** @type {Group[]} */
export const GROUPS = [
  {
    id: "sampling",
    title: "Sampling",
    fields: [
      field("temperature", "Temperature", "0 always takes the likeliest token; higher is more varied"),
      field("top_p", "Top-p", "keep the likeliest tokens that together have this share; 1 is off"),
      field("top_k", "Top-k", "keep this many of the likeliest tokens; 0 is off"),
      field("min_p", "Min-p", "drop tokens below this share of the likeliest one; 0 is off"),
      field("max_tokens", "Longest answer", "tokens", { unset: "no limit" }),
      field("seed", "Seed", "the same seed draws the same tokens again", { unset: "random" }),
    ],
  },
  {
    id: "truncation",
    title: "More samplers",
    fields: [
      field("typical_p", "Typical", "keep tokens of typical information; 1 is off"),
      field("top_n_sigma", "Top-n-sigma", "keep tokens within n standard deviations of the best; below 0 is off"),
      field("xtc_probability", "XTC probability", "how often the likeliest tokens are left out; 0 is off"),
      field("xtc_threshold", "XTC threshold", "tokens above this share may be left out"),
      field("dynatemp_range", "Dynamic temperature, range", "temperature varies by so much; 0 is off"),
      field("dynatemp_exponent", "Dynamic temperature, exponent", "how it follows the uncertainty"),
      field("mirostat", "Mirostat", "0 is off; 1 and 2 replace the other truncation"),
      field("mirostat_tau", "Mirostat tau", "the surprise aimed at"),
      field("mirostat_eta", "Mirostat eta", "how fast it learns"),
      field("adaptive_target", "Adaptive-p target", "the share aimed at; below 0 is off"),
      field("adaptive_decay", "Adaptive-p decay", "how long it remembers"),
      field("min_keep", "Keep at least", "tokens that every sampler leaves"),
      field("samplers", "Order of the samplers", "the first runs first"),
    ],
  },
  {
    id: "repetition",
    title: "Repetition",
    fields: [
      field("repeat_penalty", "Repeat penalty", "divides what was said before; 1 is off"),
      field("repeat_last_n", "Repeat range", "tokens looked back; 0 is off, -1 the whole context"),
      field("frequency_penalty", "Frequency penalty", "for each time that a token was said; 0 is off"),
      field("presence_penalty", "Presence penalty", "for any token that was said; 0 is off"),
      field("dry_multiplier", "DRY multiplier", "against repeated sequences; 0 is off"),
      field("dry_base", "DRY base", "how fast it grows with their length"),
      field("dry_allowed_length", "DRY allowed length", "repeated tokens that cost nothing"),
      field("dry_penalty_last_n", "DRY range", "tokens looked back; -1 is the whole context"),
      field("dry_sequence_breakers", "DRY breakers", "one a line; they end a sequence"),
    ],
  },
  {
    id: "limits",
    title: "Stops and tokens",
    fields: [
      field("stop", "Stop strings", "one a line; the answer ends before them"),
      field("min_tokens", "Shortest answer", "tokens before the answer may end", { unset: "0" }),
      field("ignore_eos", "Ignore the end token", "go on until the limit"),
      field("skip_special_tokens", "Hide special tokens", "off shows them as text", { unset: "on" }),
      field("include_stop_str_in_output", "Keep the stop string", "in the text", { unset: "off" }),
      field("logit_bias", "Token biases", 'by token id, as in {"198": -2}; false bans'),
      field("custom_token_bans", "Banned tokens", "token ids set between commas"),
      field("n_keep", "Keep of the prompt", "tokens that stay when a full context is shifted", { unset: "0" }),
    ],
  },
  {
    id: "bans",
    title: "Banned strings",
    fields: [
      field("banned_strings", "Banned strings", "one a line; taken back before you see any of it"),
      field("banned_regex", "Banned patterns", "regular expressions, one a line"),
      field("bans_case_sensitive", "Upper and lower case differ", "in what is banned", { unset: "off" }),
    ],
  },
  {
    id: "reasoning",
    title: "Reasoning",
    fields: [
      field("enable_thinking", "Thinking", "asks the chat template for it", { unset: "model's" }),
      field("reasoning_budget", "Budget", "tokens to think; 0 none, -1 no limit", { unset: "server's" }),
      field("reasoning_effort", "Effort", "as far as the chat template knows it", {
        unset: "model's",
        options: ["none", "minimal", "low", "medium", "high", "xhigh", "max"].map((name) => [name, name]),
      }),
      field("reasoning_format", "Where it is shown", "", {
        unset: "server's",
        options: [
          ["auto", "folded, above the answer"],
          ["none", "inside the answer, with its tags"],
        ],
      }),
      field("chat_template_kwargs", "Variables of the chat template", 'as in {"date": "today"}'),
    ],
  },
  {
    id: "queue",
    title: "Queue",
    fields: [
      field("priority", "Priority", "a lower number goes first", { unset: "0" }),
      field("timeout", "Time limit", "seconds, waiting included", { unset: "server's" }),
    ],
  },
];

/**
 * The server's default of a field, as one would type it; "" where it does not tell.
 * @param {Labelled} field
 * @param {Record<string, unknown>} samplers
 */
export function defaultText(field, samplers) {
  const value = samplers[field.id];
  if (field.id === "seed" || value === undefined || value === null) return field.unset ?? "";
  if (typeof value === "number") return String(Number(value.toPrecision(6)));
  if (typeof value === "boolean") return value ? "on" : "off";
  if (!Array.isArray(value)) return String(value);
  return field.kind === "lines" ? value.map(escaped).join("\n") : value.join(",");
}

/** @param {string} text */
const escaped = (text) =>
  text.replace(/[\\\n\t\r]/g, (found) => `\\${Object.keys(ESCAPES).find((letter) => ESCAPES[letter] === found)}`);
