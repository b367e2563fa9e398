// An answer as its tokens: shaded by probability, with the alternatives of each to go on from.
import { IconButton } from "../shared/components.js";
import { isHeldToFormat } from "../shared/formats.js";
import { set, wantsTokens } from "../settings/state.js";
import { Component, html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../shared/view.js";
import {
  align,
  isMark,
  isPart,
  label,
  percent,
  prefixWith,
  probability,
  sameToken,
  shade,
  shownText,
  tokensWith,
} from "./entries.js";

/** @typedef {import("../shared/types.js").Message} Message */
/** @typedef {import("./entries.js").TokenEntry} TokenEntry */
/** @typedef {import("./entries.js").Alternative} Alternative */

/** @typedef {(text: string, tokens: TokenEntry[]) => void} GoOn */

const BLOCK = 200;
const PAGE = 1000;
const LEAVE_MS = 250;

/**
 * Shown instead of the answer's text while a person looks at its tokens. `goOnFrom` starts a version of the message
 * that begins with this text, which these tokens end.
 * @param {{message: Message, goOnFrom: GoOn}} props
 */
export function TokenView({ message, goOnFrom }) {
  if (!message.logprobs?.length) return html`<${Missing} isWriting=${message.state === "writing"} />`;
  return html`<${Tokens} message=${message} entries=${message.logprobs} goOnFrom=${goOnFrom} />`;
}

/** @param {{isWriting: boolean}} props */
function Missing({ isWriting }) {
  if (isWriting) return html`<p class="quiet">Waiting for the first token.</p>`;
  return html`<div class="tokens-missing">
    <p class="quiet">This answer came without the probabilities of its tokens${
      wantsTokens.value
        ? ". The next ones come with them: regenerate it to see its tokens."
        : ", since they were not asked for."
    }</p>
    ${
      !wantsTokens.value &&
      html`<button type="button" class="button small" onClick=${() => set("logprobs", "true")}>Ask for them from now on</button>`
    }
  </div>`;
}

/** @param {{message: Message, entries: TokenEntry[], goOnFrom: GoOn}} props */
function Tokens({ message, entries, goOnFrom }) {
  const [at, setAt] = useState(-1);
  const [begin, setBegin] = useState(0);
  const ref = useRef(/** @type {HTMLElement | null} */ (null));
  const timer = useRef(0);
  const alignment = useMemo(() => align(message.text, entries), [message.text, entries.length]);
  const end = Math.min(entries.length, begin + PAGE);

  /** @param {number} place */
  const open = (place) => {
    clearTimeout(timer.current);
    setAt(place);
  };
  const leave = () => {
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setAt(-1), LEAVE_MS);
  };
  useEffect(() => () => clearTimeout(timer.current), []);
  useEscape(at >= 0, ref, () => setAt(-1));
  /** @param {number} place */
  const turn = (place) => {
    setAt(-1);
    setBegin(place);
  };
  /** @param {number} place */
  const focus = (place) => tokenAt(ref.current, Math.max(begin, Math.min(end - 1, place)))?.focus();

  /** @param {KeyboardEvent} event */
  const press = (event) => {
    const place = placeOf(event.target);
    const handled = place === null ? pressInside(event) : pressToken(event, place);
    if (!handled) return;
    event.preventDefault();
    event.stopPropagation();
  };
  /** @param {KeyboardEvent} event @param {number} place */
  const pressToken = ({ key }, place) => {
    if (key === "ArrowRight") focus(place + 1);
    else if (key === "ArrowLeft") focus(place - 1);
    else if (key === "Home") focus(begin);
    else if (key === "End") focus(end - 1);
    else if (["ArrowDown", "Enter", " "].includes(key)) focusAlternative(ref.current, 0);
    else if (key === "Escape" && at >= 0) setAt(-1);
    else return false;
    return true;
  };
  /** @param {KeyboardEvent} event */
  const pressInside = ({ key }) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[key];
    if (step) focusAlternative(ref.current, step);
    else if (key === "Escape") focus(at);
    else return false;
    return true;
  };

  const blocks = Array.from({ length: Math.ceil((end - begin) / BLOCK) }, (_, index) => begin + index * BLOCK);
  return html`<div class="tokens" ref=${ref} onKeyDown=${press} onMouseLeave=${leave}
    onMouseOver=${(/** @type {Event} */ event) => over(event, open)}
    onFocusIn=${(/** @type {Event} */ event) => over(event, open)}
    onFocusOut=${(/** @type {FocusEvent} */ event) => {
      if (!ref.current?.contains(/** @type {Node | null} */ (event.relatedTarget))) leave();
    }}
    onClick=${(/** @type {Event} */ event) => over(event, open)}>
    <p class="hint">Darker is less likely. Point at a token, or go with the arrow keys, to see what else could have
      stood there.</p>
    <div class="tokens-text" role="group" aria-label="Tokens of the answer">
      ${begin === 0 && alignment?.before && html`<span class="token-before">${alignment.before}</span>`}
      ${blocks.map(
        (start) => html`<${Block} key=${start} entries=${entries} start=${start} end=${Math.min(end, start + BLOCK)}
          at=${inside(at, start)} tab=${Math.max(begin, at)} />`,
      )}
      ${alignment?.after && end === entries.length && html`<span class="token-before">${alignment.after}</span>`}
    </div>
    ${entries.length > PAGE && html`<${Pages} begin=${begin} end=${end} count=${entries.length} onTurn=${turn} />`}
    ${
      at >= begin &&
      at < end &&
      html`<${Alternatives} key=${at} entry=${entries[at]} root=${ref} place=${at}
      blocked=${blockedBy(message, alignment)} onChoose=${(
        /** @type {Alternative} */ one,
        /** @type {string} */ text,
      ) => alignment && goOnFrom(text, tokensWith(alignment, entries, at, one))}
      prefixOf=${(/** @type {Alternative} */ one) => alignment && prefixWith(alignment, entries, at, one)} />`
    }
  </div>`;
}

