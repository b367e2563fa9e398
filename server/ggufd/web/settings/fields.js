/**
 * Fields of the settings panel as data: what a request may say besides its messages, by its name on the wire.
 *
 * Knows no page. `tests/web/test_settings_fields.py` compares the names with those that the server takes.
 */

/**
 * How a field is written by hand.
 * - `number`, `integer`: a number
 * - `choice`: one of `options`
 * - `lines`: texts, one a line, with `\n`, `\t` and `\\` inside
 * - `json`: a JSON value of the type that `json` says
 * - `text`: as it stands
 * - `order`: names set between commas
 * @typedef {"number" | "integer" | "choice" | "lines" | "json" | "text" | "order"} Kind
 */

/**
 * @typedef {object} Field
 * @property {string} id Its name in the settings and, if `wire` is not set, in the request.
 * @property {string} label
 * @property {Kind} kind
 * @property {string} [hint] What it does, in a few words.
 * @property {string} [wire] Its name in the request.
 * @property {string} [unset] What holds without it, where the server does not tell.
 * @property {[string, string][]} [options] Values of a `choice`, with their labels.
 * @property {"boolean" | "integer"} [as] What the value of a `choice` becomes; a string otherwise.
 * @property {"array" | "object"} [json]
 */

/**
 * @typedef {object} Group
 * @property {string} id
 * @property {string} title
 * @property {Field[]} fields
 */

/** @type {(id: string, label: string, hint: string, more?: Partial<Field>) => Field} */
const number = (id, label, hint, more) => ({ id, label, hint, kind: "number", ...more });

/** @type {(id: string, label: string, hint: string, more?: Partial<Field>) => Field} */
const integer = (id, label, hint, more) => ({ id, label, hint, kind: "integer", ...more });

/** @type {(id: string, label: string, hint: string, more?: Partial<Field>) => Field} */
const onOff = (id, label, hint, more) => ({
  id,
  label,
  hint,
  kind: "choice",
  as: "boolean",
  options: [
    ["true", "on"],
    ["false", "off"],
  ],
  ...more,
});

/** @type {(id: string, label: string, hint: string, more?: Partial<Field>) => Field} */
const lines = (id, label, hint, more) => ({ id, label, hint, kind: "lines", ...more });

