// What is sent of an image: its size and its format.
import assert from "node:assert/strict";
import test from "node:test";

import { fitted, isImage, isSmall, MAX_BYTES, MAX_SIDE } from "../../server/ggufd/web/chat/image_files.js";

test("an image fits into the longest side and keeps its shape", () => {
  assert.deepEqual(fitted(64, 32), { width: 64, height: 32 });
  assert.deepEqual(fitted(4000, 3000), { width: MAX_SIDE, height: 1200 });
  assert.deepEqual(fitted(3000, 4000), { width: 1200, height: MAX_SIDE });
  assert.deepEqual(fitted(100_000, 1), { width: MAX_SIDE, height: 1 });
});

test("small files of a format that is taken are sent as they are", () => {
  assert.ok(isSmall({ type: "image/png", size: 10 }, MAX_SIDE, 10));
  assert.ok(isSmall({ type: "image/jpeg", size: MAX_BYTES }, 10, 10));
  for (const [type, size, side] of [
    ["image/gif", 10, 10],
    ["image/svg+xml", 10, 10],
    ["image/png", MAX_BYTES + 1, 10],
    ["image/png", 10, MAX_SIDE + 1],
  ]) {
    assert.ok(!isSmall({ type, size }, side, 10), type);
  }
});

test("a message holds images of the formats that the server takes, and nothing else", () => {
  assert.ok(isImage("data:image/png;base64,AAAA"));
  for (const other of ["", null, {}, "https://example.com/a.png", "data:image/svg+xml;base64,AAAA", 'data:image/png;base64,"']) {
    assert.ok(!isImage(other));
  }
});
