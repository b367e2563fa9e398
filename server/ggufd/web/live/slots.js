// The slots: whose, what they do, how far, and what the idle ones keep.
import { Dialog, Menu } from "../shared/components.js";
import { html, useSignal } from "../shared/view.js";
import { endQuestion, eraseSlot, whoseOf, saveSlot, useQuestions } from "./act.js";
import { count, counted, duration, percent, rate } from "./format.js";
import { replicaColumn } from "./replicas.js";
import { others } from "./state.js";
import { Owner, Section, Table } from "./table.js";

/** @typedef {import("./state.js").Slot} Slot */

/** @param {{state: import("./state.js").LiveState}} props */
export function Slots({ state }) {
  const { server } = state;
  const questions = useQuestions();
  const saving = useSignal(/** @type {Slot | null} */ (null));
  const columns = [
    { name: "Slot", kind: "number key", cell: (/** @type {Slot} */ slot) => slot.id },
    ...replicaColumn(server),
    {
      name: "Whose",
      cell: (/** @type {Slot} */ slot) => html`<${Owner} name=${slot.owner} you=${server.you} />`,
    },
    {
      name: "Doing",
      kind: "wide",
      cell: (/** @type {Slot} */ slot) => html`<${Doing} slot=${slot} nCtx=${server.n_ctx} />`,
    },
    { name: "Tokens", kind: "number", cell: (/** @type {Slot} */ slot) => count(slot.tokens) },
    {
      name: "Tokens/s",
      kind: "number",
      cell: (/** @type {Slot} */ slot) => (slot.request === undefined ? null : rate(slot.tokens_per_s)),
    },
    { name: "From cache", kind: "number", cell: cachedShare },
    {
      name: "Actions",
      kind: "act",
      cell: (/** @type {Slot} */ slot) =>
        html`<${SlotActions} slot=${slot} server=${server} ask=${questions.ask}
          onSave=${() => (saving.value = slot)} />`,
    },
  ];
  const filled = state.slots.filter((slot) => slot.state !== "empty");
  return html`<${Section} title="Slots" note=${note(state)} failure=${questions.failure} kind="slots">
    <${Table} caption="Slots" columns=${columns} rows=${filled} keyOf=${keyOf}
      empty=${emptyText(state)} />
    ${filled.length > 0 && html`<${Legend} />`}
    ${filled.length > 0 && html`<p class="quiet small">${emptyNote(state.slots.length - filled.length)}</p>`}
    ${server.sees === "own" && html`<p class="quiet small">${othersText(state)}</p>`}
    ${questions.dialog}
    ${saving.value !== null && html`<${SaveDialog} slot=${saving.value} onClose=${() => (saving.value = null)} />`}
  <//>`;
}

/** Slots of two replicas have the same numbers. @param {Slot} slot */
function keyOf(slot) {
  return `${slot.id} ${slot.replica}`;
}

/** What the colours of the bars are. */
function Legend() {
  return html`<p class="legend small" aria-hidden="true">${[
    ["cached", "from the cache"],
    ["computed", "read"],
    ["written", "written"],
    ["kept", "kept"],
  ].map(([kind, text]) => html`<span><span class="swatch ${kind}"></span>${text}</span>`)}</p>`;
}

/** @param {import("./state.js").LiveState} state */
function note({ totals }) {
  if (!totals.slots) return "";
  const busy = totals.reading + totals.writing;
  return `${busy} of ${totals.slots} busy${busy ? `: ${totals.reading} reading, ${totals.writing} writing` : ""}`;
}

/** @param {import("./state.js").LiveState} state */
function emptyText({ server, totals }) {
  if (server.state === "sleeping")
    return "The model is unloaded while nobody uses it. The next request loads it again.";
  if (!totals.slots) return "Nothing is known of the slots while the model is not there.";
  if (server.sees === "all") return totals.slots === 1 ? "The slot is empty." : `All ${totals.slots} slots are empty.`;
  return "None of your requests is running, and no slot keeps a chat of yours.";
}

/** @param {number} empty */
function emptyNote(empty) {
  if (!empty) return "";
  return empty === 1 ? "One slot is empty." : `${empty} slots are empty.`;
}

/** @param {import("./state.js").LiveState} state */
function othersText(state) {
  const { busy, keeping } = others(state);
  if (!busy && !keeping) return "Nobody else is being served.";
  const kept = keeping ? `, ${keeping} ${keeping === 1 ? "keeps" : "keep"} what was computed` : "";
  return `Others: ${counted(busy, "slot")} busy${kept}.`;
}