/** @type {Group[]} */
export const GROUPS = [
  {
    id: "sampling",
    title: "Sampling",
    fields: [
      number("temperature", "Temperature", "0 always takes the likeliest token; higher is more varied"),
      number("top_p", "Top-p", "keep the likeliest tokens that together have this share; 1 is off"),
      integer("top_k", "Top-k", "keep this many of the likeliest tokens; 0 is off"),
      number("min_p", "Min-p", "drop tokens below this share of the likeliest one; 0 is off"),
      integer("max_tokens", "Longest answer", "tokens", { unset: "no limit" }),
      integer("seed", "Seed", "the same seed draws the same tokens again", { unset: "random" }),
    ],
  },
  {
    id: "truncation",
    title: "More samplers",
    fields: [
      number("typical_p", "Typical", "keep tokens of typical information; 1 is off"),
      number("top_n_sigma", "Top-n-sigma", "keep tokens within n standard deviations of the best; below 0 is off"),
      number("xtc_probability", "XTC probability", "how often the likeliest tokens are left out; 0 is off"),
      number("xtc_threshold", "XTC threshold", "tokens above this share may be left out"),
      number("dynatemp_range", "Dynamic temperature, range", "temperature varies by so much; 0 is off"),
      number("dynatemp_exponent", "Dynamic temperature, exponent", "how it follows the uncertainty"),
      integer("mirostat", "Mirostat", "0 is off; 1 and 2 replace the other truncation"),
      number("mirostat_tau", "Mirostat tau", "the surprise aimed at"),
      number("mirostat_eta", "Mirostat eta", "how fast it learns"),
      number("adaptive_target", "Adaptive-p target", "the share aimed at; below 0 is off"),
      number("adaptive_decay", "Adaptive-p decay", "how long it remembers"),
      integer("min_keep", "Keep at least", "tokens that every sampler leaves"),
      { id: "samplers", label: "Order of the samplers", kind: "order", hint: "the first runs first" },
    ],
  },
  {
    id: "repetition",
    title: "Repetition",
    fields: [
      number("repeat_penalty", "Repeat penalty", "divides what was said before; 1 is off"),
      integer("repeat_last_n", "Repeat range", "tokens looked back; 0 is off, -1 the whole context"),
      number("frequency_penalty", "Frequency penalty", "for each time that a token was said; 0 is off"),
      number("presence_penalty", "Presence penalty", "for any token that was said; 0 is off"),
      number("dry_multiplier", "DRY multiplier", "against repeated sequences; 0 is off"),
      number("dry_base", "DRY base", "how fast it grows with their length"),
      integer("dry_allowed_length", "DRY allowed length", "repeated tokens that cost nothing"),
      integer("dry_penalty_last_n", "DRY range", "tokens looked back; -1 is the whole context"),
      lines("dry_sequence_breakers", "DRY breakers", "one a line; they end a sequence"),
    ],
  },
  {
    id: "limits",
    title: "Stops and tokens",
    fields: [
      lines("stop", "Stop strings", "one a line; the answer ends before them"),
      integer("min_tokens", "Shortest answer", "tokens before the answer may end", { unset: "0" }),
      onOff("ignore_eos", "Ignore the end token", "go on until the limit"),
      onOff("skip_special_tokens", "Hide special tokens", "off shows them as text", { unset: "on" }),
      onOff("include_stop_str_in_output", "Keep the stop string", "in the text", { unset: "off" }),
      {
        id: "logit_bias",
        label: "Token biases",
        kind: "json",
        json: "object",
        hint: 'by token id, as in {"198": -2}; false bans',
      },
      { id: "custom_token_bans", label: "Banned tokens", kind: "text", hint: "token ids set between commas" },
      integer("n_keep", "Keep of the prompt", "tokens that stay when a full context is shifted", { unset: "0" }),
    ],
  },
  {
    id: "bans",
    title: "Banned strings",
    fields: [
      lines("banned_strings", "Banned strings", "one a line; taken back before you see any of it"),
      lines("banned_regex", "Banned patterns", "regular expressions, one a line"),
      onOff("bans_case_sensitive", "Upper and lower case differ", "in what is banned", { unset: "off" }),
    ],
  },
  {
    id: "reasoning",
    title: "Reasoning",
    fields: [
      onOff("enable_thinking", "Thinking", "asks the chat template for it", { unset: "model's" }),
      integer("reasoning_budget", "Budget", "tokens to think; 0 none, -1 no limit", { unset: "server's" }),
      {
        id: "reasoning_effort",
        label: "Effort",
        kind: "choice",
        unset: "model's",
        options: ["none", "minimal", "low", "medium", "high", "xhigh", "max"].map((name) => [name, name]),
      },
      {
        id: "reasoning_format",
        label: "Where it is shown",
        kind: "choice",
        unset: "server's",
        options: [
          ["auto", "folded, above the answer"],
          ["none", "inside the answer, with its tags"],
        ],
      },
      {
        id: "chat_template_kwargs",
        label: "Variables of the chat template",
        kind: "json",
        json: "object",
        hint: 'as in {"date": "today"}',
      },
    ],
  },
  {
    id: "queue",
    title: "Queue",
    fields: [
      integer("priority", "Priority", "a lower number goes first", { unset: "0" }),
      number("timeout", "Time limit", "seconds, waiting included", { unset: "server's" }),
    ],
  },
];

/** The constraints, of which one can hold, and the settings that have their texts. @type {[string, string][]} */
export const CONSTRAINTS = [
  ["schema", "JSON schema"],
  ["grammar", "Grammar (GBNF)"],
  ["regex", "Regular expression"],
  ["options", "One of these texts"],
];

/** Every field of the groups, by its id. @type {Map<string, Field>} */
export const FIELDS = new Map(GROUPS.flatMap((group) => group.fields).map((field) => [field.id, field]));

/** Names that the page sends itself. */
export const OWN = ["messages", "stream", "stream_options", "n"];

/** Names in the request that these fields and editors can send, but for what is typed as JSON. */
export const WIRE_NAMES = [
  ...[...FIELDS.keys()].filter((id) => id !== "enable_thinking"),
  "response_format",
  "grammar",
  "guided_regex",
  "guided_choice",
  "tools",
  "tool_choice",
  "parallel_tool_calls",
  "lora",
];
