// Markdown to elements. The text comes from a model and is untrusted. The libraries in vendor/ do the parsing:
// markdown-it parses Markdown, Temml converts TeX to MathML, highlight.js highlights code. Elements are built from their
// tokens and trees, never from HTML, so a tag in a text stays text. DOMPurify then checks every element and attribute.
//
// This file ensures four properties that the libraries don't:
// - The time to show a text is linear in its length, also while it grows (renderMarkdown, highlighted, formulaElement).
// - Elements are nested at most MAX_DEPTH levels, and deeper text is still shown: markdown-it drops it, and Temml has no limit.
// - Links lead only to absolute http, https and mailto addresses, and images become links (linkElement).
// - The page's policy stays without a single Trusted Types policy, which DOMPurify needs to parse HTML; it runs in place.

const MAX_DEPTH = 24; // levels of nested elements; 60 in a formula
const MAX_FORMULA = 4000; // characters
const MAX_HIGHLIGHTED = 60_000; // characters of a code block
const HIGHLIGHT_MS = 300; // ms after which a call of renderMarkdown starts no more highlighting

// ---------------------------------------------------------------- parsing

// Left out: "entity" (text is shown as it was written), "reference" (a definition would change earlier blocks),
// "lheading" (a list that begins after a paragraph would be a heading for a moment) and "code" (indented text is prose).
const markdown = markdownit({ breaks: true, linkify: true }).disable(["entity", "reference", "lheading", "code"]);
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false }).add("ftp:", null).add("//", null);
markdown.validateLink = () => true; // linkElement decides, and shows invalid addresses as text
markdown.normalizeLink = markdown.normalizeLinkText = (address) => address; // linkElement leaves it to the browser's URL

// CommonMark requires a space or punctuation outside of "**" next to punctuation, which Chinese and Japanese don't have.
markdown.inline.State = class extends markdown.inline.State {
  scanDelims(start, canSplitWord) {
    const run = super.scanDelims(start, canSplitWord);
    if (!canSplitWord) return run;
    const blank = (character) => /^\s*$/.test(character ?? "");
    return {
      length: run.length,
      can_open: !blank(this.src[start + run.length]),
      can_close: !blank(this.src[start - 1]),
    };
  }
};

/** The index of `mark` in the text of a parser's state; Infinity where there is none. The last search of each mark is
 * cached: marks that nothing closes would otherwise search the rest of the text again and again. */
function indexOf(state, mark, from) {
  const cache = (state.indices ??= {});
  if (!cache[mark] || from < cache[mark].from || from > cache[mark].index) {
    const index = state.src.indexOf(mark, from);
    cache[mark] = { from, index: index < 0 ? Infinity : index };
  }
  return cache[mark].index;
}

const CLOSES = { $$: "$$", "\\(": "\\)", "\\[": "\\]" };

/** The formula at the position of an inline state: `{source, display, end}`, or null. */
function formulaAt(state) {
  const { src, pos } = state;
  const open = src.slice(pos, pos + 2);
  if (CLOSES[open]) {
    const end = indexOf(state, CLOSES[open], pos + 2);
    if (end < Infinity && end > pos + 2)
      return { source: src.slice(pos + 2, end), display: open !== "\\(", end: end + 2 };
  }
  if (src[pos] !== "$" || /^[\s$]?$/.test(src[pos + 1] ?? "")) return null;
  for (let end = indexOf(state, "$", pos + 1), tries = 0; end < Infinity && tries < 8; tries++) {
    if (src[end - 1] !== "\\") {
      // Prices are no formulas: a closing $ has no space before it and no digit after it.
      if (/\s/.test(src[end - 1]) || /\d/.test(src[end + 1] ?? "")) return null;
      return { source: src.slice(pos + 1, end), display: false, end: end + 1 };
    }
    end = indexOf(state, "$", end + 1);
  }
  return null;
}

markdown.inline.ruler.before("escape", "formula", (state, silent) => {
  const formula = formulaAt(state);
  if (!formula || formula.end > state.posMax) return false;
  if (!silent) Object.assign(state.push("formula", "", 0), { content: formula.source, meta: formula });
  state.pos = formula.end;
  return true;
});

