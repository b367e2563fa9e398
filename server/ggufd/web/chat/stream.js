// The events of one answer, over as many connections as it takes: the answer goes on at the server without this page.
import { eventsOf } from "../shared/sse.js";

/** @typedef {import("../shared/sse.js").ServerEvent} ServerEvent */

/**
 * Asks the server, as `call` in shared/api.js does.
 * @typedef {(path: string, options?: import("../shared/api.js").CallOptions) => Promise<Response>} Call
 */

const HEADER = "x-ggufd-stream";
const AGAIN_MS = 1000;

/** Answers of a proxy whose server does not answer. */
const AWAY = new Set([0, 502, 503, 504]);

/** An answer whose rest is not to be had. */
export class StreamLost extends Error {}

/** One answer at the server: its `id`, once it is known, and the id of the `last` event that was taken in. */
export class AnswerStream {
  /**
   * @param {Call} call
   * @param {AbortSignal} signal ends it, here and at the server
   * @param {{id: string, last: string}} known what is known of one that began before
   */
  constructor(call, signal, { id, last } = { id: "", last: "" }) {
    this.id = id;
    this.last = last;
    this.#call = call;
    this.#signal = signal;
  }

  #call;
  #signal;

  /** What must be kept to go on after a reload; null as long as there is nothing to go on with. */
  get place() {
    return this.id ? { id: this.id, last: this.last } : null;
  }

  /**
   * The events after `last`, to the end of the answer; `body` is the request of one that has not begun. Whoever takes
   * an event in notes it by `took`. Throws StreamLost, or what a call throws.
   * @param {(response: Response) => void} onBegun called with the first response, when `id` is known if it ever is
   * @param {Record<string, unknown>} [body]
   * @returns {AsyncGenerator<ServerEvent[]>}
   */
  async *events(onBegun, body) {
    let response = body ? await this.#begin(body, onBegun) : await this.#goOn();
    for (;;) {
      if (response.status === 204) throw lost();
      yield* this.#read(response);
      if (!this.id) throw lost();
      response = await this.#goOn();
    }
  }

  /** An event was taken in. @param {ServerEvent} event */
  took(event) {
    if (event.comment === undefined && event.id) this.last = event.id;
  }

  /** End the answer at the server. */
  async end() {
    if (this.id) await this.#call(`v1/streams/${this.id}`, { method: "DELETE" }).catch(() => {});
  }

  /** What comes over one connection, until it ends or breaks off. @param {Response} response */
  async *#read(response) {
    const reading = eventsOf(response);
    for (;;) {
      let next;
      try {
        next = await reading.next();
      } catch (error) {
        if (this.#signal.aborted) throw error;
        return;
      }
      if (next.done) return;
      yield next.value;
    }
  }

  /** @param {Record<string, unknown>} body @param {(response: Response) => void} onBegun */
  async #begin(body, onBegun) {
    const connection = new AbortController();
    const response = await this.#unlessStopped(this.#ask(body, connection.signal), connection);
    this.id = response.headers.get(HEADER) ?? "";
    onBegun(response);
    this.#signal.addEventListener("abort", () => connection.abort());
    return response;
  }

  /** A server that keeps no streams, or has too many, still answers. @param {Record<string, unknown>} body */
  async #ask(body, /** @type {AbortSignal} */ signal) {
    const path = "v1/chat/completions";
    try {
      return await this.#call(path, { body: { ...body, resumable: true }, signal });
    } catch (error) {
      if (/** @type {any} */ (error)?.param !== "resumable") throw error;
      return this.#call(path, { body, signal });
    }
  }

  /**
   * A response, unless a person stops before it is there. Then it is waited for all the same: only its headers tell
   * what is to be ended at the server.
   * @param {Promise<Response>} asking
   * @param {AbortController} connection
   * @returns {Promise<Response>}
   */
  #unlessStopped(asking, connection) {
    return new Promise((resolve, reject) => {
      const stop = () => {
        reject(this.#signal.reason);
        asking.then(
          (response) => {
            this.id = response.headers.get(HEADER) ?? "";
            connection.abort();
            return this.end();
          },
          () => {},
        );
      };
      if (this.#signal.aborted) stop();
      this.#signal.addEventListener("abort", stop);
      asking.then(resolve, reject).finally(() => this.#signal.removeEventListener("abort", stop));
    });
  }

  /** A connection to what comes after `last`, as soon as the server answers. */
  async #goOn() {
    const headers = { Accept: "text/event-stream", ...(this.last ? { "Last-Event-ID": this.last } : {}) };
    for (;;) {
      try {
        return await this.#call(`v1/streams/${this.id}`, { headers, signal: this.#signal });
      } catch (error) {
        const status = /** @type {any} */ (error)?.status;
        if (status === 404 || status === 410) throw lost();
        if (this.#signal.aborted || !AWAY.has(status)) throw error;
      }
      await this.#pause();
    }
  }

  /** @returns {Promise<void>} */
  #pause() {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(resolve, AGAIN_MS);
      this.#signal.addEventListener("abort", () => (clearTimeout(timer), reject(this.#signal.reason)), { once: true });
    });
  }
}

function lost() {
  return new StreamLost("The rest of this answer is lost: the server has it no more.");
}
