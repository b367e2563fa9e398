// Text into the clipboard.
import { IconButton } from "./components.js";
import { html, useSignal } from "./view.js";

const SHOWN_MS = 1500;

/**
 * Copy a text; false where the browser refuses. Pages that are not on this machine and not on HTTPS have no clipboard
 * but the old way.
 * @param {string} text
 */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyOldWay(text);
  }
}

/** @param {string} text */
function copyOldWay(text) {
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "unseen";
  (document.querySelector("dialog[open]") ?? document.body).append(field);
  field.select();
  const isDone = document.execCommand("copy");
  field.remove();
  return isDone;
}

/** @param {{text: string | (() => string), name?: string}} props */
export function CopyButton({ text, name = "Copy" }) {
  const isDone = useSignal(false);
  const click = async () => {
    isDone.value = await copy(typeof text === "string" ? text : text());
    setTimeout(() => (isDone.value = false), SHOWN_MS);
  };
  return html`<${IconButton} kind="small" icon=${isDone.value ? "check" : "copy"} name=${isDone.value ? "Copied" : name}
    onClick=${click} />`;
}
