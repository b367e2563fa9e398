/**
 * Fields of the settings as data: what a request may say besides its messages, by its name on the wire, and how it is
 * written by hand.
 *
 * Knows no page, and no words for people: those are in groups.js. `tests/web/test_settings_fields.py` compares the names
 * with those that the server takes.
 */

/**
 * How a field is written by hand.
 * - `number`, `integer`: a number
 * - `switch`: "true" or "false"
 * - `choice`: one of some texts
 * - `lines`: texts, one a line, with `\n`, `\t` and `\\` inside
 * - `json`: a JSON object
 * - `text`: as it stands
 * - `order`: names set between commas
 * @typedef {"number" | "integer" | "switch" | "choice" | "lines" | "json" | "text" | "order"} Kind
 */

/** @typedef {{id: string, kind: Kind}} Field */

/** @type {[Kind, string][]} */
const NAMES = [
  [
    "number",
    "temperature top_p min_p typical_p top_n_sigma xtc_probability xtc_threshold dynatemp_range " +
      "dynatemp_exponent mirostat_tau mirostat_eta adaptive_target adaptive_decay repeat_penalty " +
      "frequency_penalty presence_penalty dry_multiplier dry_base timeout",
  ],
  [
    "integer",
    "top_k max_tokens seed mirostat min_keep repeat_last_n dry_allowed_length dry_penalty_last_n " +
      "min_tokens n_keep reasoning_budget priority",
  ],
  ["switch", "ignore_eos skip_special_tokens include_stop_str_in_output bans_case_sensitive enable_thinking"],
  ["choice", "reasoning_effort reasoning_format"],
  ["lines", "dry_sequence_breakers stop banned_strings banned_regex"],
  ["json", "logit_bias chat_template_kwargs"],
  ["text", "custom_token_bans"],
  ["order", "samplers"],
];

/** Every field, by its id. @type {Map<string, Field>} */
export const FIELDS = new Map(NAMES.flatMap(([kind, names]) => names.split(" ").map((id) => [id, { id, kind }])));

/** The constraints, of which one can hold, and the settings that have their texts. @type {[string, string][]} */
export const CONSTRAINTS = [
  ["schema", "JSON schema"],
  ["grammar", "Grammar (GBNF)"],
  ["regex", "Regular expression"],
  ["options", "One of these texts"],
];

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
