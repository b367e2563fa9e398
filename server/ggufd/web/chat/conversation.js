// The open chat and its answers under way: what a person does, done.
import { ApiError, call, errorFrom } from "../shared/api.js";
import { checkServer, readFacts } from "../shared/server.js";
import { signal } from "../shared/view.js";
import { AnswerReader, queuePlace } from "./answer.js";
import { keepChat, openChatId, readChat, unfinishedIds } from "./library.js";
import { messagesTo } from "./openai.js";
import { requestFields } from "./settings.js";
import { AnswerStream, StreamLost } from "./stream.js";
import * as tree from "./tree.js";

/** @typedef {import("../shared/types.js").Chat} Chat */
/** @typedef {import("../shared/types.js").Message} Message */

/**
 * Where an answer stands: sent, waiting for its turn, reading the prompt, or writing.
 * @typedef {{phase: "sent" | "waiting" | "reading" | "writing", position?: number, etaS?: number, model?: string,
 *   done?: number, total?: number}} Progress
 */

const KEEP_MS = 2000;

/** The chat that is open. */
export const chat = signal(tree.newChat());

/** Chats that are not open, but have an answer under way. @type {Map<string, Chat>} */
const behind = new Map();

/** Answers under way by the ids of their messages. @type {import("../vendor/preact.js").Signal<Map<string, Run>>} */
export const runs = signal(new Map());

/** A call at whose failure the server is looked at. @type {typeof call} */
async function watchedCall(path, options) {
  try {
    return await call(path, options);
  } catch (error) {
    if (!options?.signal?.aborted) checkServer();
    throw error;
  }
}

/** One answer under way: of a message that has nothing of it yet, or with its `stream` of one that began before. */
export class Run {
  controller = new AbortController();
  /** @type {import("../vendor/preact.js").Signal<Progress>} */
  progress = signal(/** @type {Progress} */ ({ phase: "sent" }));
  /** Raised when there is more to be shown, at most once a frame. */
  revision = signal(0);
  #frame = 0;

  /** @param {string} chatId @param {Message} message */
  constructor(chatId, message) {
    this.chatId = chatId;
    this.messageId = message.id;
    const { stream, requested = 0 } = message;
    this.reader = stream ? AnswerReader.resumed(message) : new AnswerReader(message);
    this.stream = new AnswerStream(watchedCall, this.controller.signal, stream);
    this.beganAt = performance.now() - (stream ? Date.now() - requested : 0);
    this.firstTokenMs = stream ? (message.firstTokenMs ?? 0) : 0;
    this.keptAt = performance.now();
  }

  /** There is more. */
  grow() {
    if (!this.firstTokenMs && this.reader.hasBegun) this.firstTokenMs = performance.now() - this.beganAt;
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.revision.value += 1;
    });
  }
}

/** The chat with this id, open or behind. @param {string} id */
function chatOf(id) {
  return chat.value.id === id ? chat.value : behind.get(id);
}

/** Change a chat, show it and keep it. @param {string} id @param {(chat: Chat) => Chat} change */
export function update(id, change) {
  const before = chatOf(id);
  if (!before) return;
  const after = change(before);
  if (chat.value.id === id) chat.value = after;
  else behind.set(id, after);
  keepChat(after);
}

/** Show another chat; an answer that is under way in this one goes on. @param {Chat} next */
export function show(next) {
  if (isRunning(chat.value.id)) behind.set(chat.value.id, chat.value);
  chat.value = behind.get(next.id) ?? next;
  behind.delete(next.id);
  takeUp(next.id);
  openChatId.value = Object.keys(chat.value.messages).length ? next.id : "";
}

/** Go on with the answers of all chats that were being written when the page was closed. */
export async function takeUpAll() {
  for (const id of unfinishedIds()) {
    if (chatOf(id)) continue;
    const found = await readChat(id);
    if (!found || chatOf(id)) continue;
    behind.set(id, found);
    takeUp(id);
    if (!isRunning(id)) behind.delete(id);
  }
}

/** Go on with those of one chat; what never reached the server ends with what there is. @param {string} chatId */
function takeUp(chatId) {
  for (const message of Object.values(chatOf(chatId)?.messages ?? {})) {
    if (message.state !== "writing" || runs.value.has(message.id)) continue;
    if (message.stream) follow(new Run(chatId, message));
    else update(chatId, (one) => tree.change(one, message.id, { state: "stopped" }));
  }
}

/** Show what another tab has made of a chat, if it is the open one and nothing is being written here. */
export async function readAgain(/** @type {string} */ id) {
  if (chat.value.id !== id || isRunning(id)) return;
  const found = await readChat(id);
  if (chat.value.id === id && !isRunning(id)) chat.value = found ?? tree.newChat();
}

/** End what is under way in a chat that is deleted, and leave it. @param {string} id */
export function forget(id) {
  for (const run of runs.value.values()) if (run.chatId === id) run.controller.abort();
  if (chat.value.id === id) show(tree.newChat());
  behind.delete(id);
}

