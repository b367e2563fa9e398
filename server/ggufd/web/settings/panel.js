// The panel of the settings: presets, samplers, format, tools, and any other field of a request.
import { IconButton } from "../shared/components.js";
import { server } from "../shared/server.js";
import { html, signal, useEffect, useSignal } from "../shared/view.js";
import { CONSTRAINTS } from "./fields.js";
import { GROUPS } from "./groups.js";
import { Fault, Setting, Text } from "./inputs.js";
import { requestFields as requestOf, toolNames } from "./request.js";
import {
  defaults,
  deletePreset,
  faults,
  preset,
  presets,
  readDefaults,
  savePreset,
  set,
  settings,
  use,
} from "./state.js";

/** @type {Record<string, string>} */
const EXAMPLES = {
  schema: `{
  "type": "object",
  "properties": {
    "name": {"type": "string", "maxLength": 40},
    "age": {"type": "integer", "minimum": 0}
  },
  "required": ["name", "age"],
  "additionalProperties": false
}`,
  grammar: `root ::= answer "."
answer ::= "yes" | "no" | "perhaps"`,
  regex: "[0-9]{4}-[0-9]{2}-[0-9]{2}",
  options: "yes\nno",
  tools: `[{
  "type": "function",
  "function": {
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {
      "type": "object",
      "properties": {"city": {"type": "string"}},
      "required": ["city"]
    }
  }
}]`,
};

/** Groups behind format and tools. */
const OTHERS = ["reasoning", "queue"];

/** Settings that were left without being saved, and the preset that they were made from. */
const left = signal(
  /** @type {{settings: import("./request.js").Settings, preset: string}} */ ({ settings: {}, preset: "" }),
);

/** Everything that a request can say besides its messages, with the server's defaults. */
export function SettingsPanel() {
  const { state } = server.value;
  useEffect(() => {
    if (["", "ok"].includes(state)) readDefaults().catch(() => {});
  }, [state]);
  const [sampling, ...more] = GROUPS;
  const ofText = more.filter(({ id }) => !OTHERS.includes(id));
  const others = more.filter(({ id }) => OTHERS.includes(id));
  return html`<div class="settings-panel">
    <${Presets} />
    <section class="settings-group" aria-label=${sampling.title}>
      ${sampling.fields.map((field) => html`<${Setting} field=${field} key=${field.id} />`)}
    </section>
    ${ofText.map((group) => html`<${Fields} group=${group} key=${group.id} />`)}
    <${Format} />
    <${Tools} />
    ${others.map((group) => html`<${Fields} group=${group} key=${group.id} />`)}
    <${Tokens} />
    <${Adapters} />
    <${Extra} />
  </div>`;
}

/** Any other field; only what can be read becomes a setting. */
function Extra() {
  const typed = useSignal(/** @type {string | null} */ (null));
  const kept = settings.value.extra ?? "";
  const { extra: fault = "" } = requestOf({ extra: typed.value ?? kept }).errors;
  /** @param {string} text */
  const type = (text) => {
    typed.value = text;
    if (!requestOf({ extra: text }).errors.extra) set("extra", text);
  };
  return html`<${Group} id="extra" title="Other fields" ids=${["extra"]}>
    <p class="hint" id="hint-extra">A JSON object that is added to every request, for any field of${" "}
      <a href="docs" target="_blank" rel="noopener">the API</a>.</p>
    <${Text} id="extra" name="Other fields of a request, as JSON" placeholder='{"n_keep": 256}' lines=${3}
      text=${fault ? (typed.value ?? kept) : kept} onText=${type} />
    <${Fault} id="extra" text=${fault && `${fault} Until it is right, it is not sent.`} />
  <//>`;
}

/** The presets: choose one, save the settings as one, delete one. */
function Presets() {
  const name = useSignal("");
  const isNaming = useSignal(false);
  const chosen = preset.value;
  const isDefault = !Object.keys(settings.value).length;
  const value = isDefault ? "default" : chosen ? `=${chosen}` : "own";
  /** @param {any} event */
  const choose = ({ target }) => {
    const wanted = target.value;
    if (value === "own") left.value = { ...left.value, settings: settings.value };
    left.value = { ...left.value, preset: wanted.slice(1) in presets.value ? wanted.slice(1) : "" };
    use(wanted === "own" ? left.value.settings : (presets.value[wanted.slice(1)] ?? {}));
  };
  const hasOwn = value === "own" || Object.keys(left.value.settings).length > 0;
  /** @param {Event} event */
  const save = (event) => {
    event.preventDefault();
    if (!name.value.trim()) return;
    savePreset(name.value);
    isNaming.value = false;
  };
  return html`<div class="presets">
    <label for="preset">Preset</label>
    <select id="preset" class="field" value=${value} onChange=${choose}>
      <option value="default">Server's defaults</option>
      ${hasOwn && html`<option value="own">Your settings, not saved</option>`}
      ${Object.keys(presets.value).map((one) => html`<option value=${`=${one}`} key=${one}>${one}</option>`)}
    </select>
    ${
      value === "own" &&
      !isNaming.value &&
      html`<button type="button" class="button" onClick=${() => ((isNaming.value = true), (name.value = left.value.preset))}>Save</button>`
    }
    ${
      chosen &&
      !isDefault &&
      html`<${IconButton} icon="trash" name=${`Delete the preset ${chosen}`} onClick=${() => deletePreset(chosen)} />`
    }
    ${
      isNaming.value &&
      html`<form class="preset-name" onSubmit=${save}>
      <input class="field" aria-label="Name of the preset" placeholder="Name of the preset" maxlength="60"
        value=${name.value} ref=${focusOnce} onInput=${(/** @type {any} */ event) => (name.value = event.target.value)}
        onKeyDown=${(/** @type {KeyboardEvent} */ event) => {
          if (event.key !== "Escape") return;
          event.stopPropagation();
          isNaming.value = false;
        }} />
      <button class="button primary" disabled=${!name.value.trim()}>Save</button>
    </form>`
    }
  </div>`;
}