/**
 * Steps through tokens that are too many to be shown at once.
 * @param {{begin: number, end: number, count: number, onTurn: (begin: number) => void}} props
 */
function Pages({ begin, end, count, onTurn }) {
  return html`<p class="token-pages" role="group" aria-label="Tokens shown">
    <${IconButton} kind="small" icon="back" name="Tokens before" disabled=${begin === 0} onClick=${() => onTurn(begin - PAGE)} />
    <span>Tokens ${begin + 1} to ${end} of ${count}</span>
    <${IconButton} kind="small" icon="forward" name="Tokens after" disabled=${end === count} onClick=${() => onTurn(begin + PAGE)} />
  </p>`;
}

/**
 * Esc closes what the pointer has opened, wherever the focus is.
 * @param {boolean} isOpen
 * @param {{current: HTMLElement | null}} root What sees to its own keys.
 * @param {() => void} close
 */
function useEscape(isOpen, root, close) {
  useEffect(() => {
    /** @param {KeyboardEvent} event */
    const press = (event) => {
      if (event.key !== "Escape" || root.current?.contains(/** @type {Node} */ (event.target))) return;
      event.stopPropagation();
      event.preventDefault();
      close();
    };
    if (!isOpen) return undefined;
    document.addEventListener("keydown", press, true);
    return () => document.removeEventListener("keydown", press, true);
  }, [isOpen]);
}

/** Why nothing can go on from these tokens; "" where it can. @param {Message} message @param {unknown} alignment */
function blockedBy(message, alignment) {
  if (message.state === "writing") return "The answer is still being written.";
  if (isHeldToFormat(message)) return "An answer that is held to a format cannot go on from its middle.";
  return alignment ? "" : "These are not the tokens of the text as it is now.";
}

/** @param {number} at @param {number} start */
const inside = (at, start) => (at >= start && at < start + BLOCK ? at : -1);

/** @param {EventTarget | null} target @returns {number | null} */
function placeOf(target) {
  const token = target instanceof Element ? target.closest("[data-at]") : null;
  return token ? Number(/** @type {HTMLElement} */ (token).dataset.at) : null;
}

/** @param {Event} event @param {(place: number) => void} open */
function over(event, open) {
  const place = placeOf(event.target);
  const popup = event.target instanceof Element && event.target.closest("[data-of]");
  if (place !== null) open(place);
  else if (popup) open(Number(/** @type {HTMLElement} */ (popup).dataset.of));
}

/** @param {HTMLElement | null} root @param {number} place @returns {HTMLElement | null | undefined} */
const tokenAt = (root, place) => root?.querySelector(`[data-at="${place}"]`);

/**
 * Focus the first alternative, or one that lies so many from the focused one.
 * @param {HTMLElement | null} root
 * @param {number} step
 */
function focusAlternative(root, step) {
  const all = /** @type {HTMLElement[]} */ ([...(root?.querySelectorAll(".alternatives button") ?? [])]);
  const place = all.indexOf(/** @type {HTMLElement} */ (document.activeElement));
  all[place < 0 ? 0 : Math.max(0, Math.min(all.length - 1, place + step))]?.focus();
}