/** A display formula that begins a line and ends one, without a blank line in it. */
function formulaBlock(state, start, end, silent) {
  const from = state.bMarks[start] + state.tShift[start];
  const open = state.src.slice(from, from + 2);
  if (open !== "$$" && open !== "\\[") return false;
  const close = indexOf(state, CLOSES[open], from + 2);
  if (close - from > MAX_FORMULA) return false;
  let line = start;
  while (state.eMarks[line] < close) {
    line++;
    if (line >= end || state.isEmpty(line) || state.sCount[line] < state.blkIndent) return false;
  }
  if (state.src.slice(close + 2, state.eMarks[line]).trim()) return false;
  if (silent) return true;
  const lines = state.getLines(start, line + 1, state.blkIndent, false).trim();
  const values = { content: lines.slice(2, -2), meta: { display: true }, map: [start, line + 1] };
  Object.assign(state.push("formula", "", 0), values);
  state.line = line + 1;
  return true;
}

/** Renders blocks deeper than MAX_DEPTH as paragraphs of text. */
function deepBlock(state, start, end, silent) {
  if (silent || state.level < MAX_DEPTH) return false;
  let line = start + 1;
  while (line < end && !state.isEmpty(line) && state.sCount[line] >= state.blkIndent) line++;
  state.push("paragraph_open", "p", 1);
  const text = state.push("inline", "", 0);
  text.children = [];
  text.content = state.getLines(start, line, state.blkIndent, false);
  state.push("paragraph_close", "p", -1);
  state.line = line;
  return true;
}

markdown.block.ruler.before("table", "formula", formulaBlock, { alt: ["paragraph", "blockquote", "list"] });
markdown.block.ruler.before("formula", "deep", deepBlock);

/** The top-level blocks of a text, each with its source. The joined sources equal the text. */
function blocksOf(text) {
  const lines = [0];
  for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n", end + 1)) lines.push(end + 1);
  const blocks = [];
  for (const token of markdown.parse(text, {})) {
    if (token.level === 0 && token.nesting >= 0)
      blocks.push({ from: blocks.length ? lines[token.map[0]] : 0, tokens: [] });
    blocks.at(-1).tokens.push(token);
  }
  blocks.forEach((block, i) => (block.source = text.slice(block.from, blocks[i + 1]?.from)));
  return blocks;
}

// ---------------------------------------------------------------- elements

/** Append the elements of markdown-it's tokens to `root`. */
function appendTokens(root, tokens, depth) {
  const open = []; // open {element, token}, innermost last; hidden or too deep ones share their parent's element
  for (const token of tokens) {
    const parent = open.at(-1)?.element ?? root;
    if (token.nesting > 0) {
      const element = token.hidden || depth + open.length > MAX_DEPTH ? parent : openElement(token);
      if (element !== parent) parent.append(element);
      open.push({ element, parent, token });
    } else if (token.nesting < 0) closeElement(open.pop());
    else if (token.type === "inline") appendInline(parent, token, depth + open.length);
    else parent.append(leafElement(token));
  }
}

function openElement(token) {
  const { tag, type } = token;
  if (type === "heading_open") return h(`h${Math.min(6, Number(tag[1]) + 2)}`, { class: `h${tag[1]}` });
  if (type === "link_open") return h("span");
  if (tag === "th" || tag === "td")
    return h(tag, { class: token.attrGet("style")?.replace("text-align:", ""), scope: tag === "th" ? "col" : null });
  return h(tag === "s" ? "del" : tag, { start: token.attrGet("start") });
}

function closeElement({ element, parent, token }) {
  if (element === parent) return;
  if (token.type === "link_open") {
    const target = token.attrGet("href");
    // <std::vector> looks like an address: without a link it keeps its brackets.
    if (token.markup === "autolink" && !safeAddress(target)) element.textContent = `<${target}>`;
    element.replaceWith(linkElement(target, [...element.childNodes], element.textContent));
  } else if (token.type === "table_open") {
    const wide = h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Table" });
    element.replaceWith(wide);
    wide.append(element);
  }
}