/** @param {HTMLElement | null} element */
const focusOnce = (element) => {
  if (element && !element.dataset.focused) {
    element.dataset.focused = "";
    element.focus();
  }
};

/**
 * A part of the panel that opens; it says how much of it is set, and opens where something is wrong.
 * @param {{id: string, title: string, ids: string[], others?: string[], children?: any}} props
 */
function Group({ id, title, ids, others = [], children }) {
  const count = ids.filter((one) => settings.value[one]).length;
  const isWrong = [...ids, ...others].some((one) => one in faults.value);
  const isOpen = useSignal(false);
  if (isWrong) isOpen.value = true;
  return html`<details class="settings-group" open=${isOpen.value}
    onToggle=${(/** @type {any} */ event) => (isOpen.value = event.currentTarget.open)}>
    <summary id=${`group-${id}`}>${title}${count > 0 && html`<span class="count">${count} set</span>`}</summary>
    ${isOpen.value && html`<div class="settings-body">${children}</div>`}
  </details>`;
}

/** @param {{group: import("./groups.js").Group}} props */
function Fields({ group: { id, title, fields } }) {
  return html`<${Group} id=${id} title=${title} ids=${fields.map((field) => field.id)}>
    ${fields.map((field) => html`<${Setting} field=${field} key=${field.id} />`)}
  <//>`;
}

/** What the answer must be: a schema, a grammar, a pattern, or one of some texts. */
function Format() {
  const kind = settings.value.constraint ?? "";
  const names = Object.fromEntries(CONSTRAINTS);
  return html`<${Group} id="format" title="Format of the answer" ids=${["constraint"]} others=${[kind]}>
    <div class="setting wide">
      <label class="setting-name" for="setting-constraint">The answer is</label>
      <select class="field" id="setting-constraint" value=${kind} aria-describedby="hint-constraint"
        onChange=${(/** @type {any} */ event) => set("constraint", event.target.value)}>
        <option value="">free</option>
        ${CONSTRAINTS.map(([id, name]) => html`<option value=${id}>${name}</option>`)}
      </select>
      <p class="hint" id="hint-constraint">enforced while it is written, and looked at here while you type</p>
    </div>
    ${kind && html`<${Editor} id=${kind} name=${names[kind]} />`}
  <//>`;
}

/**
 * A text with an example to begin from.
 * @param {{id: string, name: string, hint?: string}} props
 */
function Editor({ id, name, hint }) {
  return html`<div class="setting-editor">
    <div class="setting-head">
      <label for=${`setting-${id}`}>${name}</label>
      ${
        !settings.value[id] &&
        html`<button type="button" class="button small" onClick=${() => set(id, EXAMPLES[id])}>Insert an example</button>`
      }
    </div>
    <${Text} id=${id} />
    <p class="hint" id=${`hint-${id}`}>${hint ?? (id === "options" ? "one a line" : "")}</p>
    <${Fault} id=${id} />
  </div>`;
}

function Tools() {
  const names = toolNames(settings.value.tools ?? "");
  return html`<${Group} id="tools" title="Tools" ids=${["tools", "tool_choice", "parallel_tool_calls"]}>
    <${Editor} id="tools" name="Tools, as JSON"
      hint="in OpenAI's form; the answer shows what the model calls, and you say what came of it" />
    <${Setting} field=${{
      id: "tool_choice",
      label: "Which is called",
      kind: "choice",
      hint: names.length ? "the model chooses by default" : "once there are tools",
      unset: "auto",
      options: [["required", "any, but one must be"], ["none", "none"], ...names.map((name) => [`name:${name}`, name])],
    }} />
    <${Setting} field=${{
      id: "parallel_tool_calls",
      label: "Several at once",
      kind: "choice",
      unset: "model's",
      hint: "more than one call in an answer",
      options: [
        ["true", "on"],
        ["false", "off"],
      ],
    }} />
  <//>`;
}

/** Whether answers come with the probabilities of their tokens. */
function Tokens() {
  return html`<${Group} id="tokens" title="Token probabilities" ids=${["logprobs", "top_logprobs"]}>
    <${Setting} field=${{
      id: "logprobs",
      label: "With every answer",
      kind: "choice",
      unset: "off",
      hint: "look at them under the answer, and go on from another token",
      options: [["true", "on"]],
    }} />
    <${Setting} field=${{
      id: "top_logprobs",
      label: "Alternatives",
      kind: "integer",
      unset: "5",
      hint: "of each token",
    }} />
  <//>`;
}

/** How much of each LoRA adapter is applied. */
function Adapters() {
  const adapters = defaults.value?.adapters ?? [];
  return html`<${Group} id="lora" title="Adapters" ids=${["lora", ...adapters.map(({ id }) => `lora:${id}`)]}>
    ${adapters.map(
      ({ id, name, scale }) =>
        html`<${Setting} key=${id} field=${{
          id: `lora:${id}`,
          label: name,
          kind: "number",
          unset: String(scale),
          hint: "0 is none of it, 1 all",
        }} />`,
    )}
    ${!adapters.length && html`<p class="hint">No LoRA adapter is loaded. The server loads them with <code>--lora</code>.</p>`}
    <${Fault} id="lora" />
  <//>`;
}
