// Parts that both pages are made of: buttons, dialogs, menus, banners.
import { Icon } from "./icons.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./view.js";

/**
 * A button that shows an icon; its name is read aloud and shown as a tip.
 * @param {{icon: string, name: string, onClick: (event: Event) => void, disabled?: boolean, kind?: string,
 *   pressed?: boolean, expanded?: boolean, haspopup?: string}} props
 */
export function IconButton({ icon, name, onClick, disabled, kind = "", pressed, expanded, haspopup }) {
  return html`<button type="button" class="icon-button ${kind}" aria-label=${name} title=${name} onClick=${onClick}
    disabled=${disabled} aria-pressed=${pressed} aria-expanded=${expanded} aria-haspopup=${haspopup}><${Icon}
    name=${icon} /></button>`;
}

/**
 * A modal dialog. Esc and the cross call `onClose`, unless it has none.
 * @param {{title: string, onClose?: () => void, children?: any, kind?: string}} props
 */
export function Dialog({ title, onClose, children, kind = "" }) {
  const ref = useRef(/** @type {HTMLDialogElement | null} */ (null));
  // Before anything else happens: a key that came between its drawing and its opening would be lost.
  useLayoutEffect(() => {
    const dialog = /** @type {HTMLDialogElement} */ (ref.current);
    const before = /** @type {HTMLElement | null} */ (document.activeElement);
    dialog.showModal();
    return () => {
      dialog.close();
      before?.focus?.();
    };
  }, []);
  /** @param {Event} event */
  const cancel = (event) => {
    event.preventDefault();
    onClose?.();
  };
  /** @param {MouseEvent} event */
  const click = (event) => {
    if (event.target === ref.current) onClose?.();
  };
  return html`<dialog ref=${ref} class="dialog ${kind}" aria-label=${title} onCancel=${cancel} onMouseDown=${click}>
    <div class="dialog-body">
      <div class="dialog-head">
        <h2>${title}</h2>
        ${onClose && html`<${IconButton} icon="close" name="Close" onClick=${onClose} />`}
      </div>
      ${children}
    </div>
  </dialog>`;
}

/**
 * A question before something is lost.
 * @param {{title: string, text: string, action: string, onYes: () => void, onNo: () => void}} props
 */
export function Confirm({ title, text, action, onYes, onNo }) {
  return html`<${Dialog} title=${title} onClose=${onNo} kind="small">
    <p>${text}</p>
    <div class="dialog-actions">
      <button type="button" class="button" onClick=${onNo}>Cancel</button>
      <button type="button" class="button danger" onClick=${onYes}>${action}</button>
    </div>
  <//>`;
}

/** Below a menu's button, in pixels: with less its list opens upwards. */
const LEAST_ROOM = 200;

/**
 * A button that opens a list of actions.
 * @param {{name: string, icon?: string, items: Array<{name: string, icon?: string, kind?: string,
 *   onClick: () => void, disabled?: boolean}>}} props
 */
export function Menu({ name, icon = "more", items }) {
  const [isOpen, setOpen] = useState(false);
  const ref = useRef(/** @type {HTMLDivElement | null} */ (null));
  const below = innerHeight - (ref.current?.getBoundingClientRect().bottom ?? 0);
  useEffect(() => {
    if (!isOpen) return undefined;
    buttons(ref.current)[0]?.focus();
    /** @param {Event} event */
    const leave = (event) => {
      if (!ref.current?.contains(/** @type {Node} */ (event.target))) setOpen(false);
    };
    document.addEventListener("pointerdown", leave);
    document.addEventListener("focusin", leave);
    return () => {
      document.removeEventListener("pointerdown", leave);
      document.removeEventListener("focusin", leave);
    };
  }, [isOpen]);
  /** @param {KeyboardEvent} event */
  const press = (event) => {
    if (!isOpen) return;
    const all = buttons(ref.current);
    const at = all.indexOf(/** @type {HTMLButtonElement} */ (document.activeElement));
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) all[(at + step + all.length) % all.length]?.focus();
    if (event.key === "Escape") {
      setOpen(false);
      /** @type {HTMLElement | null | undefined} */ (ref.current?.querySelector(".icon-button"))?.focus();
    }
    if (step || event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation();
    }
  };
  return html`<div class="menu" ref=${ref} onKeyDown=${press}>
    <${IconButton} icon=${icon} name=${name} expanded=${isOpen} haspopup="menu" onClick=${() => setOpen(!isOpen)} />
    ${isOpen &&
    html`<div class="menu-list ${below < LEAST_ROOM ? "up" : ""}" role="menu" aria-label=${name}>
      ${items.map(
        (item) => html`<button type="button" role="menuitem" class="menu-item ${item.kind ?? ""}"
          disabled=${item.disabled} onClick=${() => (setOpen(false), item.onClick())}>
          ${item.icon && html`<${Icon} name=${item.icon} />`}<span>${item.name}</span></button>`,
      )}
    </div>`}
  </div>`;
}

/** @param {HTMLElement | null} element @returns {HTMLButtonElement[]} */
function buttons(element) {
  return [.../** @type {NodeListOf<HTMLButtonElement>} */ (element?.querySelectorAll(".menu-item:enabled") ?? [])];
}

/**
 * A line across the page that says what is wrong, and goes when it is right again.
 * @param {{kind?: "busy" | "bad" | "note", children?: any}} props
 */
export function Banner({ kind = "note", children }) {
  return html`<div class="banner ${kind}" role="status">${kind === "busy" && html`<${Spinner} />`}<span>${children}</span></div>`;
}

/** Something is under way. */
export function Spinner() {
  return html`<span class="spinner" aria-hidden="true"></span>`;
}
