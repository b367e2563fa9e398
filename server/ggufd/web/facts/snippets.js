/**
 * A request as a shell command and as a Python program that ask for the same answer.
 *
 * A key never stands in them, only the variable that it is in.
 */

/** @typedef {Readonly<Record<string, unknown>>} Body */

/** How an answer is delivered, which changes nothing about it. */
const DELIVERY = ["stream", "stream_options", "return_progress", "report_queue", "explain_cache", "resumable"];

/** What the client of OpenAI takes as arguments; the rest goes into its `extra_body`. */
const ARGUMENTS = new Set([
  "model",
  "messages",
  "frequency_penalty",
  "logit_bias",
  "logprobs",
  "max_completion_tokens",
  "max_tokens",
  "parallel_tool_calls",
  "presence_penalty",
  "reasoning_effort",
  "response_format",
  "seed",
  "stop",
  "temperature",
  "tool_choice",
  "tools",
  "top_logprobs",
  "top_p",
]);

/** The environment variable that a key is read from. */
export const KEY_VARIABLE = "GGUFD_API_KEY";

/**
 * What determines the answer.
 * @param {Body} body
 * @returns {Record<string, unknown>}
 */
export function essential(body) {
  return Object.fromEntries(Object.entries(body).filter(([name]) => !DELIVERY.includes(name)));
}

/**
 * A command for any POSIX shell. The body is a document, so nothing in it means anything to the shell, and it may be
 * longer than an argument.
 * @param {string} base The server's address, without a slash at its end.
 * @param {Body} body
 * @param {boolean} hasKey
 */
export function asCurl(base, body, hasKey) {
  return [
    `curl ${shellQuoted(`${base}/v1/chat/completions`)} \\`,
    ...(hasKey ? [`  -H "Authorization: Bearer $${KEY_VARIABLE}" \\`] : []),
    "  -H 'Content-Type: application/json' --data-binary @- <<'END'",
    JSON.stringify(essential(body), null, 2),
    "END",
    "",
  ].join("\n");
}

/**
 * A program for Python with the package `openai`.
 * @param {string} base
 * @param {Body} body
 * @param {boolean} hasKey
 */
export function asPython(base, body, hasKey) {
  const { model = "any", messages = [], ...rest } = essential(body);
  const known = Object.entries(rest).filter(([name]) => ARGUMENTS.has(name));
  const extra = Object.entries(rest).filter(([name]) => !ARGUMENTS.has(name));
  /** @type {[string, unknown][]} */
  const given = [["model", model], ["messages", messages], ...known];
  if (extra.length) given.push(["extra_body", Object.fromEntries(extra)]);
  return [
    ...(hasKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(`${base}/v1`)}, api_key=${hasKey ? `os.environ["${KEY_VARIABLE}"]` : '"none"'})`,
    "answer = client.chat.completions.create(",
    ...given.map(([name, value]) => `    ${name}=${literal(value, "    ")},`),
    ")",
    `print(answer.choices[0].message${rest.tools ? "" : ".content"})`,
    "",
  ].join("\n");
}

const SHOWN_OF_IMAGE = 60;

/** A program as it is shown: of images their beginning, since there may be megabytes. @param {string} text */
export function shortened(text) {
  return text.replace(/(data:image\/[^"]*?,)([^"]*)/g, (whole, beginning, rest) =>
    rest.length > SHOWN_OF_IMAGE ? `${beginning}${rest.slice(0, SHOWN_OF_IMAGE)}…` : whole,
  );
}

/** @param {string} text */
const shellQuoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/**
 * A JSON value as Python writes it. JSON's escapes of strings are Python's too.
 * @param {unknown} value
 * @param {string} [indent] Of the line that it stands in.
 * @returns {string}
 */
export function literal(value, indent = "") {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const items = Array.isArray(value)
    ? value.map((item) => literal(item, inner))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const line = `${open}${items.join(", ")}${close}`;
  if (line.length <= 80 && !line.includes("\n")) return line;
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${close}`;
}
