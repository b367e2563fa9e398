// The models that a chat may be answered by, as `GET /v1/models` lists them. Pure functions.

/**
 * One of them. `loadS` is how long its load takes, in seconds; `trouble` why the last one failed.
 * @typedef {{id: string, state: "loaded" | "loading" | "unloaded", mayLoad: boolean, loadS: number | null,
 *   trouble: string}} ChatModel
 */

/**
 * Those that write text. None where the server knows one model only: then there is nothing to choose.
 * @param {any[]} cards
 * @returns {ChatModel[]}
 */
export function chatModels(cards) {
  const known = cards.filter((card) => card.status && !isForVectors(card));
  return known.map((card) => ({
    id: String(card.id),
    state: card.status.value,
    mayLoad: card.may_load !== false,
    loadS: Number.isFinite(card.load_s) ? card.load_s : null,
    trouble: card.status.failed ? String(card.status.reason ?? "") : "",
  }));
}

/** @param {any} card */
function isForVectors({ capabilities }) {
  return Array.isArray(capabilities) && !capabilities.includes("completion");
}

/** A model in one line. @param {ChatModel} one */
export function lineOf(one) {
  if (one.state !== "unloaded") return `${one.id} (${one.state})`;
  if (!one.mayLoad) return `${one.id} (not loaded, not for this key)`;
  if (one.trouble) return `${one.id} (could not be loaded)`;
  return one.loadS === null ? one.id : `${one.id} (loads in ${seconds(one.loadS)})`;
}

/**
 * What is to be known before something is sent to the model of this name; null where it is loaded, or none is wanted.
 * @param {ChatModel[]} models
 * @param {string} wanted
 * @returns {{text: string, isBad: boolean} | null}
 */
export function noteOn(models, wanted) {
  if (!wanted) return null;
  const one = models.find(({ id }) => id === wanted);
  if (!one) return { text: `This server has no model ${wanted}: the loaded one answers. Choose one above.`, isBad: true };
  if (one.state === "loading") return { text: `${wanted} is being loaded.`, isBad: false };
  if (one.state === "loaded") return null;
  if (!one.mayLoad) {
    return { text: `${wanted} is not loaded, and this key may not have it loaded. Choose another one above.`, isBad: true };
  }
  if (one.trouble) return { text: `${wanted} could not be loaded: ${one.trouble}`, isBad: true };
  const time = one.loadS === null ? "" : `, which takes about ${seconds(one.loadS)}`;
  return { text: `${wanted} is loaded when you send${time}.`, isBad: false };
}

/** @param {number} count */
function seconds(count) {
  return count < 90 ? `${Math.max(1, Math.round(count))} s` : `${Math.round(count / 60)} min`;
}
