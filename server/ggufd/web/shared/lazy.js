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
      if (!loaded.value) load().then((component) => (loaded.value = { component }));
    }, []);
    return loaded.value && html`<${loaded.value.component} ...${props} />`;
  };
}
