// Inputs of one setting each, with the server's default in their place while nothing is set.
import { IconButton } from "../shared/components.js";
import { html } from "../shared/view.js";
import { defaults, faults, set, settings } from "./state.js";
import { defaultText } from "./groups.js";

/** @typedef {import("./groups.js").Labelled} Field */

const MIN_LINES = 2;
const MAX_LINES = 16;

/** @param {any} event */
const textOf = (event) => event.target.value;

/**
 * What is wrong with a setting, in the server's words or the page's.
 * @param {{id: string, text?: string}} props
 */
export function Fault({ id, text }) {
  return html`<p class="fault" id=${`fault-${id}`} role="alert">${text || faults.value[id]}</p>`;
}

/** @param {string} id */
const about = (id) => ({
  "aria-invalid": id in faults.value ? "true" : undefined,
  "aria-describedby": `hint-${id} fault-${id}`,
});

/** A setting with its name, its hint and what is wrong with it. @param {{field: Field}} props */
export function Setting({ field }) {
  const { id, label, hint, kind } = field;
  const isLong = ["lines", "json", "order"].includes(kind);
  const isSet = Boolean(settings.value[id]);
  const Name = kind === "order" ? "span" : "label";
  return html`<div class="setting ${isLong ? "long" : ["choice", "switch"].includes(kind) ? "wide" : ""} ${isSet ? "set" : ""}">
    <${Name} for=${kind === "order" ? undefined : `setting-${id}`} class="setting-name" id=${`name-${id}`}>${label}<//>
    <${Input} field=${field} />
    <p class="hint" id=${`hint-${id}`}>${hint}</p>
    <${Fault} id=${id} />
  </div>`;
}

/** @param {{field: Field}} props */
function Input({ field }) {
  const { id, kind } = field;
  const known = defaultText(field, defaults.value?.samplers ?? {});
  if (kind === "order") return html`<${Order} id=${id} known=${known} />`;
  if (kind === "choice" || kind === "switch") return html`<${Choice} field=${field} known=${known} />`;
  if (kind === "lines" || kind === "json") return html`<${Text} id=${id} placeholder=${known} lines=${MIN_LINES} />`;
  return html`<input class="field" id=${`setting-${id}`} value=${settings.value[id] ?? ""} placeholder=${known}
    inputmode=${kind === "text" ? undefined : "decimal"} autocomplete="off" spellcheck=${false} ...${about(id)}
    onInput=${(/** @type {Event} */ event) => set(id, textOf(event))} />`;
}

/** @param {{field: Field, known: string}} props */
function Choice({ field: { id, options = [] }, known }) {
  return html`<select class="field" id=${`setting-${id}`} value=${settings.value[id] ?? ""} ...${about(id)}
    onChange=${(/** @type {Event} */ event) => set(id, textOf(event))}>
    <option value="">${known ? `default: ${known}` : "default"}</option>
    ${options.map(([value, name]) => html`<option value=${value}>${name}</option>`)}
  </select>`;
}

/**
 * A text of several lines, as high as it is long.
 * @param {{id: string, placeholder?: string, lines?: number, name?: string, text?: string,
 *   onText?: (text: string) => void}} props
 */
export function Text({
  id,
  placeholder,
  lines = 6,
  name,
  text = settings.value[id] ?? "",
  onText = (now) => set(id, now),
}) {
  const rows = Math.min(MAX_LINES, Math.max(lines, text.split("\n").length, (placeholder ?? "").split("\n").length));
  return html`<textarea class="field coded" id=${`setting-${id}`} rows=${rows} value=${text} placeholder=${placeholder}
    aria-label=${name} spellcheck=${false} autocapitalize="off" ...${about(id)}
    onInput=${(/** @type {Event} */ event) => onText(textOf(event))}></textarea>`;
}

/** Samplers in the order they run; those without a tick do not. @param {{id: string, known: string}} props */
function Order({ id, known }) {
  const all = known.split(",").filter(Boolean);
  const chosen = (settings.value[id] || known).split(",").filter(Boolean);
  const names = [...chosen, ...all.filter((name) => !chosen.includes(name))];
  /** @param {string[]} order */
  const use = (order) => set(id, order.join(",") === known ? "" : order.join(","));
  /** @param {number} place @param {number} step */
  const move = (place, step) => {
    const order = [...chosen];
    order.splice(place + step, 0, ...order.splice(place, 1));
    use(order);
  };
  return html`<ol class="sampler-order" aria-labelledby=${`name-${id}`} aria-describedby=${`hint-${id}`}>
    ${names.map((name, place) => {
      const isOn = place < chosen.length;
      /** @param {any} event */
      const toggle = (event) => use(event.target.checked ? [...chosen, name] : chosen.filter((one) => one !== name));
      return html`<li key=${name}>
        <label><input type="checkbox" checked=${isOn} disabled=${isOn && chosen.length === 1} onChange=${toggle} />
          ${" "}${name}</label>
        <${IconButton} kind="small" icon="up" name=${`${name}: earlier`} disabled=${!isOn || place === 0}
          onClick=${() => move(place, -1)} />
        <${IconButton} kind="small" icon="down" name=${`${name}: later`}
          disabled=${!isOn || place === chosen.length - 1} onClick=${() => move(place, 1)} />
      </li>`;
    })}
  </ol>`;
}
