import assert from "node:assert/strict";
import { test } from "node:test";

import { FIELDS, WIRE_NAMES } from "../../server/ggufd/web/settings/fields.js";
import { GROUPS, defaultText } from "../../server/ggufd/web/settings/groups.js";
import * as presets from "../../server/ggufd/web/settings/presets.js";
import { linesOf, requestFields, settingOf, toolNames } from "../../server/ggufd/web/settings/request.js";

const samplers = {
  temperature: 0.8,
  top_k: 0,
  ignore_eos: false,
  seed: 4294967295,
  samplers: ["penalties", "top_k", "temperature"],
  dry_sequence_breakers: ["\n", ":", '"', "*"],
};
const adapters = [
  { id: 0, name: "style", scale: 1 },
  { id: 1, name: "topic", scale: 0.5 },
];
const defaults = { samplers, adapters };
const fields = (settings) => requestFields(settings, defaults).fields;
const errors = (settings) => requestFields(settings, defaults).errors;

test("nothing set sends nothing", () => {
  assert.deepEqual(requestFields({}, defaults), { fields: {}, errors: {} });
  assert.deepEqual(fields(Object.fromEntries([...FIELDS.keys()].map((id) => [id, ""]))), {});
});

test("a value is sent by its name where it is not the default", () => {
  assert.deepEqual(fields({ temperature: "0", top_k: "40", seed: "7" }), { temperature: 0, top_k: 40, seed: 7 });
  assert.deepEqual(fields({ temperature: "0.8", top_k: "0", ignore_eos: "false" }), {});
  assert.deepEqual(fields({ samplers: "penalties,top_k,temperature" }), {});
  assert.deepEqual(fields({ samplers: "temperature,top_k" }), { samplers: ["temperature", "top_k"] });
});

test("a comma is a decimal point, and what is no number is told", () => {
  assert.deepEqual(fields({ temperature: "0,5" }), { temperature: 0.5 });
  assert.equal(errors({ temperature: "warm" }).temperature, "Expected a number, got “warm”.");
  assert.equal(errors({ top_k: "1.5" }).top_k, "Expected a whole number, got “1.5”.");
});

test("what cannot be read is sent as it stands, for the server to refuse", () => {
  assert.deepEqual(fields({ temperature: "warm", logit_bias: "{" }), { temperature: "warm", logit_bias: "{" });
  assert.equal(fields({ constraint: "schema", schema: "{" }).response_format.json_schema.schema, "{");
  assert.deepEqual(fields({ tools: "[" }), { tools: "[" });
  assert.deepEqual(fields({ enable_thinking: "true", chat_template_kwargs: "x" }), { chat_template_kwargs: "x" });
  assert.deepEqual(fields({ extra: "{" }), {});
});

test("probabilities of tokens come with their number", () => {
  assert.deepEqual(fields({ logprobs: "true" }), { logprobs: true, top_logprobs: 5 });
  assert.deepEqual(fields({ logprobs: "true", top_logprobs: "2" }), { logprobs: true, top_logprobs: 2 });
  assert.deepEqual(fields({ top_logprobs: "2" }), {});
});

test("lines may have line ends and tabs inside", () => {
  assert.deepEqual(linesOf("a\\nb\n\n\\t\n\\\\n"), ["a\nb", "\t", "\\n"]);
  assert.deepEqual(fields({ stop: "###\n\\n\\n" }), { stop: ["###", "\n\n"] });
  const breakers = labelled("dry_sequence_breakers");
  assert.equal(defaultText(breakers, samplers), '\\n\n:\n"\n*');
  assert.deepEqual(fields({ dry_sequence_breakers: defaultText(breakers, samplers) }), {});
});

const labelled = (id) => GROUPS.flatMap((group) => group.fields).find((field) => field.id === id);

test("defaults are shown as one types them", () => {
  assert.equal(defaultText(labelled("temperature"), { temperature: 0.800000011920929 }), "0.8");
  assert.equal(defaultText(labelled("seed"), samplers), "random");
  assert.equal(defaultText(labelled("ignore_eos"), samplers), "off");
  assert.equal(defaultText(labelled("max_tokens"), samplers), "no limit");
  assert.equal(defaultText(labelled("samplers"), samplers), "penalties,top_k,temperature");
});

test("one constraint holds: the chosen one", () => {
  const texts = { schema: '{"type":"object"}', grammar: 'root ::= "a"', regex: "a+", options: "yes\nno" };
  assert.deepEqual(fields(texts), {});
  assert.deepEqual(fields({ ...texts, constraint: "schema" }), {
    response_format: { type: "json_schema", json_schema: { name: "answer", schema: { type: "object" } } },
  });
  assert.deepEqual(fields({ ...texts, constraint: "grammar" }), { grammar: 'root ::= "a"' });
  assert.deepEqual(fields({ ...texts, constraint: "regex" }), { guided_regex: "a+" });
  assert.deepEqual(fields({ ...texts, constraint: "options" }), { guided_choice: ["yes", "no"] });
});

