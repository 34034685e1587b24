// Markdown as elements. The text comes from a model and may hold anything, so it only ever becomes text nodes of
// elements made here, links go nowhere but to http, https and mailto, and no picture is loaded. Everything is linear
// in the text but for nesting, which is bounded.

const DEEPEST_MARKDOWN = 12;

// ---------------------------------------------------------------- blocks

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s(.*))?$/s;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)])(?:\s+(.*)|\s*)$/s;
const MATH_BLOCK = /^\s*(\$\$|\\\[)/;

/** The blocks of a text, each with the lines it was made of: `{kind, source, ...}`. */
function blocksOf(lines) {
  const blocks = [];
  let at = 0;
  const add = (kind, to, more) => {
    blocks.push({ kind, source: lines.slice(at, to).join("\n"), ...more });
    at = to;
  };
  while (at < lines.length) {
    const line = lines[at];
    let match;
    if (!line.trim()) at++;
    else if ((match = FENCE.exec(line))) {
      const [, marks, info] = match;
      const close = new RegExp(`^ {0,3}${marks[0]}{${marks.length},}\\s*$`);
      let end = at + 1;
      while (end < lines.length && !close.test(lines[end])) end++;
      const indent = /^ */.exec(line)[0].length;
      const code = lines.slice(at + 1, end).map((text) => text.replace(new RegExp(`^ {0,${indent}}`), ""));
      add("code", Math.min(end + 1, lines.length), { code: code.join("\n"), language: info.trim().split(/\s/)[0] });
    } else if ((match = MATH_BLOCK.exec(line)) && mathEnd(lines, at, match[1]) > at) {
      const end = mathEnd(lines, at, match[1]);
      const text = lines.slice(at, end).join("\n").trim();
      add("math", end, { formula: text.slice(2, -2) });
    } else if ((match = HEADING.exec(line)))
      add("heading", at + 1, { level: match[1].length, text: (match[2] ?? "").trim().replace(/(?:^|\s)#{1,40}$/, "") });
    else if (RULE.test(line)) add("rule", at + 1);
    else if (QUOTE.test(line)) {
      let end = at + 1;
      while (end < lines.length && lines[end].trim() && (QUOTE.test(lines[end]) || !startsBlock(lines, end))) end++;
      add("quote", end, { lines: lines.slice(at, end).map((text) => text.replace(QUOTE, "")) });
    } else if (ITEM.test(line)) {
      const { end, items, ordered, start } = listAt(lines, at);
      add("list", end, { items, ordered, start });
    } else if (
      line.includes("|") &&
      isDivider(lines[at + 1] ?? "") &&
      cellsOf(line).length === cellsOf(lines[at + 1]).length
    ) {
      let end = at + 2;
      while (end < lines.length && lines[end].trim() && lines[end].includes("|")) end++;
      add("table", end, { rows: lines.slice(at, end).map(cellsOf) });
    } else {
      let end = at + 1;
      while (end < lines.length && lines[end].trim() && !startsBlock(lines, end)) end++;
      add("paragraph", end, { text: lines.slice(at, end).join("\n") });
    }
  }
  return blocks;
}

/** The line after a formula that begins a line and ends one; 0 where there is none. */
function mathEnd(lines, from, open) {
  const close = open === "$$" ? "$$" : "\\]";
  for (let end = from; end < lines.length && end < from + 200; end++) {
    const text = end === from ? lines[end].trimStart().slice(2) : lines[end];
    if (!text.trim() && end !== from) return 0;
    const found = text.indexOf(close);
    if (found >= 0) return text.slice(found + 2).trim() ? 0 : end + 1;
  }
  return 0;
}

function startsBlock(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  return (
    FENCE.test(line) ||
    HEADING.test(line) ||
    RULE.test(line) ||
    QUOTE.test(line) ||
    (item && Boolean(item[3]) && (!/\d/.test(item[2]) || /^1[.)]/.test(item[2]))) ||
    (MATH_BLOCK.test(line) && mathEnd(lines, at, MATH_BLOCK.exec(line)[1]) > at)
  );
}

function listAt(lines, from) {
  const [, lead, first] = ITEM.exec(lines[from]);
  const ordered = /\d/.test(first);
  const items = [];
  let at = from;
  while (at < lines.length) {
    const match = ITEM.exec(lines[at]);
    if (!match || match[1].length > lead.length + 1 || match[1].length < lead.length) break;
    if (/\d/.test(match[2]) !== ordered || (!ordered && match[2] !== first) || RULE.test(lines[at])) break;
    const inner = match[1].length + match[2].length + 1;
    const own = [match[3] ?? ""];
    at++;
    for (let blank = false; at < lines.length; at++) {
      const line = lines[at];
      const indent = /^ */.exec(line)[0].length;
      if (!line.trim()) {
        blank = true;
        own.push("");
      } else if (indent >= Math.min(inner, match[1].length + 2)) own.push(line.slice(Math.min(indent, inner)));
      else if (blank || startsBlock(lines, at) || ITEM.test(line)) break;
      else own.push(line.trimStart());
      if (line.trim()) blank = false;
    }
    const gap = own.length > 1 && own.at(-1) === "";
    while (own.length > 1 && own.at(-1) === "") own.pop();
    items.push({ lines: own, gap });
  }
  return { end: at, items, ordered, start: ordered ? parseInt(first, 10) : 1 };
}

/** Whether a line is what stands between a table's head and its body: |:--|--:| */
function isDivider(line) {
  return /^[\s|:-]+$/.test(line) && line.includes("-") && cellsOf(line).every((cell) => /^:?-+:?$/.test(cell));
}

/** The cells of a table's line; a bar after a backslash or within a code span is text. */
function cellsOf(line) {
  const text = line.trim().replace(/^\|/, "");
  const cells = [];
  let cell = "";
  let code = false;
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "\\" && text[i + 1] === "|") cell += text[++i];
    else if (text[i] === "|" && !code) {
      cells.push(cell.trim());
      cell = "";
    } else {
      if (text[i] === "`") code = !code;
      cell += text[i];
    }
  }
  if (cell.trim()) cells.push(cell.trim());
  return cells;
}

function blockElement(block, depth) {
  switch (block.kind) {
    case "code":
      return codeBlock(block.code, block.language);
    case "math":
      return h("div", { class: "display" }, renderMath(block.formula.trim(), true));
    case "heading":
      return h(`h${Math.min(6, block.level + 2)}`, { class: `h${block.level}` }, inline(block.text));
    case "rule":
      return h("hr");
    case "quote":
      return h("blockquote", null, blockElements(block.lines, depth + 1));
    case "list":
      return listElement(block, depth);
    case "table":
      return tableElement(block.rows);
    default:
      return h("p", null, inline(block.text));
  }
}

function blockElements(lines, depth) {
  if (depth > DEEPEST_MARKDOWN) return [h("p", null, lines.join("\n"))];
  return blocksOf(lines).map((block) => blockElement(block, depth));
}

function listElement({ items, ordered, start }, depth) {
  const loose = items.slice(0, -1).some((item) => item.gap) || items.some((item) => item.lines.includes(""));
  const list = items.map((item) => {
    const task = /^\[([ xX])\] +/.exec(item.lines[0]);
    const lines = task ? [item.lines[0].slice(task[0].length), ...item.lines.slice(1)] : item.lines;
    let inner = blockElements(lines, depth + 1);
    if (!loose && inner[0]?.localName === "p") inner = [...inner[0].childNodes, ...inner.slice(1)];
    const box =
      task &&
      h("input", {
        type: "checkbox",
        disabled: true,
        checked: task[1] !== " ",
        "aria-label": task[1] === " " ? "not done" : "done",
      });
    return h("li", task ? { class: "task" } : null, box, inner);
  });
  return ordered ? h("ol", start === 1 ? null : { start }, list) : h("ul", null, list);
}

function tableElement([head, divider, ...body]) {
  const sides = divider.map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : null));
  const cells = (tag, row) =>
    head.map((_, i) => h(tag, { class: sides[i], ...(tag === "th" ? { scope: "col" } : {}) }, inline(row[i] ?? "")));
  const table = h(
    "table",
    null,
    h("thead", null, h("tr", null, cells("th", head))),
    h(
      "tbody",
      null,
      body.map((row) => h("tr", null, cells("td", row))),
    ),
  );
  return h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Table" }, table);
}

