// An answer as its chunks make it. Pure: knows neither the network nor the page.

/** @typedef {import("../shared/types.js").Message} Message */

const FACTS = /** @type {const} */ (["responseId", "model", "usage", "timings", "cache", "finishReason"]);

/** Reader of the chunks of one answer; `begun` is the message that it continues, or an empty one. */
export class AnswerReader {
  /**
   * The reader that goes on where another one was whose values are in this message.
   * @param {Message} message
   */
  static resumed(message) {
    const reader = new AnswerReader(message);
    const { toolCalls = [], logprobs = [] } = message;
    reader.toolCalls = toolCalls.map((call) => ({ ...call }));
    reader.logprobs = [...logprobs];
    reader.facts = Object.fromEntries(FACTS.filter((name) => name in message).map((name) => [name, message[name]]));
    reader.hasBegun = message.text !== (message.begun ?? "") || Boolean(message.reasoning) || toolCalls.length > 0;
    return reader;
  }

  /** @param {Pick<Message, "text" | "reasoning" | "toolCalls" | "logprobs">} begun */
  constructor(begun) {
    this.text = begun.text;
    this.reasoning = begun.reasoning ?? "";
    /** @type {import("../shared/types.js").ToolCall[]} */
    this.toolCalls = [];
    /** @type {import("../shared/types.js").TokenLogprob[]} */
    this.logprobs = [...(begun.logprobs ?? [])];
    /** @type {Partial<Message>} */
    this.facts = {};
    /** @type {{total: number, cache: number, processed: number} | null} */
    this.progress = null;
    this.hasBegun = false;
  }

  /** Take one chunk as the server sends it. @param {any} chunk */
  feed(chunk) {
    if (typeof chunk.id === "string") this.facts.responseId = chunk.id;
    if (typeof chunk.model === "string") this.facts.model = chunk.model;
    if (chunk.prompt_progress) this.progress = chunk.prompt_progress;
    for (const name of /** @type {const} */ (["usage", "timings", "cache"])) {
      if (chunk[name]) this.facts[name] = chunk[name];
    }
    const choice = chunk.choices?.[0];
    if (choice) this.#choice(choice);
  }

  /** @param {any} choice */
  #choice({ delta = {}, logprobs, finish_reason }) {
    if (delta.content) this.text += delta.content;
    if (delta.reasoning_content) this.reasoning += delta.reasoning_content;
    for (const call of delta.tool_calls ?? []) this.#call(call);
    if (logprobs?.content) this.logprobs.push(...logprobs.content);
    if (finish_reason) this.facts.finishReason = finish_reason;
    if (delta.content || delta.reasoning_content || delta.tool_calls) this.hasBegun = true;
  }

  /** @param {any} part */
  #call({ index, id, function: { name, arguments: text } = /** @type {any} */ ({}) }) {
    const call = (this.toolCalls[index] ??= { id: "", name: "", arguments: "" });
    call.id += id ?? "";
    call.name += name ?? "";
    call.arguments += text ?? "";
  }

  /** What the message is by now. @returns {Partial<Message>} */
  get values() {
    const { text, reasoning, facts } = this;
    return {
      text,
      ...(reasoning ? { reasoning } : {}),
      ...(this.toolCalls.length ? { toolCalls: this.toolCalls.map((call) => ({ ...call })) } : {}),
      ...(this.logprobs.length ? { logprobs: [...this.logprobs] } : {}),
      ...facts,
    };
  }
}

/**
 * A request's place in the queue, out of the comment that says it; `model` is what it waits for to be loaded.
 * @param {string} comment
 * @returns {{position: number, etaS: number, model?: string} | null}
 */
export function queuePlace(comment) {
  const found = /^queue position=(\d+) eta_s=([\d.]+)(?: waiting for model (.+), \d+ s$)?/.exec(comment);
  return found && { position: Number(found[1]), etaS: Number(found[2]), ...(found[3] ? { model: found[3] } : {}) };
}
