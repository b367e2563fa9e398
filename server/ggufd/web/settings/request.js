/**
 * From the settings, as they are typed, to the fields of a request.
 *
 * Settings are texts by name, "" is unset. What is unset, or typed as the server has it anyway, is not sent. What cannot
 * be read is sent as it stands: the server then refuses the request, and says why.
 */
import { CONSTRAINTS, FIELDS, OWN } from "./fields.js";

/** @typedef {import("./fields.js").Field} Field */
/** @typedef {Readonly<Record<string, string>>} Settings */

/**
 * What the server says of itself: samplers by default, from `/props`, and LoRA adapters, from `/lora-adapters`.
 * @typedef {object} Defaults
 * @property {Record<string, unknown>} samplers
 * @property {{id: number, name: string, scale: number}[]} adapters
 */

/**
 * `errors` has what cannot be read, by setting, in a sentence.
 * @typedef {object} Prepared
 * @property {Record<string, unknown>} fields
 * @property {Record<string, string>} errors
 */

/** @type {Defaults} */
export const NO_DEFAULTS = { samplers: {}, adapters: [] };

/** Of each token, where their number is not set. */
export const ALTERNATIVES = 5;

/** A text that cannot be read, with the reason. */
class Unusable extends Error {}

/**
 * The fields of a request with these settings.
 * @param {Settings} settings
 * @param {Defaults} [defaults]
 * @returns {Prepared}
 */
export function requestFields(settings, defaults = NO_DEFAULTS) {
  /** @type {Prepared} */
  const made = { fields: {}, errors: {} };
  for (const field of FIELDS.values()) {
    addField(made, field, settings[field.id] ?? "", defaults);
  }
  addConstraint(made, settings);
  addTools(made, settings);
  addAdapters(made, settings, defaults);
  addProbabilities(made, settings);
  Object.assign(
    made.fields,
    read(made, "extra", () => extraOf(settings.extra ?? ""), {}),
  );
  return made;
}

/**
 * What a field's text becomes.
 * @param {Field} field
 * @param {string} text Not empty.
 * @returns {unknown}
 */
export function valueOf(field, text) {
  switch (field.kind) {
    case "number":
    case "integer":
      return numberOf(text, field.kind === "integer");
    case "switch":
      return text === "true";
    case "lines":
      return linesOf(text);
    case "json":
      return jsonOf(text, "object");
    case "order":
      return text.split(",");
    default:
      return text;
  }
}

/**
 * Texts, one a line.
 * @param {string} text
 * @returns {string[]}
 */
export function linesOf(text) {
  return text.split("\n").filter(Boolean).map(unescaped);
}

/**
 * The functions that a text with tools names; none while it is no JSON.
 * @param {string} text
 * @returns {string[]}
 */
export function toolNames(text) {
  try {
    const tools = toolsOf(text);
    return tools.flatMap((tool) => (typeof tool?.function?.name === "string" ? [tool.function.name] : []));
  } catch {
    return [];
  }
}

/**
 * The setting that an error of the server is about.
 * @param {string | null | undefined} param What the error names.
 * @param {Settings} settings
 * @returns {string} "" where it is none of them.
 */
