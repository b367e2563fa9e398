// Requests whose answers are held to a format.

const CONSTRAINTS = ["response_format", "grammar", "guided_regex", "guided_choice", "json_schema"];

/**
 * Whether the answer is held to a format, which the server begins anew with each request: such an answer cannot go on
 * from its middle.
 * @param {import("./types.js").Message} message
 */
export function isHeldToFormat(message) {
  return CONSTRAINTS.some((name) => message.request?.[name]);
}
