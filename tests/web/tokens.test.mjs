import assert from "node:assert/strict";
import { test } from "node:test";

import {
  align,
  isMark,
  isPart,
  label,
  percent,
  prefixWith,
  sameToken,
  shade,
  shownText,
  textOf,
  tokensWith,
} from "../../server/ggufd/web/tokens/entries.js";

const bytes = (text) => [...new TextEncoder().encode(text)];
const entry = (text, share = 0.5) => ({ token: text, logprob: Math.log(share), bytes: bytes(text) });
const part = (...numbers) => ({ token: "", logprob: -1, bytes: numbers });

test("likely tokens are light, unlikely ones dark", () => {
  assert.deepEqual(
    [1, 0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.001].map((share) => shade(entry("a", share))),
    [0, 0, 1, 2, 3, 4, 5, 6],
  );
  assert.equal(shade({ token: "a", logprob: -9999 }), 6);
  assert.equal(shade({ token: "a", logprob: 1e-9 }), 0);
});

test("shares are written short", () => {
  assert.deepEqual(
    [1, 0.423, 0.042, 0.0001].map((share) => percent(entry("a", share))),
    ["100 %", "42 %", "4.2 %", "< 0.1 %"],
  );
});

test("line ends are seen, and bytes of no character are numbers", () => {
  assert.equal(label(entry(".\n\n")), ".⏎\n⏎\n");
  assert.equal(label(part(240, 159)), "‹F0›‹9F›");
  assert.equal(isPart(part(240, 159)), true);
  assert.equal(isPart(entry("你")), false);
  assert.equal(label({ token: "old", logprob: 0, bytes: null }), "old");
});

test("a character in parts is shown by the part that completes it", () => {
  const parts = [part(240, 159), part(145), { token: "👌", logprob: -1, bytes: [140] }];
  assert.deepEqual(parts.map(shownText), ["·", "·", "👌"]);
  assert.equal(shownText(entry("a\t")), "a⇥");
});

test("texts are those of the bytes, characters in parts too", () => {
  assert.equal(textOf([entry("a"), part(240, 159), part(145), part(140)]), "a👌");
});

test("tokens lie at the end of what was continued", () => {
  const entries = [entry(" two"), entry(" three")];
  assert.deepEqual(align("one two three", entries), { before: "one", first: 0, end: 2, after: "" });
  assert.deepEqual(align(" two three", entries), { before: "", first: 0, end: 2, after: "" });
});

test("reasoning before, and a call behind, are not the content", () => {
  const entries = ["<think>", "hm", "</think>", "\n\n", "Yes", ".", "<tool_call>", "{}"].map((text) => entry(text));
  assert.deepEqual(align("Yes.", entries), { before: "", first: 4, end: 6, after: "" });
  assert.equal(align("", entries), null);
  assert.equal(align("edited by hand", entries), null);
});

test("an answer may have been gone on with without probabilities", () => {
  assert.deepEqual(align("one two", [entry("one")]), { before: "", first: 0, end: 1, after: " two" });
});

test("the tokens before an alternative stay known, and it has those beside it", () => {
  const entries = [entry("<think>"), { ...entry("Hello"), top_logprobs: [entry("Hi", 0.2)] }, entry("!")];
  const found = tokensWith(align("Hello!", entries), entries, 1, entry("Hi", 0.2));
  assert.deepEqual(found, [{ ...entry("Hi", 0.2), top_logprobs: [entry("Hi", 0.2)] }]);
  assert.deepEqual(
    tokensWith(align("<think>Hello!", entries), entries, 1, entry("Hi")).map((one) => one.token),
    ["<think>", "Hi"],
  );
});

test("an answer goes on from an alternative", () => {
  const entries = [entry("Hello"), entry(" there"), entry("!")];
  const alignment = align("Hello there!", entries);
  assert.equal(prefixWith(alignment, entries, 1, entry(" friend")), "Hello friend");
  assert.equal(prefixWith(alignment, entries, 0, entry("Hi")), "Hi");
  assert.equal(prefixWith({ ...alignment, before: "So: " }, entries, 1, entry(" you")), "So: Hello you");
  assert.equal(prefixWith(alignment, entries, 1, entry("<|im_end|>")), null);
});

test("an answer cannot go on from half a character, but from what completes one", () => {
  const entries = [entry("a"), part(240, 159), part(145), part(140)];
  const alignment = align("a👌", entries);
  assert.equal(prefixWith(alignment, entries, 1, part(226)), null);
  assert.equal(prefixWith(alignment, entries, 1, entry("b")), "ab");
  assert.equal(prefixWith(alignment, entries, 2, part(152)), null);
  assert.equal(prefixWith(alignment, entries, 3, part(141)), "a👍");
  assert.equal(prefixWith(alignment, entries, 3, entry("x")), null);
});

test("nothing goes on from within the reasoning", () => {
  const entries = ["<think>", "hm", "</think>", "Yes"].map((text) => entry(text));
  const alignment = align("Yes", entries);
  assert.equal(prefixWith(alignment, entries, 1, entry("oh")), null);
  assert.equal(prefixWith(alignment, entries, 3, entry("No")), "No");
});

test("marks of the template are told from text", () => {
  assert.deepEqual(
    ["<|im_end|>", "</s>", "<｜end▁of▁sentence｜>", "<b>", "|>", "<end_of_turn>"].map((token) =>
      isMark({ token, logprob: 0 }),
    ),
    [true, true, true, false, false, true],
  );
  assert.equal(sameToken(entry("a"), entry("a", 0.1)), true);
  assert.equal(sameToken(part(240), part(240, 159)), false);
});
