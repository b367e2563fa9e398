// A growing text in blocks: what is finished never changes, and no block is long.
import assert from "node:assert/strict";
import test from "node:test";

import { BlockSplitter } from "../../server/ggufd/web/chat/blocks.js";

/** The blocks of a text that comes in pieces of this length. */
function blocksOf(text, length = text.length || 1) {
  const splitter = new BlockSplitter();
  const found = [];
  for (let at = 0; at < text.length; at += length) found.push(...splitter.feed(text.slice(at, at + length)));
  return splitter.open ? [...found, splitter.open] : found;
}

const texts = (blocks) => blocks.map((block) => block.text.trim());
const kinds = (blocks) => blocks.map((block) => block.kind);

test("paragraphs are blocks of their own, a list is one", () => {
  const text = "One\nline.\n\nTwo.\n\n- a\n\n- b\n  more\n\nThree.\n";
  assert.deepEqual(texts(blocksOf(text)), ["One\nline.", "Two.", "- a\n\n- b\n  more", "Three."]);
});

test("code is a block with its language, blank lines and all", () => {
  const blocks = blocksOf("Look:\n```python\na = 1\n\nb = `2`\n```\nDone.");
  assert.deepEqual(kinds(blocks), ["markdown", "code", "markdown"]);
  assert.equal(blocks[1].text, "a = 1\n\nb = `2`\n");
  assert.equal(blocks[1].lang, "python");
  assert.equal(blocks[2].text, "Done.");
});

test("a fence ends only at a fence of its kind that is as long", () => {
  const blocks = blocksOf("````md\n```js\n1\n```\n~~~~\n````\nafter");
  assert.deepEqual(texts(blocks), ["```js\n1\n```\n~~~~", "after"]);
});

test("code that has not ended is open", () => {
  const [block] = blocksOf("```js\nlet a");
  assert.deepEqual(block, { kind: "code", text: "let a", lang: "js", continues: false });
});

test("however a text is cut into pieces, its blocks are the same", () => {
  const text = `# Title\n\nText *one*.\n\n1. a\n2. b\n\n~~~\ncode\n\n\`\`\`\n~~~\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n${"long ".repeat(3000)}\n\nend`;
  for (const length of [1, 3, 7, 100]) assert.deepEqual(blocksOf(text, length), blocksOf(text));
});

test("no block is long, nothing is lost, and what has no end is plain", () => {
  for (const text of ["a".repeat(1e6), "a b ".repeat(1e5), "```\n" + "x".repeat(1e5), "line\n".repeat(1e5), "- a\n".repeat(1e5)]) {
    const blocks = blocksOf(text, 9999);
    assert.ok(Math.max(...blocks.map((block) => block.text.length)) <= 6000);
    const whole = blocks.map((block) => block.text).join("");
    assert.equal(whole, text.replace("```\n", ""));
  }
  assert.ok(kinds(blocksOf("a".repeat(1e5))).every((kind) => kind === "plain"));
});

test("a megabyte is read in a moment", () => {
  const begin = performance.now();
  const splitter = new BlockSplitter();
  for (let i = 0; i < 1e4; i++) splitter.feed("a".repeat(100));
  assert.ok(performance.now() - begin < 2000);
});

test("after a line that was cut, Markdown is Markdown again", () => {
  const blocks = blocksOf(`${"a".repeat(7000)}\n\n**b**\n`);
  assert.deepEqual(kinds(blocks), ["plain", "plain", "markdown"]);
});