function appendInline(parent, token, depth) {
  const item = parent.localName === "p" ? parent.parentElement : parent;
  const first = token.children[0] ?? {};
  const task = item?.localName === "li" && !item.textContent && /^\[([ xX])\] +/.exec(first.content ?? "");
  if (task) {
    const done = task[1] !== " ";
    first.content = first.content.slice(task[0].length);
    item.className = "task";
    const label = done ? "done" : "not done";
    parent.append(h("input", { type: "checkbox", disabled: true, checked: done, "aria-label": label }));
  }
  appendTokens(parent, token.children, depth);
  if (!token.children.length) parent.append(token.content);
}

function leafElement(token) {
  switch (token.type) {
    case "softbreak":
    case "hardbreak":
      return h("br");
    case "hr":
      return h("hr");
    case "code_inline":
      return h("code", null, token.content);
    case "fence":
      return codeElement(token.content.replace(/\n$/, ""), token.info.trim().split(/\s/)[0]);
    case "formula": {
      const formula = formulaElement(token.content.trim(), token.meta.display);
      return token.block ? h("div", { class: "display" }, formula) : formula;
    }
    case "image":
      return linkElement(token.attrGet("src"), [token.content || "picture"], token.content);
    default:
      return token.content;
  }
}

function safeAddress(address) {
  const url = URL.canParse(address) ? new URL(address) : null;
  return ["http:", "https:", "mailto:"].includes(url?.protocol) ? url : null;
}

/** A link that shows its host; plain text for an address that isn't allowed. */
function linkElement(target, label, text) {
  const url = safeAddress(target);
  if (!url)
    return h("span", null, label, target && !target.includes(text) && !text.includes(target) ? ` (${target})` : "");
  const destination = url.protocol === "mailto:" ? url.pathname : url.host;
  const suffix = text.includes(destination) ? null : h("span", { class: "place" }, ` (${destination})`);
  const rel = "noopener noreferrer nofollow";
  return h("a", { href: url.href, target: "_blank", rel, title: url.href }, label, suffix);
}

// ---------------------------------------------------------------- formulas

// Commands that Temml doesn't have.
const MACROS = { "\\mbox": "\\text{#1}" };
// Definitions could make a short formula very long.
const DEFINITION =
  /\\(?:[gex]?def|let|futurelet|(?:re|provide)?newcommand|newenvironment|DeclareMathOperator)(?![a-z])/i;

const deeperThan = (levels, element) =>
  levels < 0 || [...element.children].some((child) => deeperThan(levels - 1, child));

/** A formula as a <math> element; as code where Temml doesn't support it, or where it is too long or too deep. */
function formulaElement(source, display) {
  try {
    if (source.length > MAX_FORMULA || DEFINITION.test(source)) throw new Error("unsupported");
    const rows = display && source.includes("\\\\") && !source.includes("\\begin");
    const environment = source.includes("&") ? "aligned" : "gathered";
    const box = h("div");
    temml.render(rows ? `\\begin{${environment}}${source}\\end{${environment}}` : source, box, {
      displayMode: display,
      throwOnError: true,
      maxSize: [5, 50], // em and pt of spaces and rules
      macros: { ...MACROS },
    });
    if (deeperThan(60, box)) throw new Error("too deep");
    return box.firstChild;
  } catch {
    return h("code", { class: "formula" }, source);
  }
}

// ---------------------------------------------------------------- code

hljs.unregisterLanguage("markdown"); // its time grows with the cube of a line's length
let deadline = 0; // of colouring, by performance.now()

function codeElement(code, language) {
  return h(
    "figure",
    { class: "code" },
    h("div", { class: "codehead" }, h("span", null, language.slice(0, 40) || "text")),
    h("pre", { tabindex: "0", "aria-label": `Code, ${language || "text"}` }, h("code", null, highlighted(code, language))),
  );
}

/** Code with its tokens in spans, within a time limit. Some of highlight.js' grammars take quadratic time,
 * in the length of lines or in that of the code: code with long lines isn't highlighted, and other code in pieces. */
