// The default scales of the loaded LoRA adapters.
import { Dialog } from "../shared/components.js";
import { html, useSignal } from "../shared/view.js";
import { setScales, useQuestions } from "./act.js";

/** @param {{adapters: import("./state.js").Adapter[], onClose: () => void}} props */
export function AdapterDialog({ adapters, onClose }) {
  const scales = useSignal(adapters.map(({ scale }) => String(scale)));
  const { perform, failure } = useQuestions();
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    perform(async () => {
      await setScales(adapters.map(({ id }, at) => ({ id, scale: Number(scales.value[at]) })));
      onClose();
    });
  };
  return html`<${Dialog} title="Adapter scales" kind="small" onClose=${onClose}>
    <form class="form" onSubmit=${submit}>
      <p class="quiet small">Of requests that name no adapter. 0 is off. Prompts that were computed under other
        scales are computed again.</p>
      ${adapters.map(
        ({ id, name }, at) => html`<label class="scale"><span class="wrap">${name}</span>
          <input class="field" type="number" step="any" required value=${scales.value[at]} name=${`scale-${id}`}
            onInput=${(/** @type {any} */ event) => (scales.value = scales.value.with(at, event.target.value))}
              /></label>`,
      )}
      ${failure && html`<p class="failure" role="alert">${failure}</p>`}
      <div class="dialog-actions"><button type="button" class="button" onClick=${onClose}>Cancel</button>
        <button class="button primary">Set</button></div>
    </form>
  <//>`;
}
