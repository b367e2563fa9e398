// The models that a chat may choose: which they are, and what is said of each.
import assert from "node:assert/strict";
import test from "node:test";

import { queuePlace } from "../../server/ggufd/web/chat/answer.js";
import { chatModels, lineOf, noteOn } from "../../server/ggufd/web/chat/models.js";
import * as tree from "../../server/ggufd/web/chat/tree.js";

const card = (id, value, more = {}) => ({ id, status: { value }, capabilities: ["completion"], may_load: true, load_s: 6.2, ...more });

const CARDS = [
  card("here", "loaded"),
  card("other", "unloaded"),
  card("slow", "unloaded", { load_s: 240 }),
  card("coming", "loading"),
  card("broken", "unloaded", { status: { value: "unloaded", failed: true, reason: "its tensors are missing." } }),
  card("forbidden", "unloaded", { may_load: false }),
  card("vectors", "loaded", { capabilities: ["embedding"] }),
  card("far", "unloaded", { capabilities: null, load_s: undefined }),
  { id: "here+adapter" },
];

test("models that write text can be chosen, and those of which nothing is known", () => {
  assert.deepEqual(
    chatModels(CARDS).map(({ id }) => id),
    ["here", "other", "slow", "coming", "broken", "forbidden", "far"],
  );
});

test("a server with one model says nothing of states, and gives no choice", () => {
  assert.deepEqual(chatModels([{ id: "one", object: "model" }, { id: "one+lora" }]), []);
});

test("each line tells the state, and how long a load takes", () => {
  assert.deepEqual(chatModels(CARDS).map(lineOf), [
    "here (loaded)",
    "other (loads in 6 s)",
    "slow (loads in 4 min)",
    "coming (loading)",
    "broken (could not be loaded)",
    "forbidden (not loaded, not for this key)",
    "far",
  ]);
});

test("a note stands where the chosen model will not answer at once", () => {
  const models = chatModels(CARDS);
  assert.equal(noteOn(models, ""), null);
  assert.equal(noteOn(models, "here"), null);
  assert.deepEqual(noteOn(models, "other"), { text: "other is loaded when you send, which takes about 6 s.", isBad: false });
  assert.deepEqual(noteOn(models, "far"), { text: "far is loaded when you send.", isBad: false });
  assert.match(noteOn(models, "coming").text, /is being loaded/);
  assert.deepEqual(noteOn(models, "broken"), { text: "broken could not be loaded: its tensors are missing.", isBad: true });
  assert.match(noteOn(models, "forbidden").text, /this key may not have it loaded/);
  assert.match(noteOn(models, "gone").text, /This server has no model gone/);
});

test("the queue's comment tells which model is waited for", () => {
  const comment = "queue position=1 eta_s=12.0 waiting for model a, b 7B, 12 s";
  assert.deepEqual(queuePlace(comment), { position: 1, etaS: 12, model: "a, b 7B" });
  assert.deepEqual(queuePlace("queue position=2 eta_s=0.5"), { position: 2, etaS: 0.5 });
});

test("a chat from here keeps the model", () => {
  const message = tree.newMessage("user", "a");
  const chat = { ...tree.add(tree.newChat(0), null, message), model: "other" };
  assert.equal(tree.upTo(chat, message.id).model, "other");
  assert.equal("model" in tree.upTo({ ...chat, model: undefined }, message.id), false);
});
