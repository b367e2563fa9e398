// The API key: asked for once, kept in this tab's sessionStorage, sent in a header and nowhere else.
import { signal } from "./view.js";

const NAME = `ggufd.key ${new URL(".", location.href).pathname}`;

/** The key that is sent; "" as long as the server has asked for none. */
export const key = signal(sessionStorage.getItem(NAME) ?? "");

/**
 * Why a key is being asked for; "" while none is.
 * @type {import("../vendor/preact.js").Signal<"" | "missing" | "wrong">}
 */
export const keyWanted = signal("");

/** @type {Promise<boolean> | null} */
let asked = null;
/** @type {(isGiven: boolean) => void} */
let answer = () => {};

/** Whether the person would give none when they were asked last. */
let isRefused = false;

/**
 * Ask the person for a key, unless another call has changed it since `sent` was refused. False where they gave none;
 * a call that they did not make themselves (`isBackground`) does not ask again then.
 * @param {string} sent
 * @param {boolean} isBackground
 * @returns {Promise<boolean>}
 */
export function askKey(sent, isBackground = false) {
  if (key.value !== sent) return Promise.resolve(true);
  if (isRefused && isBackground) return Promise.resolve(false);
  keyWanted.value = sent ? "wrong" : "missing";
  asked ??= new Promise((resolve) => (answer = resolve));
  return asked;
}

/** The person's answer; "" is none. @param {string} given */
export function giveKey(given) {
  if (given) {
    key.value = given;
    sessionStorage.setItem(NAME, given);
  }
  isRefused = !given;
  keyWanted.value = "";
  asked = null;
  answer(Boolean(given));
}

/** Forget the key, so that the next call asks for one. */
export function forgetKey() {
  key.value = "";
  sessionStorage.removeItem(NAME);
}
