// Images attached to what is being written: chosen, pasted or dropped. They outlive a change of the chat, as the text.
import { getJson } from "../shared/api.js";
import { facts } from "../shared/server.js";
import { computed, effect, signal } from "../shared/view.js";
import { chat } from "./conversation.js";
import { newId } from "./tree.js";

/**
 * One attached image; `uri` is "" while its file is read.
 * @typedef {{id: string, name: string, uri: string}} Attached
 */

/** @type {import("../vendor/preact.js").Signal<readonly Attached[]>} */
export const attached = signal([]);

/** Why the last file was not attached; "" is that all were. */
export const trouble = signal("");

/** Whether the model reads images; null as long as that is not known. @type {import("../vendor/preact.js").Signal<boolean | null>} */
export const seesImages = signal(null);

const chosenModel = computed(() => chat.value.model ?? "");

export const BLIND = "This model reads no images: the server has no projector for it (--mmproj).";

/** Ask the server what the model reads, again whenever another one may have come. */
export function watchSight() {
  effect(() => {
    if (facts.value) readSight(chosenModel.value);
  });
}

/** @param {string} model that which the chat is to be answered by, or "" */
async function readSight(model) {
  try {
    const path = model ? `props?model=${encodeURIComponent(model)}` : "props";
    const { modalities, is_sleeping: isAway } = await getJson(path, { isBackground: true });
    // The header of a model that is not loaded does not say it.
    seesImages.value = model && isAway ? null : modalities?.vision === true;
  } catch {
    // Then the server says it when an image is sent.
  }
}

/** Attach those of these files that are images. @param {Iterable<File>} files */
export async function attach(files) {
  trouble.value = "";
  if (seesImages.value === false) {
    trouble.value = BLIND;
    return;
  }
  await Promise.all([...files].map(attachOne));
}

/** @param {File} file */
async function attachOne(file) {
  const one = { id: newId(), name: file.name, uri: "" };
  attached.value = [...attached.value, one];
  try {
    const { imageOf } = await import("./image_files.js");
    const uri = await imageOf(file);
    attached.value = attached.value.map((other) => (other.id === one.id ? { ...one, uri } : other));
  } catch (error) {
    trouble.value = error instanceof Error ? error.message : String(error);
    detach(one.id);
  }
}

/** @param {string} id */
export function detach(id) {
  attached.value = attached.value.filter((one) => one.id !== id);
}

/** What is attached, which then is attached no more. @returns {string[]} */
export function takeAttached() {
  const images = attached.value.map((one) => one.uri);
  attached.value = [];
  trouble.value = "";
  return images;
}

/** The files on a clipboard; none beside formatted text, of which they are a picture. @param {DataTransfer | null} data */
export function pastedFiles(data) {
  const isText = data?.types.includes("text/plain") && data.types.includes("text/html");
  return isText ? [] : [...(data?.files ?? [])];
}