function highlighted(code, language) {
  if (!hljs.getLanguage(language) || code.length > MAX_HIGHLIGHTED || /[^\n]{501}/.test(code)) return code;
  return (code.match(/[^]{1,8000}(?:\n|$)/g) ?? []).flatMap((piece) => {
    if (performance.now() > deadline) return piece;
    try {
      return spans(hljs.highlight(piece, { language, ignoreIllegals: true })._emitter.root.children, MAX_DEPTH);
    } catch {
      return piece;
    }
  });
}

function spans(nodes, levels) {
  return nodes.flatMap((node) => {
    if (typeof node === "string") return node;
    const inner = spans(node.children, levels - 1);
    return levels > 0 && node.scope ? h("span", { class: `hljs-${node.scope.split(".")[0]}` }, inner) : inner;
  });
}

function copyButton(code) {
  const copy = h("button", { class: "copy", "aria-label": "Copy the code" }, icon("copy"), "Copy");
  copy.addEventListener("click", () => copyText(code.textContent, copy));
  return copy;
}

// ---------------------------------------------------------------- a text that grows

DOMPurify.setConfig({
  IN_PLACE: true,
  TRUSTED_TYPES_POLICY: null,
  SAFE_FOR_XML: false, // it would remove text such as "<b>", which is never parsed as HTML here
  USE_PROFILES: { mathMl: true },
  ADD_TAGS: `a blockquote br code del div em figure h3 h4 h5 h6 hr input li ol p pre span strong table tbody td th thead
    tr ul`.split(/\s+/),
  ADD_ATTR: "checked class disabled href rel role scope start style tabindex target title type".split(" "),
  FORBID_ATTR: ["id", "name"],
  ALLOW_DATA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:(?:https?|mailto):|[^a-z]|[a-z+.-]+(?:[^a-z+.:-]|$))/i,
});

/** The sanitized elements of blocks. One call of DOMPurify for all: each call leaves an iterator, which every later
 * removal of an element on the page updates until it is collected. */
function elementsOf(blocks) {
  const box = h("div");
  for (const { tokens } of blocks) appendTokens(box, tokens, 0);
  DOMPurify.sanitize(box);
  for (const head of box.querySelectorAll(".codehead")) head.append(copyButton(head.nextSibling));
  const elements = document.createDocumentFragment();
  while (box.firstChild) elements.append(box.firstChild);
  return elements;
}

const rendered = new WeakMap(); // element -> {sources of its blocks, settled, read, length (all in characters), cost in ms}

/**
 * Renders `text` in `element`. Unchanged blocks are kept. While a text grows, only its last block is parsed again; a
 * slow one only after it has grown by a fifth, and until then new text is appended unformatted.
 */
function renderMarkdown(element, text, growing = false) {
  text = text.replace(/\r\n?/g, "\n");
  const before = rendered.get(element) ?? { sources: [], settled: 0, read: 0, length: 0, cost: 0 };
  const settled = growing ? before.settled : 0;
  if (growing && before.cost > 50 && text.length - settled < 1.2 * before.read) {
    const last = element.lastElementChild;
    (last.querySelector(":scope > pre > code") ?? last).append(text.slice(before.length));
    before.length = text.length;
    return;
  }
  const startedAt = performance.now();
  deadline = startedAt + HIGHLIGHT_MS;
  const first = growing ? Math.max(0, before.sources.length - 1) : 0;
  const blocks = blocksOf(text.slice(settled));
  const same = blocks.findIndex(({ source }, i) => source !== before.sources[first + i]);
  const unchanged = first + (same < 0 ? blocks.length : same);
  while (element.childNodes.length > unchanged) element.lastChild.remove();
  element.append(elementsOf(blocks.slice(unchanged - first)));
  const sources = [...before.sources.slice(0, first), ...blocks.map(({ source }) => source)];
  const read = blocks.at(-1)?.source.length ?? 0;
  const cost = read && performance.now() - startedAt;
  rendered.set(element, { sources, settled: read ? text.length - read : settled, read, length: text.length, cost });
}
