// A growing text, cut into blocks that can be rendered one by one. Pure.
//
// A finished block never changes, whatever text follows; only the last one is open. No block is long, so that none is
// slow: what has no end for too long is cut, code and lists at a line, a text without lines anywhere.

/**
 * `continues`: it belongs to the code, or to the line, of the block before. Of code, `lang` is what its fence says.
 * @typedef {{kind: "markdown" | "code" | "plain", text: string, lang: string, continues: boolean}} Block
 */

const MAX_LENGTH = 6000;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`\n]*)$/;
const LIST = /^ {0,3}([-*+]|\d{1,9}[.)])\s/;
const INDENTED = /^( {2,}|\t)/;

/** Splitter that is fed the pieces of one text. */
export class BlockSplitter {
  #text = "";
  /** Where the open block begins, and where the line begins that is read next. */
  #start = 0;
  #line = 0;
  /** @type {{mark: string, lang: string} | null} */
  #fence = null;
  #isList = false;
  #isAfterBlank = false;
  #isCut = false;

  /**
   * The blocks that this piece finishes.
   * @param {string} piece
   * @returns {Block[]}
   */
  feed(piece) {
    this.#text += piece;
    /** @type {Block[]} */
    const found = [];
    for (;;) {
      const end = this.#text.indexOf("\n", this.#line);
      const reach = end < 0 ? this.#text.length : end;
      if (reach - this.#start > MAX_LENGTH) this.#cut(reach, found);
      if (end < 0) break;
      this.#read(this.#text.slice(this.#line, end), end + 1, found);
    }
    this.#forget();
    return found;
  }

  /** The block that is not finished yet; null where there is none. @returns {Block | null} */
  get open() {
    const text = this.#text.slice(this.#start);
    return text.trim() || (this.#fence && text) ? this.#block(text) : null;
  }

  /** The blocks are out; the text before the open one is no longer needed. */
  #forget() {
    this.#text = this.#text.slice(this.#start);
    this.#line -= this.#start;
    this.#start = 0;
  }

  /** @param {string} text @returns {Block} */
  #block(text) {
    const continues = this.#isCut;
    if (this.#fence) return { kind: "code", text: continues ? text : afterLine(text), lang: this.#fence.lang, continues };
    return { kind: continues || text.length > MAX_LENGTH ? "plain" : "markdown", text, lang: "", continues };
  }

  /** Finish the open block at `end`. @param {number} end @param {Block[]} found */
  #finish(end, found) {
    const text = this.#text.slice(this.#start, end);
    if (text.trim() || this.#fence) found.push(this.#block(text));
    this.#start = end;
    this.#isList = false;
    this.#isAfterBlank = false;
    this.#isCut = false;
  }

  /** Cut a block that is too long: before its last line where it has more, else in the middle of the line. */
  #cut(/** @type {number} */ reach, /** @type {Block[]} */ found) {
    if (this.#line > this.#start) {
      const isList = this.#isList;
      this.#finish(this.#line, found);
      this.#isCut = this.#fence !== null;
      this.#isList = isList;
    }
    while (reach - this.#start > MAX_LENGTH) {
      const end = this.#start + MAX_LENGTH;
      const text = this.#text.slice(this.#start, end);
      const block = this.#block(text);
      found.push(this.#fence ? block : { ...block, kind: "plain" });
      this.#start = this.#line = end;
      this.#isCut = true;
    }
  }

  /** Read a whole line. @param {string} line @param {number} next @param {Block[]} found */
  #read(line, next, found) {
    if (this.#fence) this.#readCode(line, next, found);
    else if (this.#isCut) this.#endLine(next, found);
    else this.#readText(line, next, found);
  }

  /** The end of a line that was cut. @param {number} next @param {Block[]} found */
  #endLine(next, found) {
    this.#line = next;
    this.#finish(next, found);
  }

  /** @param {string} line @param {number} next @param {Block[]} found */
  #readCode(line, next, found) {
    const fence = /** @type {{mark: string, lang: string}} */ (this.#fence);
    const close = line.trim();
    const isEnd = close.length >= fence.mark.length && close === fence.mark[0].repeat(close.length);
    if (!isEnd) {
      this.#line = next;
      return;
    }
    this.#finish(this.#line, found);
    this.#fence = null;
    this.#start = this.#line = next;
  }

  /** @param {string} line @param {number} next @param {Block[]} found */
  #readText(line, next, found) {
    const fence = FENCE.exec(line);
    if (!line.trim()) this.#isAfterBlank = true;
    else if (fence && !(this.#isList && INDENTED.test(line))) {
      this.#finish(this.#line, found);
      this.#fence = { mark: fence[1], lang: fence[2].trim().split(/\s/)[0] };
    } else {
      const isItem = LIST.test(line);
      const goesOn = this.#isList && (isItem || INDENTED.test(line));
      if (this.#isAfterBlank && !goesOn) this.#finish(this.#line, found);
      if (isItem) this.#isList = true;
      this.#isAfterBlank = false;
    }
    this.#line = next;
  }
}

/** What follows the first line, which is a fence's. @param {string} text */
function afterLine(text) {
  const end = text.indexOf("\n");
  return end < 0 ? "" : text.slice(end + 1);
}
