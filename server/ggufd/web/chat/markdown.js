// Markdown to elements. Whatever an answer says, nothing in it runs, loads or freezes the page: HTML is shown as text,
// images and links of other schemes too, and what is left is sanitized again.
import DOMPurify from "../vendor/dompurify.js";
import { Marked } from "../vendor/marked.js";
import { languages, tokenize } from "../vendor/sugar-high.js";

const MAX_MARKS = 800;
/** More of these in one block than any person's text has: matching them up could take seconds. */
const MARKS = /[*_~`[\]<>]/g;
/** Lists or quotes in each other, deeper than anybody writes. */
const DEEP = /^(?:[ \t]*(?:[-+*>]|\d+[.)])){16}/m;

const SAFE_LINK = /^(?:https?|mailto):/i;

/** @param {string} text */
function escape(text) {
  return text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escape(text),
    image: ({ raw }) => escape(raw),
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    link(token) {
      if (!SAFE_LINK.test(token.href)) return escape(token.raw);
      const inner = this.parser.parseInline(token.tokens);
      return `<a href="${escape(token.href)}" target="_blank" rel="noopener noreferrer nofollow">${inner}</a>`;
    },
  },
});

const TAGS = "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre strong table tbody td th thead tr ul".split(" ");

/** Attributes that hold no address. */
const HARMLESS = ["target", "rel", "start", "align"];

/**
 * One block of Markdown as elements; as plain text where it is none that a person would write.
 * @param {string} text
 * @returns {Node}
 */
export function rendered(text) {
  if ((text.match(MARKS)?.length ?? 0) > MAX_MARKS || DEEP.test(text)) return plain(text);
  try {
    return DOMPurify.sanitize(/** @type {string} */ (marked.parse(text)), {
      ALLOWED_TAGS: TAGS,
      ALLOWED_ATTR: ["href", ...HARMLESS],
      ADD_URI_SAFE_ATTR: HARMLESS,
      ALLOWED_URI_REGEXP: SAFE_LINK,
      RETURN_DOM_FRAGMENT: true,
    });
  } catch {
    return plain(text);
  }
}

/**
 * Text as it is, with its lines.
 * @param {string} text
 * @returns {HTMLElement}
 */
export function plain(text) {
  return element("div", "plain", text);
}

/** @type {Record<string, string>} */
const SHORT = {
  bash: "shell", "c++": "cpp", cs: "csharp", golang: "go", h: "c", hpp: "cpp", js: "javascript", jsx: "javascript",
  py: "python", py3: "python", rb: "ruby", rs: "rust", sh: "shell", ts: "typescript", tsx: "typescript", yml: "yaml",
  xml: "html", svg: "html", zsh: "shell", console: "shell", jsonc: "json", patch: "diff",
};

/** What a highlighted token is, by its number. */
const TOKENS = ["", "keyword", "string", "class", "property", "property", "", "sign", "comment", "", ""];

/**
 * Code as an element, highlighted where its language is known.
 * @param {string} text
 * @param {string} lang
 * @returns {HTMLElement}
 */
export function code(text, lang) {
  const made = element("code", "");
  const name = lang.toLowerCase();
  const language = Object.hasOwn(languages, SHORT[name] ?? name) ? languages[SHORT[name] ?? name] : null;
  if (language) made.append(...highlighted(text, language));
  else made.textContent = text;
  return made;
}

/** @param {string} text @param {object} language @returns {Array<Node>} */
function highlighted(text, language) {
  return joined(tokenize(text, language)).map(([kind, part]) =>
    kind ? element("span", `code-${kind}`, part) : document.createTextNode(part),
  );
}

/** Neighbours of one kind together: fewer elements. @param {Array<[number, string]>} tokens */
function joined(tokens) {
  /** @type {Array<[string, string]>} */
  const found = [];
  for (const [type, text] of tokens) {
    const kind = TOKENS[type] ?? "";
    const before = found.at(-1);
    if (before && (before[0] === kind || !text.trim())) before[1] += text;
    else found.push([kind, text]);
  }
  return found;
}

/** @param {string} name @param {string} kind @param {string} text @returns {HTMLElement} */
export function element(name, kind, text = "") {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text) made.textContent = text;
  return made;
}
