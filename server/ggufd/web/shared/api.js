// Calls to this server. Addresses are relative to the page's own, so that a proxy's prefix holds.
import { askKey, key } from "./key.js";

/** Where the server's routes begin, as `http://127.0.0.1:8080/`. */
export const base = new URL(".", location.origin + location.pathname);

/** An error in the server's words; `status` is 0 where it could not be reached. */
export class ApiError extends Error {
  /** @param {string} message @param {number} status @param {string | null} code @param {string | null} param */
  constructor(message, status = 0, code = null, param = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
  }

  /** The same as plain data. @returns {import("./types.js").Failure} */
  get failure() {
    return { message: this.message, status: this.status, code: this.code };
  }
}

/**
 * What a call may say besides its address. `isBackground`: no person made it, so that none is asked for a key twice.
 * @typedef {{method?: string, body?: unknown, signal?: AbortSignal, headers?: Record<string, string>,
 *   isBackground?: boolean}} CallOptions
 */

/**
 * The response to a call, once it is a good one; a key is asked for where the server wants one. Throws ApiError, or
 * the signal's AbortError.
 * @param {string} path relative, as "v1/models"
 * @param {CallOptions} options
 * @returns {Promise<Response>}
 */
export async function call(path, options = {}) {
  for (;;) {
    const sent = key.value;
    const response = await send(path, options, sent);
    if (response.ok) return response;
    if (response.status !== 401 || !(await askKey(sent, options.isBackground))) throw await errorOf(response);
  }
}

/** @param {string} path @param {CallOptions} options @param {string} sent @returns {Promise<Response>} */
async function send(path, { method, body, signal, headers }, sent) {
  /** @type {Record<string, string>} */
  const all = { Accept: "application/json", ...headers };
  if (sent) all.Authorization = `Bearer ${sent}`;
  if (body !== undefined) all["Content-Type"] = "application/json";
  const request = {
    method: method ?? (body === undefined ? "GET" : "POST"),
    body: body === undefined ? undefined : JSON.stringify(body),
    headers: all,
    signal,
  };
  try {
    return await fetch(new URL(path, base), request);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The server does not answer.");
  }
}

/** @param {Response} response @returns {Promise<ApiError>} */
async function errorOf(response) {
  const said = await response.json().catch(() => null);
  return errorFrom(said, response.status) ?? new ApiError(`The server answered ${response.status}.`, response.status);
}

/**
 * The error in a body of the server, if there is one: of a response, or of a stream's last event.
 * @param {any} said
 * @param {number} status
 * @returns {ApiError | null}
 */
export function errorFrom(said, status) {
  const error = said?.error;
  if (typeof error?.message !== "string") return null;
  return new ApiError(error.message, status, error.code ?? null, error.param ?? null);
}

/** @param {string} path @param {CallOptions} options @returns {Promise<any>} */
export async function getJson(path, options = {}) {
  return (await call(path, options)).json();
}
