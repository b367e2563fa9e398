/** Presets: settings by name, as the browser keeps them. Knows no page and no storage. */

/** @typedef {import("./request.js").Settings} Settings */
/** @typedef {Readonly<Record<string, Settings>>} Presets */

/**
 * Settings without those that set nothing.
 * @param {Settings} settings
 * @returns {Settings}
 */
export function compact(settings) {
  return Object.fromEntries(Object.entries(settings).filter(([, text]) => text !== ""));
}

/**
 * @param {Settings} one
 * @param {Settings} other
 */
export function sameSettings(one, other) {
  const sorted = [one, other].map((settings) => JSON.stringify(Object.entries(compact(settings)).sort()));
  return sorted[0] === sorted[1];
}

/**
 * @param {Presets} presets
 * @param {string} name
 * @param {Settings} settings
 * @returns {Presets} Sorted by name.
 */
export function withPreset(presets, name, settings) {
  const entries = Object.entries({ ...presets, [name.trim()]: compact(settings) });
  return Object.fromEntries(entries.sort(([one], [other]) => one.localeCompare(other)));
}

/**
 * @param {Presets} presets
 * @param {string} name
 * @returns {Presets}
 */
export function withoutPreset(presets, name) {
  return Object.fromEntries(Object.entries(presets).filter(([other]) => other !== name));
}

/**
 * The name of the preset that these settings are; "" where they are none.
 * @param {Presets} presets
 * @param {Settings} settings
 */
export function presetOf(presets, settings) {
  return Object.keys(presets).find((name) => sameSettings(presets[name], settings)) ?? "";
}

/**
 * Settings as they were stored. What is no settings of ours is left out.
 * @param {unknown} value
 * @returns {Settings}
 */
export function readSettings(value) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return {};
  return Object.fromEntries(Object.entries(value).filter(([, text]) => typeof text === "string"));
}

/**
 * Presets as they were stored.
 * @param {unknown} value
 * @returns {Presets}
 */
export function readPresets(value) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return {};
  return Object.fromEntries(Object.entries(value).map(([name, settings]) => [name, readSettings(settings)]));
}