/**
 * Tokens that are drawn again only when one of them changes, since there may be thousands.
 * @typedef {{entries: TokenEntry[], start: number, end: number, at: number, tab: number}} BlockProps
 */

/** @extends {Component<BlockProps>} */
class Block extends Component {
  /** @param {BlockProps} next */
  shouldComponentUpdate(next) {
    const { entries, end, at, start, tab } = /** @type {BlockProps} */ (this.props);
    return (
      next.end !== end ||
      next.at !== at ||
      next.entries[start] !== entries[start] ||
      inside(next.tab, start) !== inside(tab, start)
    );
  }

  render() {
    const { entries, start, end, at, tab } = /** @type {BlockProps} */ (this.props);
    return entries.slice(start, end).map((entry, index) => token(entry, start + index, at, tab));
  }
}

/**
 * A span, since buttons break lines within words.
 * @param {TokenEntry} entry
 * @param {number} place
 * @param {number} at
 * @param {number} tab
 */
function token(entry, place, at, tab) {
  const shown = shownText(entry);
  const name = shown === "·" ? "part of a character" : spoken(shown);
  return html`<span role="button" class="token shade-${shade(entry)} ${at === place ? "open" : ""}"
    data-at=${place} tabindex=${place === tab ? 0 : -1} aria-label=${`${name}, ${percent(entry)}`}
    aria-expanded=${at === place}>${shown}</span>`;
}

/** @param {string} text */
const spoken = (text) => text.replaceAll("⏎\n", " line end ").replaceAll("⇥", " tab ") || "nothing";

/**
 * What could have stood there. `prefixOf` is the text that goes on from one of them, null where none can.
 * @param {{entry: TokenEntry, place: number, root: {current: HTMLElement | null}, blocked: string,
 *   prefixOf: (one: Alternative) => string | null | undefined, onChoose: (one: Alternative, text: string) => void}} props
 */
function Alternatives({ entry, place, root, blocked, prefixOf, onChoose }) {
  const ref = useRef(/** @type {HTMLDivElement | null} */ (null));
  useLayoutEffect(() => placeBelow(ref.current, tokenAt(root.current, place), root.current), [place]);
  const all = entry.top_logprobs ?? [];
  const isListed = all.some((one) => sameToken(one, entry));
  const listed = isListed ? all : [...all, entry];
  return html`<div class="alternatives" ref=${ref} role="group" data-of=${place} aria-label="What could have stood there">
    ${blocked && html`<p class="hint">${blocked}</p>`}
    ${listed.map((one) => {
      const prefix = blocked ? null : prefixOf(one);
      const why = blocked ? "" : reason(one, prefix);
      return html`<button type="button" aria-disabled=${prefix === null ? "true" : undefined} title=${why || undefined}
        class=${sameToken(one, entry) ? "chosen" : ""}
        onClick=${() => typeof prefix === "string" && onChoose(one, prefix)}>
        <span class="alternative">${isPart(one) && prefix ? Array.from(prefix).at(-1) : blankSeen(label(one))}</span>
        <span class="share" aria-hidden="true"><span style=${{ width: `${probability(one) * 100}%` }}></span></span>
        <span class="percent">${percent(one)}</span>
        ${why && html`<span class="unseen">${why}</span>`}
      </button>`;
    })}
    ${!blocked && html`<p class="hint">Choose one, and the answer goes on from there.</p>`}
  </div>`;
}

/** A blank at the beginning is seen, since it tells whether a word begins. @param {string} text */
const blankSeen = (text) => text.replace(/^ /, "␣");

/** @param {Alternative} one @param {string | null | undefined} prefix */
function reason(one, prefix) {
  if (typeof prefix === "string") return "";
  if (isMark(one)) return "The answer would end here.";
  if (isPart(one)) return "This is a part of a character, and no text can end with it.";
  return "This token is not in the text of the answer.";
}

/** @param {HTMLElement | null} popup @param {HTMLElement | null | undefined} target @param {HTMLElement | null} root */
function placeBelow(popup, target, root) {
  if (!popup || !target || !root) return;
  const [box, line] = [root.getBoundingClientRect(), /** @type {DOMRect} */ ([...target.getClientRects()].at(-1))];
  const left = Math.max(0, Math.min(line.left - box.left, box.width - popup.offsetWidth));
  const end = root.closest(".scroll")?.getBoundingClientRect().bottom ?? innerHeight;
  const isBelow = line.bottom + popup.offsetHeight < end || line.top < popup.offsetHeight;
  popup.style.left = `${left}px`;
  popup.style.top = `${isBelow ? line.bottom - box.top + 2 : line.top - box.top - popup.offsetHeight - 2}px`;
}
