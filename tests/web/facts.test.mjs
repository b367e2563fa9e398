import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";

import { cacheSentence, differing, placeOf } from "../../server/ggufd/web/facts/cache.js";
import { duration, moreFigures, shortFigures } from "../../server/ggufd/web/facts/figures.js";
import { asCurl, asPython, essential, literal, shortened } from "../../server/ggufd/web/facts/snippets.js";

const BASE = "http://127.0.0.1:8080";
const NASTY = `it's "quoted" $HOME \`id\` \\n \\ \u0000\u001b\u2028 'END'\nEND\n{x} %s 你好 😀`;
const BODY = {
  model: "any",
  messages: [{ role: "user", content: NASTY }],
  stream: true,
  stream_options: { include_usage: true },
  explain_cache: true,
  temperature: 0,
  top_k: 3,
  ignore_eos: false,
  grammar: null,
};

test("what only delivers the answer is left out", () => {
  assert.deepEqual(Object.keys(essential(BODY)), [
    "model",
    "messages",
    "temperature",
    "top_k",
    "ignore_eos",
    "grammar",
  ]);
});

test("a shell hands curl exactly the body", () => {
  const command = `curl() { cat; }\n${asCurl("http://o'host", BODY, false)}`;
  const sent = execFileSync("sh", ["-c", command], { encoding: "utf8" });
  assert.deepEqual(JSON.parse(sent), essential(BODY));
  const named = `curl() { printf '%s\\n' "$1"; }\n${asCurl("http://o'host", BODY, false)}`;
  assert.equal(execFileSync("sh", ["-c", named], { encoding: "utf8" }), "http://o'host/v1/chat/completions\n");
});

test("Python reads the values as they are", () => {
  const value = { ...BODY, nested: [[1, -2.5, 1e21, true, null], {}, []], long: "x".repeat(200) };
  const program = `import json, sys\njson.dump(${literal(value)}, sys.stdout)`;
  assert.deepEqual(JSON.parse(execFileSync("python3", ["-"], { input: program, encoding: "utf8" })), value);
});

test("OpenAI's client gets its arguments, and the rest as extra_body", () => {
  const program = asPython(BASE, BODY, false);
  assert.match(program, /^ {4}temperature=0,$/m);
  assert.match(program, /extra_body=\{"top_k": 3, "ignore_eos": False, "grammar": None\}/);
  assert.match(program, /base_url="http:\/\/127\.0\.0\.1:8080\/v1", api_key="none"/);
  assert.match(program, /print\(answer\.choices\[0\]\.message\.content\)/);
  assert.doesNotMatch(asPython(BASE, { messages: [] }, false), /extra_body/);
});

test("a key is a variable of the environment, never text", () => {
  assert.match(asCurl(BASE, BODY, true), /-H "Authorization: Bearer \$GGUFD_API_KEY" \\$/m);
  assert.match(asPython(BASE, BODY, true), /^import os$[^]*api_key=os\.environ\["GGUFD_API_KEY"\]/m);
  assert.doesNotMatch(asCurl(BASE, BODY, false), /Authorization/);
});

const MESSAGES = [{ role: "system" }, { role: "user" }, { role: "assistant" }, { role: "user" }];
const report = (more) => ({ reused: 0, of: 34, from: null, computed_s: 0.47, first_difference: null, ...more });

test("an empty cache is said in a sentence", () => {
  const said = "Nothing of this prompt was in the cache: all 34 tokens were computed in 470 ms.";
  assert.equal(cacheSentence(report({}), MESSAGES), said);
});

test("a whole prompt from the cache has its last token computed", () => {
  assert.equal(
    cacheSentence(report({ reused: 33, from: "same_slot", computed_s: 0.0258 }), MESSAGES),
    "33 of the prompt’s 34 tokens came from the cache (still in their slot); " +
      "the last one is always computed, which took 26 ms.",
  );
});

test("a prompt that goes on has new tokens", () => {
  assert.equal(
    cacheSentence(report({ reused: 20, from: "restored" }), MESSAGES),
    "20 of the prompt’s 34 tokens came from the cache (restored from RAM or disk); " +
      "the other 14 were new and computed in 470 ms.",
  );
});

