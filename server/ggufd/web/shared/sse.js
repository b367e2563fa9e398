// Server-sent events out of a stream of bytes. Knows nothing of what they hold.

/**
 * One event, or one comment.
 * @typedef {{data: string, event: string, id: string, comment?: string}} ServerEvent
 */

/** Parser that is fed text in any pieces. */
export class EventParser {
  #rest = "";
  /** @type {string[]} */
  #data = [];
  #event = "";
  #id = "";

  /**
   * The events and comments that this piece completes.
   * @param {string} text
   * @returns {ServerEvent[]}
   */
  feed(text) {
    /** @type {ServerEvent[]} */
    const found = [];
    const lines = (this.#rest + text).split("\n");
    this.#rest = /** @type {string} */ (lines.pop());
    for (const line of lines) this.#read(line.endsWith("\r") ? line.slice(0, -1) : line, found);
    return found;
  }

  /** @param {string} line @param {ServerEvent[]} found */
  #read(line, found) {
    if (line === "") this.#end(found);
    else if (line.startsWith(":")) found.push({ data: "", event: "", id: this.#id, comment: line.slice(1).trim() });
    else this.#field(line);
  }

  /** @param {string} line */
  #field(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#event = value;
    else if (name === "id") this.#id = value;
  }

  /** @param {ServerEvent[]} found */
  #end(found) {
    if (this.#data.length) found.push({ data: this.#data.join("\n"), event: this.#event, id: this.#id });
    this.#data = [];
    this.#event = "";
  }
}

const BUSY_MS = 10;

/** Let the browser do what else waits; a timer would be slow in a tab that is not seen. @returns {Promise<void>} */
function breathe() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/**
 * The events of a response as they come. Leaving the loop early closes the connection.
 * @param {Response} response
 * @returns {AsyncGenerator<ServerEvent[]>}
 */
export async function* eventsOf(response) {
  const parser = new EventParser();
  const decoder = new TextDecoder();
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  let begin = performance.now();
  try {
    for (;;) {
      if (performance.now() - begin > BUSY_MS) {
        await breathe();
        begin = performance.now();
      }
      const { done, value } = await reader.read();
      if (done) return;
      const found = parser.feed(decoder.decode(value, { stream: true }));
      if (found.length) yield found;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