/** @param {Slot} slot */
function cachedShare(slot) {
  if (slot.request === undefined || !slot.prompt_tokens) return null;
  return percent((slot.cached_tokens ?? 0) / slot.prompt_tokens);
}

/** What a slot does, in words and as a bar. @param {{slot: Slot, nCtx: number | null}} props */
function Doing({ slot, nCtx }) {
  if (slot.state === "idle")
    return html`<span class="quiet">keeps ${counted(slot.tokens, "token")}, ${ago(slot.seconds)}</span>
      <${Bar} of=${nCtx ?? slot.tokens} parts=${[["kept", slot.tokens]]} />`;
  const cached = slot.cached_tokens ?? 0;
  const computed = slot.computed_tokens ?? 0;
  const prompt = slot.prompt_tokens ?? 0;
  if (slot.state === "reading")
    return html`<span><span class="phase reading">reading</span> ${percent(computed / Math.max(1, prompt))} of
      ${" "}${count(prompt)}, ${duration(slot.seconds)}</span>
      <${Bar} of=${prompt} parts=${[
        ["cached", cached],
        ["computed", computed - cached],
      ]} />`;
  const written = slot.completion_tokens ?? 0;
  return html`<span><span class="phase writing">writing</span> ${counted(written, "token")},${" "}
    ${duration(slot.seconds)}</span>
    <${Bar} of=${nCtx ?? slot.tokens} parts=${[
      ["cached", cached],
      ["computed", prompt - cached],
      ["written", written],
    ]} />`;
}

/** @param {number} seconds */
function ago(seconds) {
  return seconds < 1 ? "just now" : `for ${duration(seconds)}`;
}

/**
 * A bar of parts, which the text beside it says in words.
 * @param {{of: number, parts: Array<[string, number]>}} props
 */
export function Bar({ of, parts }) {
  return html`<span class="bar" aria-hidden="true">
    ${parts.map(([kind, value]) => html`<span class=${kind} style=${{ width: `${Math.min(100, (100 * value) /
      Math.max(1, of))}%` }}></span>`)}
  </span>`;
}

/**
 * @param {{slot: Slot, server: import("./state.js").Server, ask: (question: import("./act.js").Question) => void,
 *   onSave: () => void}} props
 */
function SlotActions({ slot, server, ask, onSave }) {
  const { request } = slot;
  if (request !== undefined) {
    const whose = whoseOf(slot.owner, server.you);
    return html`<button type="button" class="button small" aria-label=${`End the request in slot ${slot.id}`}
      onClick=${() => ask(endQuestion(request, whose, true))}>End</button>`;
  }
  if (!server.is_admin) return null;
  const erase = {
    title: `Erase slot ${slot.id}?`,
    text: `The ${counted(slot.tokens, "token")} that it keeps are computed again when that chat goes on.`,
    action: "Erase",
    run: () => eraseSlot(slot),
  };
  const items = [
    ...(server.can_save ? [{ name: "Save to a file…", icon: "download", onClick: onSave }] : []),
    { name: "Erase…", icon: "trash", kind: "bad", onClick: () => ask(erase) },
  ];
  return html`<${Menu} name=${`Actions on slot ${slot.id}`} items=${items} />`;
}

/** @param {{slot: Slot, onClose: () => void}} props */
function SaveDialog({ slot, onClose }) {
  const name = useSignal(`slot-${slot.id}.bin`);
  const done = useSignal("");
  const { perform, failure } = useQuestions();
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    perform(async () => {
      const said = await (await saveSlot(slot, name.value)).json();
      done.value = `${counted(said.n_saved, "token")} saved as ${said.filename}.`;
    });
  };
  return html`<${Dialog} title=${`Save slot ${slot.id}`} kind="small" onClose=${onClose}>
    <form class="form" onSubmit=${submit}>
      <label for="save-name">Name of the file</label>
      <input id="save-name" class="field" value=${name.value} autocomplete="off"
        onInput=${(/** @type {any} */ event) => (name.value = event.target.value)} />
      <p class="quiet small">It is written into the folder that the server was started with. It can be restored by
        ${" "}<code>POST /slots/${slot.id}?action=restore</code>.</p>
      ${failure && html`<p class="failure" role="alert">${failure}</p>`}
      ${done.value && html`<p role="status">${done.value}</p>`}
      <div class="dialog-actions"><button class="button primary">Save</button></div>
    </form>
  <//>`;
}