export function settingOf(param, settings) {
  const name = (param ?? "").split(/[.[]/)[0];
  const constraint = {
    response_format: "schema",
    json_schema: "schema",
    guided_regex: "regex",
    guided_choice: "options",
  };
  const found = Object.entries({
    ...constraint,
    tool_choice: "tool_choice",
    parallel_tool_calls: "parallel_tool_calls",
  }).find(([wire]) => wire === name)?.[1];
  if (found !== undefined) return found;
  if (["grammar", "tools", "lora", "top_logprobs"].includes(name) || FIELDS.has(name)) return name;
  return name && extraNames(settings).includes(name) ? "extra" : "";
}

/**
 * What is read, or `otherwise` and an error of this setting.
 * @param {Prepared} made
 * @param {string} id
 * @param {() => unknown} value
 * @param {unknown} otherwise
 * @returns {any}
 */
function read(made, id, value, otherwise) {
  try {
    return value();
  } catch (error) {
    if (!(error instanceof Unusable)) throw error;
    made.errors[id] = error.message;
    return otherwise;
  }
}

/**
 * @param {Prepared} made
 * @param {Field} field
 * @param {string} text
 * @param {Defaults} defaults
 */
function addField(made, field, text, defaults) {
  if (text.trim() === "") return;
  const { fields } = made;
  const value = read(made, field.id, () => valueOf(field, text), text);
  if (same(value, defaults.samplers[field.id])) return;
  if (field.id === "enable_thinking") fields.chat_template_kwargs = { enable_thinking: value };
  else if (field.id in fields && typeof value === "object")
    Object.assign(/** @type {object} */ (fields[field.id]), value);
  else fields[field.id] = value;
}

/**
 * @param {Prepared} made
 * @param {Settings} settings
 */
function addConstraint(made, settings) {
  const kind = settings.constraint ?? "";
  const text = settings[kind] ?? "";
  if (!CONSTRAINTS.some(([name]) => name === kind) || text.trim() === "") return;
  Object.assign(made.fields, constraintOf(made, kind, text));
}

/**
 * @param {Prepared} made
 * @param {string} kind
 * @param {string} text
 * @returns {Record<string, unknown>}
 */
function constraintOf(made, kind, text) {
  const schema = () => read(made, kind, () => jsonOf(text, "object"), text);
  switch (kind) {
    case "schema":
      return { response_format: { type: "json_schema", json_schema: { name: "answer", schema: schema() } } };
    case "grammar":
      return { grammar: text };
    case "regex":
      return { guided_regex: text };
    default:
      return { guided_choice: linesOf(text) };
  }
}

/**
 * @param {Prepared} made
 * @param {Settings} settings
 */
function addTools(made, settings) {
  if ((settings.tools ?? "").trim() === "") return;
  made.fields.tools = read(made, "tools", () => toolsOf(settings.tools), settings.tools);
  const choice = settings.tool_choice ?? "";
  const [, name] = choice.split("name:");
  if (name) made.fields.tool_choice = { type: "function", function: { name } };
  else if (choice) made.fields.tool_choice = choice;
  if (settings.parallel_tool_calls) made.fields.parallel_tool_calls = settings.parallel_tool_calls === "true";
}

/**
 * Every adapter is named where one has another scale than by default, since what is not named gets none.
 * @param {Prepared} made
 * @param {Settings} settings
 * @param {Defaults} defaults
 */
function addAdapters(made, settings, { adapters }) {
  const lora = adapters.map(({ id, scale }) => {
    const text = settings[`lora:${id}`] ?? "";
    return { id, scale: text ? read(made, `lora:${id}`, () => numberOf(text), text) : scale };
  });
  if (lora.some(({ scale }, place) => scale !== adapters[place].scale)) made.fields.lora = lora;
}

/**
 * @param {Prepared} made
 * @param {Settings} settings
 */
function addProbabilities(made, settings) {
  if (settings.logprobs !== "true") return;
  const text = settings.top_logprobs || String(ALTERNATIVES);
  made.fields.logprobs = true;
  made.fields.top_logprobs = read(made, "top_logprobs", () => numberOf(text, true), text);
}

/** @param {string} text */
function extraOf(text) {
  if (text.trim() === "") return {};
  const extra = /** @type {Record<string, unknown>} */ (jsonOf(text, "object"));
  const own = OWN.filter((name) => name in extra);
  if (own.length) throw new Unusable(`'${own[0]}' is what the page itself sends. Leave it out here.`);
  return extra;
}

/** @param {Settings} settings */
function extraNames(settings) {
  try {
    return Object.keys(extraOf(settings.extra ?? ""));
  } catch {
    return [];
  }
}

/**
 * A list of tools; one alone stands for such a list.
 * @param {string} text
 * @returns {any[]}
 */
function toolsOf(text) {
  const value = jsonOf(text);
  if (Array.isArray(value)) return value;
  if (typeof value === "object" && value !== null) return [value];
  throw new Unusable("Expected a JSON array of tools.");
}

/**
 * @param {string} text
 * @param {boolean} [isInteger]
 */
function numberOf(text, isInteger = false) {
  const value = Number(text.trim().replace(",", "."));
  if (!Number.isFinite(value) || text.trim() === "") throw new Unusable(`Expected a number, got “${text.trim()}”.`);
  if (isInteger && !Number.isInteger(value)) throw new Unusable(`Expected a whole number, got “${text.trim()}”.`);
  return value;
}

/**
 * @param {string} text
 * @param {"array" | "object"} [type]
 * @returns {unknown}
 */
function jsonOf(text, type) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Unusable(`This is not JSON: ${/** @type {Error} */ (error).message}.`);
  }
  const is = Array.isArray(value) ? "array" : value === null ? "null" : typeof value;
  if (type && is !== type) throw new Unusable(`Expected a JSON ${type}, got ${is === "null" ? is : `a JSON ${is}`}.`);
  return value;
}

/**
 * @param {unknown} one
 * @param {unknown} other
 */
const same = (one, other) => other !== undefined && JSON.stringify(one) === JSON.stringify(other);

/** @type {Record<string, string>} */
export const ESCAPES = { n: "\n", t: "\t", r: "\r", "\\": "\\" };

/** @param {string} line */
const unescaped = (line) => line.replace(/\\([ntr\\])/g, (_, letter) => ESCAPES[letter]);
