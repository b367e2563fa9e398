// Components whose modules are loaded when they are first shown.
import { html, signal, useEffect } from "./view.js";

/**
 * A component that stands for one of a module that is loaded later; until then there is nothing.
 * @param {() => Promise<any>} load The component.
 */
export function lazy(load) {
  const loaded = signal(/** @type {{component: any} | null} */ (null));
  /** @param {any} props */
  return function Lazy(props) {
    useEffect(() => {
      if (loaded.value) return;
      load().then(
        (component) => (loaded.value = { component }),
        () => (loaded.value = { component: Unloadable }),
      );
    }, []);
    return loaded.value && html`<${loaded.value.component} ...${props} />`;
  };
}

/** Said where the server is gone, or another version of it has come. A browser does not ask for a module twice. */
function Unloadable() {
  return html`<p class="quiet" role="alert">This part of the page could not be loaded. Reload the page.</p>`;
}
