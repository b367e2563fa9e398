// The settings of this browser, the presets, and what the server says of them.
import { ApiError, getJson } from "../shared/api.js";
import { computed, signal } from "../shared/view.js";
import { compact, presetOf, readPresets, readSettings, withPreset, withoutPreset } from "./presets.js";
import { NO_DEFAULTS, requestFields as prepared, settingOf } from "./request.js";

/** @typedef {import("./request.js").Settings} Settings */

const CHECK_AFTER_MS = 400;
const MAX_FAULTS = 5;
const MORE_FAULTS = / \(\d+ more such errors\)$/;
const ANY_CHAT = [{ role: "user", content: "Hello" }];

/** Settings and presets as they lie in the browser. */
const STORE = { settings: "ggufd.settings", presets: "ggufd.presets" };

/** @type {import("../vendor/preact.js").Signal<Settings>} */
export const settings = signal(readSettings(stored(STORE.settings)));

/** @type {import("../vendor/preact.js").Signal<import("./presets.js").Presets>} */
export const presets = signal(readPresets(stored(STORE.presets)));

/**
 * The server's defaults; null as long as they are not known.
 * @type {import("../vendor/preact.js").Signal<import("./request.js").Defaults | null>}
 */
export const defaults = signal(null);

/**
 * Errors that the server found in the settings, by setting.
 * @type {import("../vendor/preact.js").Signal<Record<string, string>>}
 */
const refusals = signal({});

const request = computed(() => prepared(settings.value, defaults.value ?? NO_DEFAULTS));

/** What is wrong with the settings, by setting: what cannot be read, and what the server would refuse. */
export const faults = computed(() => ({ ...refusals.value, ...request.value.errors }));

/** The preset that the settings are; "" where they are none. */
export const preset = computed(() => presetOf(presets.value, settings.value));

/** Whether anything is set, so that not all is as the server has it. */
export const isChanged = computed(() => Object.keys(settings.value).length > 0);

/** Whether answers come with the probabilities of their tokens. */
export const wantsTokens = computed(() => settings.value.logprobs === "true");

/**
 * The fields that every request carries besides its messages.
 * @returns {Record<string, unknown>}
 */
export function requestFields() {
  return { ...request.value.fields };
}

/** @param {string} id @param {string} text */
export function set(id, text) {
  use({ ...settings.value, [id]: text });
}

/** @param {Settings} chosen */
export function use(chosen) {
  settings.value = compact(chosen);
  store(STORE.settings, settings.value);
  checkLater();
}

/** Keep the settings under a name. @param {string} name */
export function savePreset(name) {
  presets.value = withPreset(presets.value, name, settings.value);
  store(STORE.presets, presets.value);
}

/** @param {string} name */
export function deletePreset(name) {
  presets.value = withoutPreset(presets.value, name);
  store(STORE.presets, presets.value);
}

/** Ask the server for its defaults and its adapters. */
export async function readDefaults() {
  const [props, adapters] = await Promise.all([getJson("props"), getJson("lora-adapters")]);
  defaults.value = { samplers: props.default_generation_settings?.params ?? {}, adapters };
  checkLater();
}

let timer = 0;

function checkLater() {
  clearTimeout(timer);
  refusals.value = {};
  timer = setTimeout(check, CHECK_AFTER_MS);
}

/** Have the server look at the fields, without writing anything. It names one fault at a time. */
async function check() {
  const asked = request.value;
  const fields = { ...asked.fields };
  /** @type {Record<string, string>} */
  const found = {};
  for (let left = MAX_FAULTS; left && Object.keys(fields).length; left -= 1) {
    const error = await refusalOf(fields);
    const id = settingOf(error?.param, settings.value);
    if (!error || !id) break;
    found[id] ??= error.message.replace(MORE_FAULTS, "");
    delete fields[String(error.param).split(/[.[]/)[0]];
  }
  if (asked === request.value) refusals.value = found;
}

/** @param {Record<string, unknown>} fields @returns {Promise<ApiError | null>} */
async function refusalOf(fields) {
  try {
    await getJson("apply-template", { body: { messages: ANY_CHAT, ...fields } });
  } catch (error) {
    if (error instanceof ApiError && error.status === 400) return error;
  }
  return null;
}

/** @param {string} name @returns {unknown} */
function stored(name) {
  try {
    return JSON.parse(localStorage.getItem(name) ?? "null");
  } catch {
    return null;
  }
}

/** A browser that keeps nothing loses the settings with the tab. @param {string} name @param {unknown} value */
function store(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // As above.
  }
}

// Scales are sent for all adapters together, so those of the server must be known before the panel is opened.
if (Object.keys(settings.value).some((id) => id.startsWith("lora:"))) readDefaults().catch(() => {});