test("a difference is pointed at", () => {
  const first_difference = {
    token: 26,
    character: 11,
    message: 1,
    role: "user",
    prompt: " Face<|im_end|>\n<|im_start|>user\nHello there dear friend, what a day<|im_end|>\n<|im_start|>assistant\n",
    cached: " Face<|im_end|>\n<|im_start|>user\nHello there my friend<|im_end|>\n<|im_start|>assistant\nHello there!",
  };
  assert.equal(
    cacheSentence(report({ reused: 26, of: 38, from: "same_slot", computed_s: 0.2, first_difference }), MESSAGES),
    "26 of the prompt’s 38 tokens came from the cache (still in their slot); the other 12 were computed in 200 ms, " +
      "because your message 1 has “dear friend, what a day” where the cache had “my friend”.",
  );
});

test("what the template writes before a message is told from the message", () => {
  const first_difference = {
    token: 39,
    character: 0,
    message: 0,
    role: "user",
    prompt: "Tools: }} To call",
    cached: "Tools: x",
  };
  const sentence = cacheSentence(report({ reused: 39, of: 121, first_difference }), [
    { role: "user", content: "Weather?" },
  ]);
  assert.match(
    sentence,
    /because what the template writes before your message has “}} To call” where the cache had “x”\.$/,
  );
});

test("what others had in the cache is not shown", () => {
  const first_difference = { token: 3, character: 0, message: 0, role: "system", prompt: "You are", cached: null };
  assert.match(
    cacheSentence(report({ reused: 3, first_difference }), MESSAGES),
    /because the system prompt differs from what the cache had, which is somebody else’s and not shown\.$/,
  );
});

test("messages are counted by who wrote them", () => {
  assert.equal(placeOf(3, "user", MESSAGES), "your message 2");
  assert.equal(placeOf(2, "assistant", MESSAGES), "the answer");
  assert.equal(placeOf(null, null, MESSAGES), "the text around the messages");
  assert.equal(placeOf(4, "tool", MESSAGES), "message 5 (tool)");
});

test("texts are cut at whole words and characters", () => {
  assert.deepEqual(differing("one friend", "one friends"), ["“friend”", "“friends”"]);
  assert.deepEqual(differing("same", "same and more"), ["“same”", "“same and more”"]);
  assert.deepEqual(differing("a b", "a "), ["“b”", ""]);
  assert.deepEqual(differing("Hi.<|im_end|>\n", "Hi. You<|im_end|>\n"), ["", "“You”"]);
  const [long] = differing("😀".repeat(100), "x");
  assert.equal(Array.from(long).length, 63);
});

test("durations are read at a glance", () => {
  assert.deepEqual([0.0042, 0.25, 3.21, 75].map(duration), ["4.2 ms", "250 ms", "3.2 s", "1 min 15 s"]);
});

const TIMINGS = {
  cache_n: 26,
  prompt_n: 12,
  prompt_ms: 207,
  prompt_per_second: 57.8,
  predicted_n: 8,
  predicted_ms: 224,
  predicted_per_second: 31.2,
  queue_ms: 0.27,
};

test("the short line has what was asked for, from timings alone too", () => {
  assert.deepEqual(shortFigures({ timings: TIMINGS, firstTokenMs: 251 }), [
    "8 tokens",
    "31.2 tokens/s",
    "first token after 251 ms",
    "26 of 38 prompt tokens cached",
  ]);
  assert.deepEqual(shortFigures({}), []);
});

test("more is told where there is something to tell", () => {
  assert.deepEqual(moreFigures({ timings: TIMINGS, finishReason: "length" }), [
    ["Ended", "at the limit: the longest answer, or the context"],
    ["Prompt", "12 tokens at 57.8 tokens/s"],
  ]);
  const more = Object.fromEntries(
    moreFigures({ timings: { ...TIMINGS, queue_ms: 1500, banned_rewinds: 2 }, notes: { ignored: "top_a" } }),
  );
  assert.deepEqual(
    [more.Waited, more["Taken back"], more["Not done here"]],
    ["1.5 s", "2 times, for banned strings", "top_a"],
  );
});

test("images of a request are cut short where it is shown, and nothing else", () => {
  const url = `data:image/png;base64,${"A".repeat(5000)}`;
  const content = [{ type: "image_url", image_url: { url } }, { type: "text", text: "x".repeat(500) }];
  for (const write of [asCurl, asPython]) {
    const text = write(BASE, { messages: [{ role: "user", content }] }, false);
    const shown = shortened(text);
    assert.ok(text.includes(url));
    assert.ok(shown.length < 1500);
    assert.ok(shown.includes(`data:image/png;base64,${"A".repeat(60)}…"`));
    assert.ok(shown.includes("x".repeat(500)));
    assert.equal(shortened(shown.replaceAll("…", "")), shown.replaceAll("…", ""));
  }
});
