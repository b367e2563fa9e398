// Actions on the server, each with its question first where something is lost, and what went wrong where it did.
import { call } from "../shared/api.js";
import { Confirm } from "../shared/components.js";
import { html, useSignal } from "../shared/view.js";

/**
 * A question before an action.
 * @typedef {{title: string, text: string, action: string, run: () => Promise<unknown>}} Question
 */

/**
 * Asks questions in one place of the page: `ask` opens one, `dialog` is to be shown, `failure` is what went wrong.
 */
export function useQuestions() {
  const question = useSignal(/** @type {Question | null} */ (null));
  const failure = useSignal("");
  /** @param {() => Promise<unknown>} run */
  const perform = async (run) => {
    failure.value = "";
    try {
      await run();
    } catch (error) {
      failure.value = error instanceof Error ? error.message : String(error);
    }
  };
  const asked = question.value;
  const yes = () => {
    question.value = null;
    if (asked) perform(asked.run);
  };
  const dialog =
    asked &&
    html`<${Confirm} title=${asked.title} text=${asked.text} action=${asked.action} onYes=${yes}
      onNo=${() => (question.value = null)} />`;
  return { ask: (/** @type {Question} */ one) => (question.value = one), perform, dialog, failure: failure.value };
}

/** @param {number | string} request */
export function endRequest(request) {
  return call(`v1/requests/${encodeURIComponent(request)}`, { method: "DELETE" });
}

/** @param {import("./state.js").Slot} slot */
export function eraseSlot(slot) {
  return call(`slots/${slot.id}?action=erase${replicaOf(slot)}`, { method: "POST", body: {} });
}

/** @param {import("./state.js").Slot} slot @param {string} filename */
export function saveSlot(slot, filename) {
  return call(`slots/${slot.id}?action=save${replicaOf(slot)}`, { method: "POST", body: { filename } });
}

/** Where a slot is, as the cluster is asked. @param {import("./state.js").Slot} slot */
function replicaOf({ replica }) {
  return replica === undefined ? "" : `&replica=${encodeURIComponent(replica)}`;
}

export function drain() {
  return call("v1/drain", { body: {} });
}

export function resume() {
  return call("v1/drain", { method: "DELETE" });
}

export function sleep() {
  return call("v1/sleep", { body: {} });
}

/** @param {Array<{id: number, scale: number}>} scales */
export function setScales(scales) {
  return call("lora-adapters", { body: scales });
}

/** Whose request, in a question. @param {string | null} owner @param {string | null} you */
export function whoseOf(owner, you) {
  if (owner === null) return "this";
  return owner === you ? "your" : `${owner}'s`;
}

/**
 * The question before a request is ended.
 * @param {number | string} request @param {string} whose @param {boolean} isRunning
 * @returns {Question}
 */
export function endQuestion(request, whose, isRunning) {
  const text = isRunning
    ? "Its client gets what was written so far, and an error that says that it was ended."
    : "It leaves the queue, and its client gets an error that says so.";
  return { title: `End ${whose} request?`, text, action: "End it", run: () => endRequest(request) };
}
