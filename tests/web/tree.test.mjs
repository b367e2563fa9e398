// The tree of a chat's messages: versions, branches, what is shown.
import assert from "node:assert/strict";
import test from "node:test";

import * as tree from "../../server/ggufd/web/chat/tree.js";

/** A chat of these texts in turn, and the ids of its messages. */
function chatOf(...texts) {
  let chat = tree.newChat(0);
  const ids = [];
  for (const [at, text] of texts.entries()) {
    const message = tree.newMessage(at % 2 ? "assistant" : "user", text);
    chat = tree.add(chat, ids.at(-1) ?? null, message);
    ids.push(message.id);
  }
  return { chat, ids };
}

const shown = (chat) => tree.path(chat).map((message) => message.text);

test("what is added is shown after its parent", () => {
  const { chat } = chatOf("a", "b", "c");
  assert.deepEqual(shown(chat), ["a", "b", "c"]);
});

test("a second answer is a version of the first, and is shown", () => {
  const { chat, ids } = chatOf("a", "b", "c");
  const other = tree.newMessage("assistant", "B");
  const changed = tree.add(chat, ids[0], other);
  assert.deepEqual(shown(changed), ["a", "B"]);
  assert.deepEqual(tree.versions(changed, other.id), { ids: [ids[1], other.id], at: 1 });
  assert.deepEqual(shown(chat), ["a", "b", "c"], "the chat before is as it was");
});

test("going back to a version shows what followed it", () => {
  const { chat, ids } = chatOf("a", "b", "c");
  const changed = tree.add(chat, ids[0], tree.newMessage("assistant", "B"));
  assert.deepEqual(shown(tree.choose(changed, ids[1])), ["a", "b", "c"]);
});

test("choosing a message deep in another branch shows all above it", () => {
  const { chat, ids } = chatOf("a", "b", "c", "d");
  const changed = tree.add(chat, null, tree.newMessage("user", "A"));
  assert.deepEqual(shown(changed), ["A"]);
  assert.deepEqual(shown(tree.choose(changed, ids[2])), ["a", "b", "c", "d"]);
});

test("a removed version gives way to its neighbour, and takes what followed along", () => {
  const { chat, ids } = chatOf("a", "b", "c");
  const other = tree.newMessage("assistant", "B");
  const changed = tree.remove(tree.add(chat, ids[0], other), other.id);
  assert.deepEqual(shown(changed), ["a", "b", "c"]);
  const bare = tree.remove(changed, ids[1]);
  assert.deepEqual(shown(bare), ["a"]);
  assert.deepEqual(Object.keys(bare.messages), [ids[0]]);
  assert.deepEqual(shown(tree.remove(bare, ids[0])), []);
});

test("a chat is named by its beginning, unless a person names it", () => {
  const { chat } = chatOf("  Tell me\nof ships ", "No.");
  assert.equal(tree.titleOf(chat), "Tell me of ships");
  assert.equal(tree.titleOf({ ...chat, title: "Ships" }), "Ships");
  assert.equal(tree.titleOf(tree.newChat()), "New chat");
  assert.ok(tree.titleOf(chatOf("x".repeat(500)).chat).length <= 61);
});

test("a search finds all words in any branch", () => {
  const { chat, ids } = chatOf("Ships", "of wood");
  const changed = tree.add(chat, ids[0], tree.newMessage("assistant", "of iron"));
  assert.ok(tree.matches(changed, "WOOD ship"));
  assert.ok(!tree.matches(changed, "glass ship"));
});
