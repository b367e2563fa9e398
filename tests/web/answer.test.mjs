// An answer out of its chunks; a stream of bytes out of any pieces.
import assert from "node:assert/strict";
import test from "node:test";

import { AnswerReader, queuePlace } from "../../server/ggufd/web/chat/answer.js";
import { EventParser, eventsOf } from "../../server/ggufd/web/shared/sse.js";

const chunk = (delta, more = {}, choice = {}) => ({
  id: "chatcmpl-1",
  model: "m",
  choices: [{ index: 0, delta, logprobs: null, finish_reason: null, ...choice }],
  ...more,
});

test("texts are joined, and what the end says is kept", () => {
  const reader = new AnswerReader({ text: "Once" });
  reader.feed(chunk({ role: "assistant", content: "" }));
  assert.equal(reader.hasBegun, false);
  reader.feed(chunk({ reasoning_content: "hm" }));
  reader.feed(chunk({ content: " upon" }, {}, { logprobs: { content: [{ token: " upon", logprob: -1 }] } }));
  reader.feed(chunk({}, { timings: { predicted_n: 1 }, cache: { reused: 2 } }, { finish_reason: "stop" }));
  reader.feed({ choices: [], usage: { completion_tokens: 1 } });
  assert.deepEqual(reader.values, {
    text: "Once upon",
    reasoning: "hm",
    logprobs: [{ token: " upon", logprob: -1 }],
    responseId: "chatcmpl-1",
    model: "m",
    timings: { predicted_n: 1 },
    cache: { reused: 2 },
    finishReason: "stop",
    usage: { completion_tokens: 1 },
  });
});

test("tool calls come in pieces", () => {
  const reader = new AnswerReader({ text: "" });
  const call = (index, more, id) => chunk({ tool_calls: [{ index, ...(id ? { id, type: "function" } : {}), function: more }] });
  reader.feed(call(0, { name: "clock", arguments: "" }, "call_1"));
  reader.feed(call(0, { arguments: '{"a"' }));
  reader.feed(call(1, { name: "map", arguments: "{}" }, "call_2"));
  reader.feed(call(0, { arguments: ":1}" }));
  assert.deepEqual(reader.values.toolCalls, [
    { id: "call_1", name: "clock", arguments: '{"a":1}' },
    { id: "call_2", name: "map", arguments: "{}" },
  ]);
});

test("progress of the prompt is known until the answer begins", () => {
  const reader = new AnswerReader({ text: "" });
  reader.feed({ choices: [], prompt_progress: { total: 9, cache: 0, processed: 4 } });
  assert.equal(reader.progress.processed, 4);
});

test("a place in the queue is read out of its comment", () => {
  assert.deepEqual(queuePlace("queue position=2 eta_s=1.5"), { position: 2, etaS: 1.5 });
  assert.equal(queuePlace("ping"), null);
});

const SAID = ": ping\n\nid: 7\nevent: note\ndata: a\ndata: ü€\n\ndata: {}\r\n\r\ndata: [DONE]\n\n";
const EVENTS = [
  { data: "", event: "", id: "", comment: "ping" },
  { data: "a\nü€", event: "note", id: "7" },
  { data: "{}", event: "", id: "7" },
  { data: "[DONE]", event: "", id: "7" },
];

test("events are the same in whatever pieces they come", async () => {
  const bytes = new TextEncoder().encode(SAID);
  for (const length of [1, 2, 5, bytes.length]) {
    const pieces = [];
    for (let at = 0; at < bytes.length; at += length) pieces.push(bytes.slice(at, at + length));
    const found = [];
    for await (const events of eventsOf(new Response(ReadableStream.from(pieces)))) found.push(...events);
    assert.deepEqual(found, EVENTS);
  }
});

test("an event that is not ended is none", () => {
  assert.deepEqual(new EventParser().feed("data: half"), []);
});
