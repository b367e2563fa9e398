// What a person has set for their requests, as fields of a request.
import { signal } from "../shared/view.js";

/**
 * Fields of a request by their names in the API; what is not here has the server's default.
 * @type {import("../vendor/preact.js").Signal<Record<string, unknown>>}
 */
export const settings = signal({});

/**
 * The fields that every request of this page carries besides its messages.
 * @returns {Record<string, unknown>}
 */
export function requestFields() {
  return { ...settings.value };
}
