// An answer over several connections: what is asked of the server, and what comes of it.
import assert from "node:assert/strict";
import test from "node:test";

import { AnswerReader } from "../../server/ggufd/web/chat/answer.js";
import { AnswerStream, StreamLost } from "../../server/ggufd/web/chat/stream.js";

const event = (id, text) => `id: ${id}\ndata: ${text}\n\n`;
const refusal = (status, param = null) => Object.assign(new Error("refused"), { status, param });

/** A response of these pieces, whose connection then ends, or breaks off. */
function response(pieces, { breaks = false, id = "chatcmpl-1" } = {}) {
  const bytes = new TextEncoder();
  const body = new ReadableStream({
    pull(stream) {
      const piece = pieces.shift();
      if (piece !== undefined) stream.enqueue(bytes.encode(piece));
      else if (breaks) stream.error(new TypeError("network error"));
      else stream.close();
    },
  });
  return new Response(body, { headers: id ? { "x-ggufd-stream": id } : {} });
}

/** A server that answers each call by the next of these, and what it was asked. */
function server(...answers) {
  const asked = [];
  const call = async (path, options = {}) => {
    asked.push([options.method ?? (options.body ? "POST" : "GET"), path, options.headers?.["Last-Event-ID"]]);
    const answer = await answers.shift();
    if (answer instanceof Error) throw answer;
    return answer;
  };
  return { call, asked };
}

/** What the events say, up to "[DONE]", each taken in. */
async function read(stream, body) {
  const told = [];
  for await (const events of stream.events(() => told.push(`begun ${stream.id}`), body)) {
    for (const one of events) {
      stream.took(one);
      if (one.data === "[DONE]") return told;
      told.push(one.data);
    }
  }
  return told;
}

const never = () => new AbortController().signal;
const POST = ["POST", "v1/chat/completions", undefined];

test("after a connection that broke off it goes on after the last event that was taken in", async () => {
  const { call, asked } = server(
    response([event(0, "a") + event(1, "b"), "id: 2\ndata: half"], { breaks: true }),
    response([event(2, "c")]),
    response([event(3, "[DONE]")]),
  );
  const stream = new AnswerStream(call, never());
  assert.deepEqual(await read(stream, {}), ["begun chatcmpl-1", "a", "b", "c"]);
  assert.deepEqual(asked, [POST, ["GET", "v1/streams/chatcmpl-1", "1"], ["GET", "v1/streams/chatcmpl-1", "2"]]);
  assert.deepEqual(stream.place, { id: "chatcmpl-1", last: "3" });
});

test("a stream that was begun before is gone on with from its place", async () => {
  const { call, asked } = server(response([event(8, "b") + event(9, "[DONE]")]));
  assert.deepEqual(await read(new AnswerStream(call, never(), { id: "x", last: "7" })), ["b"]);
  assert.deepEqual(asked, [["GET", "v1/streams/x", "7"]]);
});

test("without a place yet it is read from the beginning", async () => {
  const { call, asked } = server(response([": ping\n\n" + event(0, "a") + event(1, "[DONE]")]));
  assert.deepEqual(await read(new AnswerStream(call, never(), { id: "x", last: "" })), ["", "a"]);
  assert.deepEqual(asked, [["GET", "v1/streams/x", undefined]]);
});

test("while the server is away it is asked again", async () => {
  const { call, asked } = server(response([event(0, "a")]), refusal(0), refusal(502), response([event(1, "[DONE]")]));
  assert.deepEqual(await read(new AnswerStream(call, never()), {}), ["begun chatcmpl-1", "a"]);
  assert.equal(asked.length, 4);
});

for (const [name, gone] of Object.entries({ forgotten: refusal(404), "fallen out": refusal(410), over: new Response(null, { status: 204 }) })) {
  test(`what is ${name} is lost`, async () => {
    const { call } = server(gone);
    await assert.rejects(read(new AnswerStream(call, never(), { id: "x", last: "7" })), StreamLost);
  });
}

test("an error that is no absence is thrown", async () => {
  const wrong = refusal(401);
  await assert.rejects(read(new AnswerStream(server(wrong).call, never()), {}), wrong);
});

test("a server that keeps no streams is asked for an ordinary one", async () => {
  const { call, asked } = server(refusal(400, "resumable"), response([event(0, "a")], { id: "" }));
  const stream = new AnswerStream(call, never());
  await assert.rejects(read(stream, {}), StreamLost);
  assert.deepEqual(asked, [POST, POST]);
  assert.equal(stream.place, null);
});

test("who stops ends the answer at the server", async () => {
  const stopping = new AbortController();
  const { call, asked } = server(response([event(0, "a")]), new Response());
  const stream = new AnswerStream(call, stopping.signal);
  for await (const _ of stream.events(() => {}, {})) break;
  await stream.end();
  assert.deepEqual(asked[1], ["DELETE", "v1/streams/chatcmpl-1", undefined]);
});

test("also who stops before the answer has a name", async () => {
  const stopping = new AbortController();
  let answer;
  const { call, asked } = server(new Promise((resolve) => (answer = resolve)), new Response());
  const reading = read(new AnswerStream(call, stopping.signal), {});
  await Promise.resolve();
  stopping.abort();
  await assert.rejects(reading, { name: "AbortError" });
  assert.deepEqual(asked, [POST]);
  answer(response([]));
  await new Promise((resolve) => setTimeout(resolve));
  assert.deepEqual(asked[1], ["DELETE", "v1/streams/chatcmpl-1", undefined]);
});

test("a reader that is taken up again goes on where it was", () => {
  const chunk = (delta, more = {}) => ({ id: "c", model: "m", choices: [{ index: 0, delta, finish_reason: null }], ...more });
  const call = (text) => chunk({ tool_calls: [{ index: 0, function: { arguments: text } }] });
  const chunks = [
    chunk({ content: " upon" }),
    chunk({ tool_calls: [{ index: 0, id: "call_1", function: { name: "clock", arguments: "" } }] }),
    call("{"),
    call("}"),
    chunk({}, { timings: { predicted_n: 4 } }),
  ];
  const begun = { text: "Once", begun: "Once" };
  const whole = new AnswerReader(begun);
  chunks.forEach((one) => whole.feed(one));
  for (let at = 0; at <= chunks.length; at++) {
    const before = new AnswerReader(begun);
    chunks.slice(0, at).forEach((one) => before.feed(one));
    const after = AnswerReader.resumed({ ...begun, ...before.values });
    assert.equal(after.hasBegun, before.hasBegun);
    chunks.slice(at).forEach((one) => after.feed(one));
    assert.deepEqual(after.values, whole.values);
  }
});
