// Shapes that the modules share. Types only: nothing here runs.

/**
 * A tool call as OpenAI writes it; `arguments` is JSON as the model wrote it.
 * @typedef {{id: string, name: string, arguments: string}} ToolCall
 */

/**
 * Why an answer failed, in the server's words. `status` is 0 where the server could not be reached.
 * @typedef {{message: string, status: number, code: string | null}} Failure
 */

/**
 * The probability of one token, as `choices[].logprobs.content[]` has it.
 * @typedef {{token: string, logprob: number, bytes: number[] | null,
 *   top_logprobs: Array<{token: string, logprob: number, bytes: number[] | null}>}} TokenLogprob
 */

/**
 * One message of a chat. The messages that have the same parent are versions of each other.
 *
 * `writing` is an answer that has not ended; `stopped` one that a person ended, or that was cut off. Everything below
 * `error` is of answers only. `request` is the body that was sent, but for its messages, and with the system prompt as
 * `system`: `requestOf` in chat/openai.js makes the whole body of it, and components are given messages that have it
 * whole. `usage`, `timings` and `cache` are what the server said at the end, `firstTokenMs` and `totalMs` what the page
 * saw.
 *
 * @typedef {object} Message
 * @property {string} id
 * @property {string | null} parent
 * @property {"user" | "assistant" | "tool"} role
 * @property {string} text
 * @property {number} created - Unix time in milliseconds
 * @property {"done" | "writing" | "stopped" | "failed"} state
 * @property {string[]} [images] - data URIs, of a person's message
 * @property {string} [reasoning]
 * @property {ToolCall[]} [toolCalls]
 * @property {string} [toolCallId] - of a tool's message: the call that it answers
 * @property {Failure} [error]
 * @property {Record<string, unknown>} [request]
 * @property {number} [requested] - when `request` was sent, Unix time in milliseconds
 * @property {string} [begun] - the text that the answer was given to go on from
 * @property {Array<{text: string, until: number}>} [edits] - what it said before, and until when
 * @property {{id: string, last: string}} [stream] - of one that is being written: what to go on with after a reload
 * @property {string} [responseId]
 * @property {string} [model]
 * @property {string} [finishReason]
 * @property {Record<string, any>} [usage]
 * @property {Record<string, any>} [timings]
 * @property {Record<string, any>} [cache]
 * @property {{ignored?: string, repairs?: string}} [notes] - fields that did nothing, and what the template needed
 * @property {TokenLogprob[]} [logprobs]
 * @property {number} [firstTokenMs]
 * @property {number} [totalMs]
 */

/**
 * A chat: a tree of messages. `roots` and `children` hold the ids of versions in the order they were made; `chosen` says
 * which of a message's children is shown ("" stands for the roots' parent).
 *
 * @typedef {object} Chat
 * @property {string} id
 * @property {string} title - "" as long as its beginning names it
 * @property {number} created
 * @property {number} changed
 * @property {string} system - the system prompt
 * @property {string} [model] - the model that it is to be answered by; "" or none is whichever is loaded
 * @property {Record<string, Message>} messages
 * @property {Record<string, string[]>} children
 * @property {Record<string, string>} chosen
 */

/**
 * What the list of chats shows of one.
 * @typedef {{id: string, title: string, changed: number}} ChatHead
 */

/**
 * What `GET /` says.
 * @typedef {{name: string, version: string, model: string, models: number, state: string,
 *   n_ctx: number | null, slots: number | null, links: Record<string, string>}} ServerFacts
 */

export {};
