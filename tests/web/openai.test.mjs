// Chats in OpenAI's form: sent, exported, imported.
import assert from "node:assert/strict";
import test from "node:test";

import { exported, imported, NotAChat } from "../../server/ggufd/web/chat/chat_files.js";
import { messagesTo, requestOf } from "../../server/ggufd/web/chat/openai.js";
import * as tree from "../../server/ggufd/web/chat/tree.js";

function branched() {
  let chat = { ...tree.newChat(0), system: "Be brief." };
  const question = tree.newMessage("user", "Ships?", { created: 10 });
  chat = tree.add(chat, null, question);
  const first = tree.newMessage("assistant", "Wood.", { created: 20, reasoning: "hm", usage: { completion_tokens: 2 } });
  chat = tree.add(chat, question.id, first);
  chat = tree.add(chat, first.id, tree.newMessage("user", "More", { created: 30 }));
  const second = tree.newMessage("assistant", "Iron.", { created: 40 });
  return { chat: tree.add(chat, question.id, second), question, first, second };
}

const shown = (chat) => tree.path(chat).map((message) => message.text);

test("what is sent is the system prompt and the way to the message", () => {
  const { chat, first } = branched();
  assert.deepEqual(messagesTo(chat, first.id, chat.system), [
    { role: "system", content: "Be brief." },
    { role: "user", content: "Ships?" },
    { role: "assistant", content: "Wood.", reasoning_content: "hm" },
  ]);
});

test("a request is made again as it was sent, whatever was edited since", () => {
  const { chat, question, second } = branched();
  let now = tree.change(chat, question.id, { text: "Boats?", edits: [{ text: "Ships?", until: 500 }] });
  now = tree.change(now, second.id, { request: { seed: 1, system: "Be kind." }, requested: 400, begun: "I" });
  const system = { role: "system", content: "Be kind." };
  const begun = { role: "assistant", content: "I" };
  assert.deepEqual(requestOf(now, now.messages[second.id]), {
    messages: [system, { role: "user", content: "Ships?" }, begun],
    seed: 1,
  });
  now = tree.change(now, second.id, { requested: 600, begun: "" });
  assert.deepEqual(requestOf(now, now.messages[second.id]).messages, [system, { role: "user", content: "Boats?" }]);
});

test("an exported chat holds what is shown in OpenAI's form, and comes back with every branch", () => {
  const { chat, first } = branched();
  const file = JSON.parse(JSON.stringify(exported(chat)));
  assert.deepEqual(file.messages.map((one) => one.content), ["Be brief.", "Ships?", "Iron."]);
  const [back] = imported(file);
  assert.notEqual(back.id, chat.id);
  assert.deepEqual([back.system, shown(back)], ["Be brief.", ["Ships?", "Iron."]]);
  const other = tree.versions(back, tree.path(back)[1].id).ids[0];
  assert.deepEqual(shown(tree.choose(back, other)).slice(0, 2), ["Ships?", "Wood."]);
  assert.equal(Object.keys(back.messages).length, 4);
  assert.deepEqual(back.messages[other].usage, first.usage);
});

test("a list of messages from anywhere is a chat", () => {
  const call = { id: "c", type: "function", function: { name: "f", arguments: "{}" } };
  const [chat] = imported([
    { role: "developer", content: "Be brief." },
    { role: "user", content: [{ type: "text", text: "Hello" }, { type: "text", text: "!" }] },
    { role: "assistant", content: null, tool_calls: [call] },
    { role: "tool", tool_call_id: "c", content: "4" },
  ]);
  assert.equal(chat.system, "Be brief.");
  assert.deepEqual(shown(chat), ["Hello!", "", "4"]);
  assert.deepEqual(messagesTo(chat, tree.last(chat).id, "")[1].tool_calls, [call]);
});

test("several chats in one file", () => {
  const one = { messages: [{ role: "user", content: "a" }] };
  assert.equal(imported({ chats: [one, one] }).length, 2);
  assert.equal(imported([one, one]).length, 2);
});

test("what is no chat is refused with a reason", () => {
  const broken = exported(branched().chat);
  broken.ggufd.messages.reverse();
  for (const data of [null, 1, {}, { messages: 1 }, { messages: [{ role: "robot", content: "" }] }, { messages: [null] }, broken]) {
    assert.throws(() => imported(data), NotAChat);
  }
});

test("fields of a file that are not what they must be are left out", () => {
  const file = JSON.parse(JSON.stringify(exported(branched().chat)));
  Object.assign(file.ggufd.messages[1], { usage: 5, toolCalls: "x", logprobs: [{ token: 1 }], error: {}, model: "m", evil: 1 });
  const [chat] = imported(file);
  const found = Object.values(chat.messages).find((message) => message.text === "Wood.");
  assert.deepEqual([found.usage, found.toolCalls, found.logprobs, found.error], [undefined, undefined, undefined, undefined]);
  assert.deepEqual([found.model, found.reasoning, "evil" in found], ["m", "hm", false]);
});

test("names in a file reach no further than the chat", () => {
  const file = exported(branched().chat);
  file.ggufd.messages[0].id = "__proto__";
  for (const one of file.ggufd.messages) if (one.parent === tree.path(branched().chat)[0].id) one.parent = "__proto__";
  file.ggufd.messages = file.ggufd.messages.slice(0, 1);
  const [chat] = imported(file);
  assert.deepEqual(shown(chat), ["Ships?"]);
  assert.equal({}.text, undefined);
});

const RED = "data:image/png;base64,iVBORw0KGgo=";
const BLUE = "data:image/jpeg;base64,/9j/4AAQ";

test("images stand before the text of their message, and alone where there is none", () => {
  const message = tree.newMessage("user", "What is it?", { images: [RED, BLUE] });
  let chat = tree.add(tree.newChat(), null, message);
  const [sent] = messagesTo(chat, message.id, "");
  assert.deepEqual(sent.content, [
    { type: "image_url", image_url: { url: RED } },
    { type: "image_url", image_url: { url: BLUE } },
    { type: "text", text: "What is it?" },
  ]);
  chat = tree.change(chat, message.id, { text: "" });
  assert.equal(messagesTo(chat, message.id, "")[0].content.length, 2);
  assert.equal(tree.titleOf(chat), "Image");
});

test("images are exported in OpenAI's form and come back, from branches and from plain messages", () => {
  const chat = tree.add(tree.newChat(), null, tree.newMessage("user", "What is it?", { images: [RED] }));
  const file = JSON.parse(JSON.stringify(exported(chat)));
  assert.equal(file.messages[0].content[0].image_url.url, RED);
  for (const data of [file, { messages: file.messages }]) {
    const [message] = tree.path(imported(data)[0]);
    assert.deepEqual([message.text, message.images], ["What is it?", [RED]]);
  }
});

test("an image that lies elsewhere stays an address, and what is no image is left out", () => {
  const others = ["https://example.com/a.png", "data:text/html;base64,AAAA", "data:image/svg+xml;base64,AAAA", 5, null];
  const content = others.map((url) => ({ type: "image_url", image_url: { url } }));
  const [chat] = imported([{ role: "user", content: [...content, { type: "image_url", image_url: RED }] }]);
  const [message] = tree.path(chat);
  assert.deepEqual([message.text, message.images], ["[image: https://example.com/a.png]", [RED]]);
  const file = exported(chat);
  file.ggufd.messages[0].images = [...file.ggufd.messages[0].images, "https://example.com/a.png"];
  assert.equal(tree.path(imported(file)[0])[0].images, undefined);
});