/** Whether an answer is under way in a chat. @param {string} chatId */
export function isRunning(chatId) {
  return [...runs.value.values()].some((run) => run.chatId === chatId);
}

/** Say something, and have it answered. @param {string} text @param {string[]} images data URIs */
export function send(text, images = []) {
  const id = chat.value.id;
  const message = tree.newMessage("user", text, images.length ? { images } : {});
  update(id, (now) => tree.add(now, tree.last(now)?.id ?? null, message));
  openChatId.value = id;
  answer(id, message.id);
}

/** Have a message answered, once more where it has an answer; `begun` is what the new one begins with. */
function answer(
  /** @type {string} */ chatId,
  /** @type {string | null} */ parent,
  /** @type {Partial<Message>} */ begun = {},
) {
  const message = tree.newMessage("assistant", begun.text ?? "", { ...begun, state: "writing" });
  update(chatId, (now) => tree.add(now, parent, message));
  start(chatId, message.id);
}

/** Another version of an answer. @param {string} id */
export function regenerate(id) {
  const message = chat.value.messages[id];
  if (message.state === "failed" && !message.text) update(chat.value.id, (now) => tree.remove(now, id));
  answer(chat.value.id, message.parent);
}

/** Go on with an answer that ended. @param {string} id */
export function goOn(id) {
  start(chat.value.id, id);
}

/**
 * A version of an answer that begins with this text and goes on from there.
 * @param {string} id
 * @param {string} text
 * @param {Message["logprobs"]} [logprobs] - of its tokens, where they are known
 */
export function goOnFrom(id, text, logprobs) {
  const { parent, reasoning } = chat.value.messages[id];
  answer(chat.value.id, parent, { text, ...(reasoning ? { reasoning } : {}), ...(logprobs ? { logprobs } : {}) });
}

/** Say what came of the calls of an answer, in their order, and have that answered. @param {string} id @param {string[]} texts */
export function giveResults(id, texts) {
  const chatId = chat.value.id;
  const { toolCalls = [] } = chat.value.messages[id];
  let parent = id;
  for (const [at, call] of toolCalls.entries()) {
    const message = tree.newMessage("tool", texts[at] ?? "", { toolCallId: call.id });
    const above = parent;
    update(chatId, (now) => tree.add(now, above, message));
    parent = message.id;
  }
  answer(chatId, parent);
}

/** A version of an own message with its images, and its answer. @param {string} id @param {string} text */
export function sendInstead(id, text) {
  const { images } = chat.value.messages[id];
  const message = tree.newMessage("user", text, images ? { images } : {});
  update(chat.value.id, (now) => tree.add(now, now.messages[id].parent, message));
  answer(chat.value.id, message.id);
}

/** Other words in a message; what follows it stays. @param {string} id @param {string} text */
export function reword(id, text) {
  const { text: before, edits = [] } = chat.value.messages[id];
  if (text === before) return;
  const values = { text, edits: [...edits, { text: before, until: Date.now() }], logprobs: undefined };
  update(chat.value.id, (now) => tree.change(now, id, values));
}

/** Show the version of a message that is so many places on. @param {string} id @param {number} step */
export function turn(id, step) {
  const { ids, at } = tree.versions(chat.value, id);
  const next = ids[at + step];
  if (next) update(chat.value.id, (now) => tree.choose(now, next));
}

/** @param {string} id */
export function removeMessage(id) {
  for (const run of runs.value.values()) if (run.chatId === chat.value.id) run.controller.abort();
  update(chat.value.id, (now) => tree.remove(now, id));
}

/** A chat of its own that begins with all up to a message. @param {string} id */
export function branchOff(id) {
  const copy = tree.upTo(chat.value, id);
  show(copy);
  keepChat(copy);
  openChatId.value = copy.id;
}

/** Have the open chat answered by a model; "" is whichever is loaded. @param {string} model */
export function setModel(model) {
  update(chat.value.id, (now) => ({ ...now, model }));
}

/** @param {string} text */
export function setSystem(text) {
  update(chat.value.id, (now) => ({ ...now, system: text }));
}

/** End the answers that are being written in the open chat. Whether there were any. */
export function stop() {
  const mine = [...runs.value.values()].filter((run) => run.chatId === chat.value.id);
  for (const run of mine) run.controller.abort();
  return mine.length > 0;
}

/** Ask for the answer that this message is to hold, after what it holds already. */
async function start(/** @type {string} */ chatId, /** @type {string} */ id) {
  const now = /** @type {Chat} */ (chatOf(chatId));
  const message = now.messages[id];
  const fields = { ...requestFields(), ...REPORTS, ...(now.model ? { model: now.model } : {}) };
  const request = { ...fields, ...(now.system ? { system: now.system } : {}) };
  update(chatId, (one) =>
    tree.change(one, id, { ...NOTHING_YET, request, requested: Date.now(), begun: message.text }),
  );
  const begun = message.text ? [begunMessage(message)] : [];
  const messages = [...messagesTo(now, message.parent, now.system), ...begun];
  await follow(new Run(chatId, message), { messages, ...fields });
}