// ---------------------------------------------------------------- inline

const PUNCTUATION = /[!-/:-@[-`{-~]/;
const BARE_LINK = /(?:https?:\/\/|mailto:)[^\s<>"'`]{1,2000}/y;
const MARKS = [
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
];

/** Text with emphasis, code, links and formulas, as nodes. */
function inline(text, depth = 0) {
  const nodes = [];
  let plain = "";
  const dead = new Set(); // marks that nothing closes from here on
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  const push = (node, length) => {
    flush();
    nodes.push(node);
    at += length;
  };
  const find = (mark, from) => {
    if (dead.has(mark)) return -1;
    const found = text.indexOf(mark, from);
    if (found < 0) dead.add(mark);
    return found;
  };
  let at = 0;
  scan: while (at < text.length) {
    const sign = text[at];
    const next = text[at + 1];
    if (sign === "\\") {
      if (next === "(" || next === "[") {
        const end = find(next === "(" ? "\\)" : "\\]", at + 2);
        if (end > 0) {
          push(renderMath(text.slice(at + 2, end).trim(), next === "["), end + 2 - at);
          continue;
        }
      }
      if (next === "\n") push(h("br"), 2);
      else if (next && PUNCTUATION.test(next)) {
        plain += next;
        at += 2;
      } else {
        plain += sign;
        at++;
      }
    } else if (sign === "\n") {
      plain = plain.trimEnd();
      push(h("br"), 1);
      while (text[at] === " ") at++;
    } else if (sign === "`") {
      const marks = /^`+/.exec(text.slice(at, at + 100))[0];
      let end = find(marks, at + marks.length);
      while (end > 0 && text[end + marks.length] === "`") {
        while (text[end] === "`") end++;
        end = find(marks, end);
      }
      if (end > 0) {
        const code = text.slice(at + marks.length, end).replace(/\n/g, " ");
        push(h("code", null, /^ .*[^ ].* $/.test(code) ? code.slice(1, -1) : code), end + marks.length - at);
      } else {
        plain += marks;
        at += marks.length;
      }
    } else if (sign === "$") {
      const found = formulaAt(text, at, find);
      if (found) push(renderMath(found.formula, found.display), found.length);
      else {
        plain += sign;
        at++;
      }
    } else if (sign === "[" || (sign === "!" && next === "[")) {
      const link = depth < DEEPEST_MARKDOWN && linkAt(text, sign === "!" ? at + 1 : at, dead);
      if (link) {
        const label = sign === "!" ? [link.label || "picture"] : inline(link.label, depth + 1);
        push(linkElement(link.target, label, link.label), link.end - at);
      } else {
        plain += sign;
        at++;
      }
    } else if (sign === "<" && /^<(?:https?:\/\/|mailto:)[^\s<>]{1,2000}>/.test(text.slice(at, at + 2010))) {
      const target = text.slice(at + 1, text.indexOf(">", at));
      push(linkElement(target, [target], target), target.length + 2);
    } else if (
      (sign === "h" || sign === "m") &&
      !/[\w/]/.test(text[at - 1] ?? "") &&
      ((BARE_LINK.lastIndex = at), BARE_LINK.test(text))
    ) {
      let target = text.slice(at, BARE_LINK.lastIndex).replace(/[.,:;!?*_~]+$/, "");
      if (target.endsWith(")") && !target.includes("(")) target = target.replace(/[).,:;!?*_~]+$/, "");
      push(linkElement(target, [target], target), target.length);
    } else {
      if (depth < DEEPEST_MARKDOWN && (sign === "*" || sign === "_" || sign === "~")) {
        for (const [mark, tag] of MARKS) {
          if (!text.startsWith(mark, at)) continue;
          const end = closing(text, at, mark, find);
          if (end < 0) continue;
          push(h(tag, null, inline(text.slice(at + mark.length, end), depth + 1)), end + mark.length - at);
          continue scan;
        }
        const run = /^[*_~]+/.exec(text.slice(at, at + 100))[0];
        plain += run;
        at += run.length;
        continue;
      }
      plain += sign;
      at++;
    }
  }
  flush();
  return nodes;
}

