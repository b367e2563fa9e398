// A text that grows, shown as Markdown: what is finished is rendered once, a little in each frame, so that the page
// never freezes, whatever its length. Its element is `aria-busy` as long as some of it is still to be shown.
import { copy } from "../shared/copy.js";
import { BlockSplitter } from "./blocks.js";
import { code, element, plain, rendered } from "./markdown.js";

/** @typedef {import("./blocks.js").Block} Block */

const FRAME_MS = 10;
const REST = 4;
/** The open block is rendered again at the earliest after this many times what that took. */

const COPIED_MS = 1500;

/** Text inside an element, which it fills. */
export class GrowingText {
  #root;
  #shown = "";
  #splitter = new BlockSplitter();
  /** @type {Block[]} */
  #waiting = [];
  /** @type {Node[]} */
  #tail = [];
  #frame = 0;
  #nextTailAt = 0;
  #onGrow;

  /** @param {HTMLElement} root @param {() => void} onGrow called when something has been added */
  constructor(root, onGrow = () => {}) {
    this.#root = root;
    this.#onGrow = onGrow;
  }

  /** Show a text, which mostly begins with what is shown already. @param {string} text */
  show(text) {
    if (text === this.#shown) return;
    if (!text.startsWith(this.#shown)) this.#reset();
    this.#waiting.push(...this.#splitter.feed(text.slice(this.#shown.length)));
    this.#shown = text;
    if (this.#frame) return;
    this.#render();
  }

  /** Render no more. */
  stop() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
  }

  #reset() {
    this.stop();
    this.#root.replaceChildren();
    this.#splitter = new BlockSplitter();
    this.#waiting = [];
    this.#tail = [];
    this.#shown = "";
    this.#nextTailAt = 0;
  }

  /** Some blocks, and then the rest in the next frame. */
  #render() {
    const begin = performance.now();
    if (this.#waiting.length) this.#removeTail();
    let n = 0;
    while (n < this.#waiting.length && performance.now() - begin < FRAME_MS) this.#append(this.#waiting[n++]);
    this.#waiting.splice(0, n);
    const isDone = !this.#waiting.length && this.#renderTail();
    this.#frame = isDone ? 0 : requestAnimationFrame(() => this.#render());
    this.#root.ariaBusy = String(!isDone);
    this.#onGrow();
  }

  /** The open block, unless it was rendered just now. Whether it is up to date. */
  #renderTail() {
    const now = performance.now();
    if (now < this.#nextTailAt) return false;
    this.#removeTail();
    const block = this.#splitter.open;
    if (block) this.#tail = this.#append(block);
    const end = performance.now();
    this.#nextTailAt = end + REST * (end - now);
    return true;
  }

  #removeTail() {
    for (const node of this.#tail) node.parentNode?.removeChild(node);
    this.#tail = [];
  }

  /** @param {Block} block @returns {Node[]} what was added */
  #append(block) {
    const made = block.kind === "code" ? this.#code(block) : block.kind === "plain" ? plain(block.text) : rendered(block.text);
    const nodes = made.nodeType === Node.DOCUMENT_FRAGMENT_NODE ? [...made.childNodes] : [made];
    if (block.kind !== "code" || !block.continues) this.#root.append(made);
    return nodes;
  }

  /** A block of code with its head; a part that continues one goes into the same frame. @param {Block} block */
  #code(block) {
    const part = code(block.text, block.lang);
    const before = /** @type {HTMLElement | null} */ (this.#root.lastElementChild);
    if (block.continues && before?.classList.contains("code")) {
      before.querySelector("pre")?.append(part);
      return part;
    }
    const frame = element("div", "code");
    const head = element("div", "code-head");
    const pre = element("pre", "");
    pre.tabIndex = 0;
    pre.append(part);
    head.append(element("span", "", block.lang || "text"), copyButton(pre));
    frame.append(head, pre);
    return frame;
  }
}

/** @param {HTMLElement} pre */
function copyButton(pre) {
  const button = /** @type {HTMLButtonElement} */ (element("button", "code-copy", "Copy"));
  button.type = "button";
  button.addEventListener("click", async () => {
    button.textContent = (await copy(pre.textContent ?? "")) ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = "Copy"), COPIED_MS);
  });
  return button;
}