/** Have an answer written, or go on with one that was begun. @param {Run} run @param {Record<string, unknown>} [body] */
async function follow(run, body) {
  runs.value = new Map(runs.value).set(run.messageId, run);
  finish(run, await receive(run, body));
}

/** What is known of an answer before it comes. @type {Partial<Message>} */
const NOTHING_YET = {
  state: "writing",
  error: undefined,
  responseId: undefined,
  finishReason: undefined,
  usage: undefined,
  timings: undefined,
  cache: undefined,
  logprobs: undefined,
  firstTokenMs: undefined,
  totalMs: undefined,
};

/** What every request of the page asks for besides its answer. */
const REPORTS = {
  stream: true,
  stream_options: { include_usage: true },
  report_queue: true,
  return_progress: true,
  explain_cache: true,
};

/** @param {Message} message */
function begunMessage({ text, reasoning }) {
  return { role: "assistant", content: text, ...(reasoning ? { reasoning_content: reasoning } : {}) };
}

/**
 * Read an answer to its end, and say how it ended.
 * @param {Run} run
 * @param {Record<string, unknown>} [body]
 * @returns {Promise<Partial<Message>>}
 */
async function receive(run, body) {
  try {
    for await (const events of run.stream.events((response) => noteBegun(run, response), body)) {
      for (const event of events) if (take(run, event)) return { state: "done" };
    }
    throw new StreamLost();
  } catch (error) {
    if (run.controller.signal.aborted) {
      run.stream.end();
      return { state: "stopped" };
    }
    checkServer();
    return { state: "failed", error: failureOf(error) };
  }
}

/** @param {unknown} error @returns {import("../shared/types.js").Failure} */
function failureOf(error) {
  if (error instanceof ApiError) return error.failure;
  const isKnown = error instanceof StreamLost && error.message;
  return new ApiError(isKnown || "The connection broke off before the answer's end.").failure;
}

/** The server took the request: its notes are shown, and the answer can be found again. */
function noteBegun(/** @type {Run} */ run, /** @type {Response} */ response) {
  run.reader.facts.notes = notesOf(response);
  if (run.stream.id) keep(run);
}

/** What the server says of a request it took: fields that do nothing, and what the chat template needed. */
function notesOf(/** @type {Response} */ response) {
  const [ignored, repairs] = ["x-ggufd-ignored", "x-ggufd-repairs"].map((name) => response.headers.get(name) ?? undefined);
  return ignored || repairs ? { ignored, repairs } : undefined;
}

/** Take one event of the stream. Whether it was the last. Throws ApiError where it tells an error. */
function take(/** @type {Run} */ run, /** @type {import("../shared/sse.js").ServerEvent} */ event) {
  if (event.comment !== undefined) {
    const place = queuePlace(event.comment);
    if (place) run.progress.value = { phase: "waiting", ...place };
    return false;
  }
  run.stream.took(event);
  if (event.data === "[DONE]") return true;
  const chunk = JSON.parse(event.data);
  const error = errorFrom(chunk, 200);
  if (error) throw error;
  run.reader.feed(chunk);
  progressed(run);
  run.grow();
  keepNow(run);
  return false;
}

/** @param {Run} run */
function progressed(run) {
  const { hasBegun, progress } = run.reader;
  if (hasBegun) {
    if (run.progress.value.phase !== "writing") run.progress.value = { phase: "writing" };
  } else if (progress) run.progress.value = { phase: "reading", done: progress.processed, total: progress.total };
}

/** Keep what there is from time to time: the page may be closed. @param {Run} run */
function keepNow(run) {
  const now = performance.now();
  if (now - run.keptAt < KEEP_MS) return;
  run.keptAt = now;
  keep(run);
}

/** Keep what there is, and what is needed to go on from there after a reload. @param {Run} run */
function keep(run) {
  const values = { ...run.reader.values, stream: run.stream.place ?? undefined, firstTokenMs: run.firstTokenMs || undefined };
  update(run.chatId, (one) => tree.change(one, run.messageId, values));
}

/** @param {Run} run @param {Partial<Message>} end */
function finish(run, end) {
  const left = new Map(runs.value);
  left.delete(run.messageId);
  const times = { totalMs: performance.now() - run.beganAt, ...(run.firstTokenMs ? { firstTokenMs: run.firstTokenMs } : {}) };
  update(run.chatId, (one) => tree.change(one, run.messageId, { ...run.reader.values, ...times, ...end, stream: undefined }));
  runs.value = left;
  // Whoever named a model may have had it loaded.
  if (chatOf(run.chatId)?.model) readFacts();
  if (!isRunning(run.chatId)) behind.delete(run.chatId);
}