/** Where emphasis that opens at `at` closes; -1 where it doesn't open or never closes. */
function closing(text, at, mark, find) {
  const from = at + mark.length;
  if (/\s|^$/.test(text[from] ?? "") || (mark[0] === "_" && /\w/.test(text[at - 1] ?? ""))) return -1;
  for (let end = find(mark, from + 1), tries = 0; end > 0 && tries < 40; end = find(mark, end + 1), tries++) {
    if (/\s/.test(text[end - 1]) || text[end - 1] === "\\") continue;
    if (mark[0] === "_" && /\w/.test(text[end + mark.length] ?? "")) continue;
    if (mark.length === 1 && (text[end + 1] === mark || text[end - 1] === mark)) {
      // Two in a row belong to a strong part inside, unless three close both.
      if (text[end + 1] === mark && text[end + 2] !== mark) end++;
      if (text[end + 2] !== mark) continue;
      end += 2;
    }
    if (mark.length === 2 && text[end + 2] === mark[0]) end++;
    return end;
  }
  return -1;
}

function formulaAt(text, at, find) {
  if (text[at + 1] === "$") {
    const end = find("$$", at + 2);
    return end > at + 2 ? { formula: text.slice(at + 2, end).trim(), display: true, length: end + 2 - at } : null;
  }
  if (/[\s$]|^$/.test(text[at + 1] ?? "")) return null;
  for (let end = find("$", at + 1), tries = 0; end > 0 && tries < 8; end = find("$", end + 1), tries++) {
    if (text[end - 1] === "\\") continue;
    const formula = text.slice(at + 1, end);
    // Prices are no formulas: what closes has no space before it and no digit after it.
    if (/\s/.test(text[end - 1]) || /\d/.test(text[end + 1] ?? "") || formula.includes("\n\n")) return null;
    return { formula, display: false, length: end + 1 - at };
  }
  return null;
}

