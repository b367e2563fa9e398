// Images as a request carries them: small enough, as data URIs. Knows nothing of the page's state.

/** The longest side that is sent: no model takes more of an image. */
export const MAX_SIDE = 1600;

/** Bytes up to which a file is sent as it is, if its sides and its format fit. */
export const MAX_BYTES = 1_500_000;

const QUALITY = 0.9;

/** Formats that are kept; others become PNG. */
const KEPT = ["image/png", "image/jpeg", "image/webp"];

/** What a message may hold: nothing that a browser would fetch from elsewhere. */
const IMAGE = /^data:image\/(png|jpeg|webp|gif|bmp);base64,[A-Za-z0-9+/=]*$/;

/** Whether a value is an image that a message may hold. @param {unknown} value @returns {value is string} */
export function isImage(value) {
  return typeof value === "string" && IMAGE.test(value);
}

/**
 * The size in which an image is sent.
 * @param {number} width
 * @param {number} height
 * @returns {{width: number, height: number}}
 */
export function fitted(width, height) {
  const scale = Math.min(1, MAX_SIDE / Math.max(width, height));
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
}

/**
 * Whether a file is sent as it is.
 * @param {{type: string, size: number}} file
 * @param {number} width
 * @param {number} height
 */
export function isSmall(file, width, height) {
  return KEPT.includes(file.type) && file.size <= MAX_BYTES && Math.max(width, height) <= MAX_SIDE;
}

/**
 * A file as a data URI, scaled down where it is larger than needed. Throws an Error in words for a person.
 * @param {File} file
 * @returns {Promise<string>}
 */
export async function imageOf(file) {
  const bitmap = await bitmapOf(file);
  try {
    return await readAsUri(isSmall(file, bitmap.width, bitmap.height) ? file : await scaled(bitmap, file.type));
  } finally {
    bitmap.close();
  }
}

/** @param {File} file */
async function bitmapOf(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "The file"} is no image that this browser can read.`);
  }
}

/** @param {ImageBitmap} bitmap @param {string} type @returns {Promise<Blob>} */
async function scaled(bitmap, type) {
  const made = KEPT.includes(type) ? type : "image/png";
  const blob = await drawn(bitmap, made);
  return blob.size <= MAX_BYTES ? blob : drawn(bitmap, "image/jpeg");
}

/** @param {ImageBitmap} bitmap @param {string} type @returns {Promise<Blob>} */
function drawn(bitmap, type) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, fitted(bitmap.width, bitmap.height));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  if (type === "image/jpeg") {
    // Where it is transparent it would be black.
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The image could not be made smaller."))), type, QUALITY);
  });
}

/** @param {Blob} blob @returns {Promise<string>} */
function readAsUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(new Error("The file could not be read."));
    reader.readAsDataURL(blob);
  });
}
