// Images as the page shows them: those attached to what is being written, and those of a message.
import { Dialog, IconButton, Spinner } from "../shared/components.js";
import { html, signal, useEffect, useRef, useSignal } from "../shared/view.js";
import { attach, attached, BLIND, detach, seesImages, trouble } from "./attachments.js";

/** Whether files are being dragged over the page. */
const isOver = signal(false);

/** The button that asks for files. */
export function AttachButton() {
  const ref = useRef(/** @type {HTMLInputElement | null} */ (null));
  const isBlind = seesImages.value === false;
  const choose = () => {
    const input = /** @type {HTMLInputElement} */ (ref.current);
    attach(input.files ?? []);
    input.value = "";
  };
  return html`<${IconButton} kind="attach" icon="image" name=${isBlind ? BLIND : "Attach images"} disabled=${isBlind}
      onClick=${() => ref.current?.click()} />
    <input ref=${ref} type="file" accept="image/*" multiple hidden aria-label="Images to attach" onChange=${choose} />`;
}

/** What is attached, above the text. */
export function AttachedImages() {
  return html`
    ${attached.value.length > 0 &&
    html`<ul class="thumbnails" aria-label="Attached images">
      ${attached.value.map(
        (one, at) => html`<li class="thumbnail" key=${one.id}>
          ${one.uri ? html`<img src=${one.uri} alt=${one.name || `Image ${at + 1}`} />` : html`<${Spinner} />`}
          <${IconButton} kind="small" icon="close" name=${`Remove image ${at + 1}`} onClick=${() => detach(one.id)} />
        </li>`,
      )}
    </ul>`}
    ${trouble.value && html`<p class="note" role="alert">${trouble.value}</p>`}
  `;
}

/** The images of a message; one is shown large by a click. @param {{images: string[]}} props */
export function MessageImages({ images }) {
  const large = useSignal("");
  return html`<ul class="thumbnails" aria-label="Images">
    ${images.map(
      (uri, at) => html`<li class="thumbnail" key=${at}><button type="button" class="image-button"
        aria-label=${`Show image ${at + 1}`} onClick=${() => (large.value = uri)}><img src=${uri}
        alt=${`Image ${at + 1}`} loading="lazy" decoding="async" /></button></li>`,
    )}
    ${large.value && html`<${Dialog} title="Image" onClose=${() => (large.value = "")}>
      <img class="large-image" src=${large.value} alt="Image" />
    <//>`}
  </ul>`;
}

/** Where files are dropped: anywhere, since beside the field the browser would leave the page for them. */
export function DropZone() {
  useEffect(() => {
    /** @param {DragEvent} event */
    const drag = (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      isOver.value = event.type === "dragover";
      if (event.type === "drop") attach(event.dataTransfer.files);
    };
    /** @param {DragEvent} event */
    const leave = (event) => {
      if (!event.relatedTarget) isOver.value = false;
    };
    for (const type of /** @type {const} */ (["dragover", "drop"])) document.addEventListener(type, drag);
    document.addEventListener("dragleave", leave);
    return () => {
      for (const type of /** @type {const} */ (["dragover", "drop"])) document.removeEventListener(type, drag);
      document.removeEventListener("dragleave", leave);
    };
  }, []);
  return isOver.value && html`<div class="drop-zone">${seesImages.value === false ? BLIND : "Drop images here"}</div>`;
}