test("JSON that is none is told, by where it was typed", () => {
  assert.match(errors({ constraint: "schema", schema: "{" }).schema, /^This is not JSON: /);
  assert.equal(errors({ constraint: "schema", schema: "[]" }).schema, "Expected a JSON object, got a JSON array.");
  assert.match(errors({ tools: "[" }).tools, /^This is not JSON: /);
  assert.match(errors({ extra: "nonsense" }).extra, /^This is not JSON: /);
  assert.equal(errors({ logit_bias: "null" }).logit_bias, "Expected a JSON object, got null.");
});

test("tools, and which is called", () => {
  const tool = { type: "function", function: { name: "clock" } };
  const tools = JSON.stringify([tool]);
  assert.deepEqual(fields({ tools }), { tools: [tool] });
  assert.deepEqual(fields({ tools: JSON.stringify(tool), tool_choice: "required" }).tool_choice, "required");
  const named = { type: "function", function: { name: "clock" } };
  assert.deepEqual(fields({ tools, tool_choice: "name:clock" }).tool_choice, named);
  assert.equal(fields({ tools, parallel_tool_calls: "true" }).parallel_tool_calls, true);
  assert.deepEqual(fields({ tool_choice: "required" }), {});
  assert.deepEqual(toolNames(tools), ["clock"]);
  assert.deepEqual(toolNames("[{"), []);
});

test("thinking is a variable of the template, beside others", () => {
  assert.deepEqual(fields({ enable_thinking: "false" }), { chat_template_kwargs: { enable_thinking: false } });
  assert.deepEqual(fields({ enable_thinking: "true", chat_template_kwargs: '{"date":"today"}' }), {
    chat_template_kwargs: { enable_thinking: true, date: "today" },
  });
  assert.deepEqual(fields({ reasoning_budget: "0", reasoning_effort: "low" }), {
    reasoning_budget: 0,
    reasoning_effort: "low",
  });
});

test("adapters are sent all together, and only where one has another scale", () => {
  assert.deepEqual(fields({ "lora:0": "1", "lora:1": "0.5" }), {});
  assert.deepEqual(fields({ "lora:1": "0" }), {
    lora: [
      { id: 0, scale: 1 },
      { id: 1, scale: 0 },
    ],
  });
  assert.match(errors({ "lora:0": "much" })["lora:0"], /Expected a number/);
  assert.deepEqual(requestFields({ "lora:5": "1" }, defaults).fields, {});
});

test("extra fields come last, but not those of the page", () => {
  assert.deepEqual(fields({ top_k: "3", extra: '{"top_k": 4, "mine": [1]}' }), { top_k: 4, mine: [1] });
  assert.equal(
    errors({ extra: '{"stream": false}' }).extra,
    "'stream' is what the page itself sends. Leave it out here.",
  );
});

test("an error of the server finds its setting", () => {
  assert.equal(settingOf("temperature", {}), "temperature");
  assert.equal(settingOf("response_format", {}), "schema");
  assert.equal(settingOf("tools[0].function.name", {}), "tools");
  assert.equal(settingOf("lora[0].id", {}), "lora");
  assert.equal(settingOf("messages", {}), "");
  assert.equal(settingOf("mine", { extra: '{"mine": 1}' }), "extra");
  assert.equal(settingOf(null, {}), "");
});

test("every field has a name of its own, and a label", () => {
  const all = GROUPS.flatMap((group) => group.fields);
  assert.deepEqual(all.map((field) => field.id).sort(), [...FIELDS.keys()].sort());
  assert.ok(all.every((field) => field.label && (field.hint || field.options)));
  assert.equal(new Set(WIRE_NAMES).size, WIRE_NAMES.length);
});

test("presets are saved, chosen and deleted by name", () => {
  const one = presets.withPreset({}, " warm ", { temperature: "1.2", top_k: "" });
  assert.deepEqual(one, { warm: { temperature: "1.2" } });
  const both = presets.withPreset(one, "cold", { temperature: "0" });
  assert.deepEqual(Object.keys(both), ["cold", "warm"]);
  assert.equal(presets.presetOf(both, { temperature: "0", seed: "" }), "cold");
  assert.equal(presets.presetOf(both, { temperature: "0", seed: "1" }), "");
  assert.deepEqual(Object.keys(presets.withoutPreset(both, "cold")), ["warm"]);
  assert.deepEqual(Object.keys(both), ["cold", "warm"]);
});

test("what was stored by others is no preset", () => {
  assert.deepEqual(presets.readPresets(null), {});
  assert.deepEqual(presets.readPresets([1]), {});
  assert.deepEqual(presets.readPresets({ a: { temperature: 1, seed: "3" }, b: 4 }), { a: { seed: "3" }, b: {} });
});