function linkAt(text, at, dead) {
  if (dead.has("](")) return null;
  let open = 0;
  let end = at;
  for (const last = Math.min(text.length, at + 500); end < last; end++) {
    if (text[end] === "\\") end++;
    else if (text[end] === "[") open++;
    else if (text[end] === "]" && --open === 0) break;
  }
  if (text[end] !== "]" || text[end + 1] !== "(") {
    if (text.indexOf("](", at) < 0) dead.add("](");
    return null;
  }
  const match = /^\(\s*<?([^\s<>]*)>?(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)$/.exec(balanced(text, end + 1));
  if (!match) return null;
  return { label: text.slice(at + 1, end), target: match[1], end: end + 1 + match[0].length };
}

/** From "(" to the ")" that closes it. */
function balanced(text, from) {
  let open = 0;
  for (let end = from; end < Math.min(text.length, from + 4000); end++) {
    if (text[end] === "(") open++;
    else if (text[end] === ")" && --open === 0) return text.slice(from, end + 1);
    else if (text[end] === "\n") break;
  }
  return "";
}

function safeTarget(target) {
  try {
    const url = new URL(target);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url : null;
  } catch {
    return null;
  }
}

/** A link that shows where it leads; plain text where that's nowhere to go. */
function linkElement(target, label, text) {
  const url = safeTarget(target);
  if (!url) return h("span", null, label, target && !target.includes(text) ? ` (${target})` : "");
  const place = url.protocol === "mailto:" ? url.pathname : url.host;
  const shown = text.includes(place) ? null : h("span", { class: "place" }, ` (${place})`);
  return h(
    "a",
    { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow", title: url.href },
    label,
    shown,
  );
}

// ---------------------------------------------------------------- code

const KEYWORDS = new Set(
  `abstract and as assert async await begin bool boolean break case catch char class const constexpr
  continue def default del delete do done double elif else end enum except export extends extern false False fi final
  finally float fn for from func function global go if impl import in include instanceof int interface is lambda let long
  loop match mod module mut namespace new nil None nonlocal not null operator or override package pass private protected
  pub public raise ref return self short signed sizeof static string struct super switch template then this throw trait
  true True try type typedef typeof union unless unsigned until use using var virtual void volatile where while with yield
  SELECT FROM WHERE JOIN LEFT INNER OUTER ON GROUP ORDER BY HAVING INSERT INTO VALUES UPDATE SET DELETE CREATE TABLE
  ALTER DROP AND OR NOT NULL AS LIMIT DISTINCT UNION select from where insert update`.split(/\s+/),
);
const HASHES =
  /^(?:py|python|sh|bash|zsh|shell|console|rb|ruby|yaml|yml|toml|r|perl|make|makefile|dockerfile|ini|conf)$/i;
const DASHES = /^(?:sql|lua|haskell|hs|ada)$/i;
const PLAIN = /^(?:text|txt|plain|markdown|md|output|log|)$/i;
const LONGEST_COLOURED = 60_000; // letters

function codeBlock(code, language) {
  const copy = h("button", { type: "button", class: "copy", "aria-label": "Copy the code" }, icon("copy"), "Copy");
  copy.addEventListener("click", () => copyText(code, copy));
  const head = h("div", { class: "codehead" }, h("span", null, language.slice(0, 40) || "text"), copy);
  const body = h(
    "code",
    null,
    PLAIN.test(language) || code.length > LONGEST_COLOURED ? code : coloured(code, language),
  );
  return h(
    "figure",
    { class: "code" },
    head,
    h("pre", { tabindex: "0", "aria-label": `Code, ${language || "text"}` }, body),
  );
}

function coloured(code, language) {
  const comment = HASHES.test(language)
    ? "#[^\\n]*"
    : DASHES.test(language)
      ? "--[^\\n]*"
      : "\\/\\/[^\\n]*|\\/\\*[^]*?(?:\\*\\/|$)|<[!]--[^]*?(?:-->|$)";
  const parts = new RegExp(
    `(${comment})|("""[^]*?(?:"""|$)|"(?:[^"\\\\\\n]|\\\\.)*"?|'(?:[^'\\\\\\n]|\\\\.)*'?|\`(?:[^\`\\\\]|\\\\.)*\`?)|(\\b\\d[\\w.]*)|([A-Za-z_$][\\w$]*)(?=(\\s*\\()?)`,
    "g",
  );
  const nodes = [];
  let at = 0;
  for (const match of code.matchAll(parts)) {
    const [all, note, string, digits, word, call] = match;
    const kind = note
      ? "remark"
      : string
        ? "string"
        : digits
          ? "digits"
          : KEYWORDS.has(word)
            ? "word"
            : call !== undefined
              ? "call"
              : null;
    if (!kind) continue;
    if (match.index > at) nodes.push(code.slice(at, match.index));
    nodes.push(h("span", { class: kind }, all));
    at = match.index + all.length;
  }
  nodes.push(code.slice(at));
  return nodes;
}

// ---------------------------------------------------------------- a text that grows

const shown = new WeakMap(); // element -> the sources of the blocks it shows

/** Show `text` in `element`; blocks that stayed as they were are left alone, so that an answer can grow cheaply. */
function renderMarkdown(element, text) {
  const blocks = blocksOf(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"));
  const keys = blocks.map((block) => `${block.kind} ${block.source}`);
  const before = shown.get(element) ?? [];
  let same = 0;
  while (same < keys.length && keys[same] === before[same]) same++;
  while (element.childNodes.length > same) element.lastChild.remove();
  element.append(...blocks.slice(same).map((block) => blockElement(block, 0)));
  shown.set(element, keys);
}
