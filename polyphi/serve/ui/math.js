// TeX formulas as MathML, which browsers draw by themselves. What isn't known here throws, and the caller shows the
// source instead: a formula is never half right.

const MATHML = "http://www.w3.org/1998/Math/MathML";
const LONGEST_FORMULA = 4000; // letters
const DEEPEST_FORMULA = 60; // braces within braces

const words = (text) =>
  Object.fromEntries(
    text
      .trim()
      .split(/\s+/)
      .map((pair) => [pair.slice(0, -1).replace(/:$/, ""), pair.at(-1)]),
  );

// "name:sign" pairs; every sign is one UTF-16 unit.
const LETTERS = words(`alpha:α beta:β gamma:γ delta:δ epsilon:ϵ varepsilon:ε zeta:ζ eta:η theta:θ vartheta:ϑ iota:ι
  kappa:κ lambda:λ mu:μ nu:ν xi:ξ omicron:ο pi:π varpi:ϖ rho:ρ varrho:ϱ sigma:σ varsigma:ς tau:τ upsilon:υ phi:ϕ
  varphi:φ chi:χ psi:ψ omega:ω Gamma:Γ Delta:Δ Theta:Θ Lambda:Λ Xi:Ξ Pi:Π Sigma:Σ Upsilon:Υ Phi:Φ Psi:Ψ Omega:Ω
  infty:∞ partial:∂ nabla:∇ hbar:ℏ ell:ℓ Re:ℜ Im:ℑ aleph:ℵ emptyset:∅ varnothing:∅ imath:ı jmath:ȷ wp:℘ top:⊤ bot:⊥
  angle:∠ triangle:△ square:□ degree:° dagger:† ddagger:‡ clubsuit:♣ diamondsuit:♢ heartsuit:♡ spadesuit:♠ checkmark:✓
  ldots:… dots:… dotsc:… dotsb:⋯ cdots:⋯ vdots:⋮ ddots:⋱ prime:′ forall:∀ exists:∃ nexists:∄ complement:∁`);
const OPERATORS = words(`pm:± mp:∓ times:× div:÷ cdot:⋅ ast:∗ star:⋆ circ:∘ bullet:∙ oplus:⊕ ominus:⊖ otimes:⊗ oslash:⊘
  odot:⊙ cap:∩ cup:∪ sqcap:⊓ sqcup:⊔ vee:∨ lor:∨ wedge:∧ land:∧ setminus:∖ neg:¬ lnot:¬ le:≤ leq:≤ leqslant:≤ ge:≥
  geq:≥ geqslant:≥ ne:≠ neq:≠ ll:≪ gg:≫ equiv:≡ sim:∼ simeq:≃ approx:≈ cong:≅ propto:∝ asymp:≍ doteq:≐ prec:≺ succ:≻
  preceq:≼ succeq:≽ in:∈ notin:∉ ni:∋ subset:⊂ supset:⊃ subseteq:⊆ supseteq:⊇ subsetneq:⊊ mid:∣ nmid:∤ parallel:∥ perp:⟂
  models:⊨ vdash:⊢ dashv:⊣ to:→ rightarrow:→ leftarrow:← gets:← leftrightarrow:↔ Rightarrow:⇒ Leftarrow:⇐
  Leftrightarrow:⇔ implies:⟹ impliedby:⟸ iff:⟺ longrightarrow:⟶ longleftarrow:⟵ Longrightarrow:⟹ Longleftarrow:⟸
  longleftrightarrow:⟷ Longleftrightarrow:⟺ mapsto:↦ longmapsto:⟼ uparrow:↑ downarrow:↓ updownarrow:↕ Uparrow:⇑
  Downarrow:⇓ nearrow:↗ searrow:↘ hookrightarrow:↪ rightharpoonup:⇀ rightleftharpoons:⇌ colon:: therefore:∴ because:∵
  lfloor:⌊ rfloor:⌋ lceil:⌈ rceil:⌉ langle:⟨ rangle:⟩ lbrace:{ rbrace:} lbrack:[ rbrack:] vert:| lvert:| rvert:| Vert:‖
  lVert:‖ rVert:‖ backslash:\\ lt:< gt:> amalg:⨿ bowtie:⋈ triangleq:≜ coloneqq:≔ gtrsim:≳ lesssim:≲ not:̸`);
const LARGE = words(
  `sum:∑ prod:∏ coprod:∐ bigcup:⋃ bigcap:⋂ bigvee:⋁ bigwedge:⋀ bigoplus:⨁ bigotimes:⨂ bigodot:⨀ biguplus:⨄`,
);
const INTEGRALS = words(`int:∫ iint:∬ iiint:∭ oint:∮`);
const FUNCTIONS = new Set(
  `arccos arcsin arctan arg cos cosh cot coth csc deg dim exp hom ker lg ln log sec sin sinh tan
  tanh`.split(/\s+/),
);
const LIMITED = new Set(`lim limsup liminf max min sup inf det gcd Pr argmax argmin`.split(" "));
const ACCENTS = words(`hat:^ widehat:^ check:ˇ tilde:~ widetilde:~ acute:´ grave:\` dot:˙ ddot:¨ breve:˘ bar:¯ vec:→
  overline:‾ overrightarrow:→ overleftarrow:← overbrace:⏞`);
const UNDER = words(`underline:_ underbrace:⏟`);
const WIDE = new Set(
  "widehat widetilde overline overrightarrow overleftarrow overbrace underline underbrace".split(" "),
);
const SPACES = {
  ",": 0.167,
  ":": 0.222,
  ">": 0.222,
  ";": 0.278,
  "!": -0.167,
  " ": 0.25,
  quad: 1,
  qquad: 2,
  enspace: 0.5,
  thinspace: 0.167,
};
const FENCES = {
  matrix: "",
  smallmatrix: "",
  pmatrix: "()",
  bmatrix: "[]",
  Bmatrix: "{}",
  vmatrix: "||",
  Vmatrix: "‖‖",
  array: "",
  cases: "{",
};
const ALIGNED = new Set(["aligned", "align", "align*", "split", "alignedat", "eqnarray", "eqnarray*"]);
const GATHERED = new Set(["gathered", "gather", "gather*", "equation", "equation*", "multline", "multline*"]);
const SILENT = new Set(
  `displaystyle textstyle scriptstyle scriptscriptstyle limits nolimits nonumber notag bigl bigr Bigl
  Bigr biggl biggr Biggl Biggr big Big bigg Bigg middle allowbreak relax hfill`.split(/\s+/),
);

/** Where the letters A, a and the digit 0 of each alphabet begin in Unicode, and the letters that stand elsewhere. */
const ALPHABETS = {
  mathbb: [0x1d538, 0x1d552, 0x1d7d8, { C: "ℂ", H: "ℍ", N: "ℕ", P: "ℙ", Q: "ℚ", R: "ℝ", Z: "ℤ" }],
  mathbf: [0x1d400, 0x1d41a, 0x1d7ce, {}],
  boldsymbol: [0x1d468, 0x1d482, 0x1d7ce, {}],
  mathcal: [
    0x1d49c,
    0x1d4b6,
    0,
    { B: "ℬ", E: "ℰ", F: "ℱ", H: "ℋ", I: "ℐ", L: "ℒ", M: "ℳ", R: "ℛ", e: "ℯ", g: "ℊ", o: "ℴ" },
  ],
  mathfrak: [0x1d504, 0x1d51e, 0, { C: "ℭ", H: "ℌ", I: "ℑ", R: "ℜ", Z: "ℨ" }],
  mathsf: [0x1d5a0, 0x1d5ba, 0x1d7e2, {}],
  mathtt: [0x1d670, 0x1d68a, 0x1d7f6, {}],
};
ALPHABETS.bm = ALPHABETS.boldsymbol;
ALPHABETS.mathscr = ALPHABETS.mathcal;
ALPHABETS.Bbb = ALPHABETS.mathbb;

function inAlphabet(letter, [upper, lower, digits, elsewhere]) {
  if (elsewhere[letter]) return elsewhere[letter];
  const code = letter.codePointAt(0);
  if (code >= 65 && code <= 90) return String.fromCodePoint(upper + code - 65);
  if (code >= 97 && code <= 122) return String.fromCodePoint(lower + code - 97);
  if (code >= 48 && code <= 57 && digits) return String.fromCodePoint(digits + code - 48);
  return letter;
}

function m(tag, attributes, ...children) {
  const element = document.createElementNS(MATHML, tag);
  for (const [name, value] of Object.entries(attributes ?? {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const row = (nodes) => (nodes.length === 1 ? nodes[0] : m("mrow", null, ...nodes));
const operator = (sign, attributes) => m("mo", { stretchy: "false", ...attributes }, sign);

class Formula {
  constructor(source) {
    if (source.length > LONGEST_FORMULA) throw new Error("a formula as long as that");
    this.source = source;
    this.at = 0;
    this.depth = 0;
    this.alphabet = null;
  }

  get sign() {
    return this.source[this.at];
  }

  skip() {
    while (/\s/.test(this.sign ?? "") || (this.sign === "%" && this.comment())) this.at++;
  }

  comment() {
    const end = this.source.indexOf("\n", this.at);
    this.at = end < 0 ? this.source.length - 1 : end;
    return true;
  }

  /** Whether `text` stands here; a command's name is whole: \\right is not the start of \\rightarrow. */
  stands(text) {
    if (!this.source.startsWith(text, this.at)) return false;
    return !/[a-z]$/i.test(text) || !/[a-z]/i.test(this.source[this.at + text.length] ?? "");
  }

  take(text) {
    this.skip();
    if (!this.stands(text)) return false;
    this.at += text.length;
    return true;
  }

  expect(text) {
    if (!this.take(text)) throw new Error(`expected ${text}`);
  }

  /** The text between braces, as it stands. */
  raw() {
    this.expect("{");
    let open = 1;
    const from = this.at;
    for (; this.at < this.source.length; this.at++) {
      if (this.sign === "\\") this.at++;
      else if (this.sign === "{") open++;
      else if (this.sign === "}" && --open === 0) return this.source.slice(from, this.at++);
    }
    throw new Error("a brace that isn't closed");
  }

  /** What stands until one of `stops`, which is not taken; until the end of the source where that may come first. */
  until(stops, mayEnd = false) {
    if (++this.depth > DEEPEST_FORMULA) throw new Error("a formula as deep as that");
    const nodes = [];
    for (this.skip(); !stops.some((stop) => this.stands(stop)); this.skip()) {
      if (this.at >= this.source.length) {
        if (mayEnd) break;
        throw new Error(`expected ${stops[0]}`);
      }
      const node = this.scripted();
      if (node) nodes.push(node);
    }
    this.depth--;
    return nodes;
  }

  group() {
    const nodes = this.until(["}"]);
    this.expect("}");
    return row(nodes);
  }

  /** One argument: a group, or a single thing. */
  argument() {
    this.skip();
    if (this.sign === undefined || "}&^_".includes(this.sign)) throw new Error("an argument is missing");
    if (this.take("{")) return this.group();
    if (/\d/.test(this.sign)) return m("mn", null, this.source[this.at++]);
    return this.atom()?.node ?? m("mrow");
  }

  scripted() {
    const base = "^_'".includes(this.sign) ? { node: m("mrow") } : this.atom();
    if (!base) return null;
    let below = null;
    let above = [];
    for (;;) {
      if (this.take("\\limits")) base.limits = true;
      else if (this.take("\\nolimits")) base.limits = false;
      else if (this.take("^")) above.push(this.argument());
      else if (this.take("_")) {
        if (below) throw new Error("two indices");
        below = this.argument();
      } else if (this.take("'")) above.push(operator("′"));
      else break;
    }
    if (!below && !above.length) return base.node;
    const [under, over, both] = base.limits ? ["munder", "mover", "munderover"] : ["msub", "msup", "msubsup"];
    if (!above.length) return m(under, null, base.node, below);
    if (!below) return m(over, null, base.node, row(above));
    return m(both, null, base.node, below, row(above));
  }

  atom() {
    const sign = this.sign;
    if (sign === "\\") return this.command();
    if (sign === "{") {
      this.at++;
      return { node: this.group() };
    }
    if (sign === "}" || sign === "&" || sign === "#" || sign === "$") throw new Error(`an unexpected ${sign}`);
    const digits = /^\d+(?:\.\d+)?|^\.\d+/.exec(this.source.slice(this.at, this.at + 64));
    if (digits) {
      this.at += digits[0].length;
      const text = this.alphabet ? [...digits[0]].map((digit) => inAlphabet(digit, this.alphabet)).join("") : digits[0];
      return { node: m("mn", null, text) };
    }
    const letter = String.fromCodePoint(this.source.codePointAt(this.at));
    this.at += letter.length;
    if (letter === "~") return { node: m("mspace", { width: "0.25em" }) };
    if (/\p{L}/u.test(letter)) return { node: this.letter(letter) };
    return { node: operator({ "-": "−", "*": "∗", "`": "‘" }[letter] ?? letter) };
  }

  letter(letter) {
    if (!this.alphabet) return m("mi", null, letter);
    return this.alphabet === "roman"
      ? m("mi", { mathvariant: "normal" }, letter)
      : m("mi", null, inAlphabet(letter, this.alphabet));
  }

  command() {
    const name = /^\\(?:[a-zA-Z]+\*?|[\s\S])/.exec(this.source.slice(this.at, this.at + 40))?.[0].slice(1);
    if (!name) throw new Error("a lone backslash");
    this.at += 1 + name.length;
    if (Object.hasOwn(LETTERS, name)) {
      const upright = /^[A-Z]|^(infty|forall|exists)$|dots/.test(name);
      return { node: m("mi", upright ? { mathvariant: "normal" } : null, LETTERS[name]) };
    }
    if (name === "not") {
      const node = this.scripted();
      if (!node || node.childElementCount) throw new Error("nothing to cross out");
      node.textContent += OPERATORS.not;
      return { node };
    }
    if (Object.hasOwn(OPERATORS, name)) return { node: operator(OPERATORS[name]) };
    if (Object.hasOwn(LARGE, name))
      return { node: m("mo", { movablelimits: "true", largeop: "true" }, LARGE[name]), limits: true };
    if (Object.hasOwn(INTEGRALS, name)) return { node: m("mo", { largeop: "true" }, INTEGRALS[name]) };
    if (FUNCTIONS.has(name)) return { node: m("mi", null, name) };
    if (LIMITED.has(name))
      return {
        node: m(
          "mo",
          { movablelimits: "true", lspace: "0", rspace: "0.167em" },
          { limsup: "lim sup", liminf: "lim inf" }[name] ?? name,
        ),
        limits: true,
      };
    if (Object.hasOwn(ACCENTS, name)) return this.accent(name);
    if (Object.hasOwn(UNDER, name))
      return {
        node: m("munder", { accentunder: "true" }, this.argument(), m("mo", { stretchy: "true" }, UNDER[name])),
        limits: true,
      };
    if (Object.hasOwn(SPACES, name)) return { node: m("mspace", { width: `${SPACES[name]}em` }) };
    if (Object.hasOwn(ALPHABETS, name)) return this.within(ALPHABETS[name]);
    if (SILENT.has(name)) return null;
    if ("{}%$&#_|".includes(name)) return { node: operator(name === "|" ? "‖" : name) };
    return this.construct(name);
  }

  accent(name) {
    const base = this.argument();
    const over = m("mo", { stretchy: WIDE.has(name) ? "true" : "false" }, ACCENTS[name]);
    return { node: m("mover", { accent: "true" }, base, over), limits: name === "overbrace" };
  }

  within(alphabet) {
    const outer = this.alphabet;
    this.alphabet = alphabet;
    const node = this.argument();
    this.alphabet = outer;
    return { node };
  }

  construct(name) {
    switch (name) {
      case "frac":
      case "dfrac":
      case "tfrac":
      case "cfrac": {
        const above = this.argument();
        const fraction = m("mfrac", null, above, this.argument());
        if (name === "dfrac" || name === "cfrac") return { node: m("mstyle", { displaystyle: "true" }, fraction) };
        return { node: fraction };
      }
      case "binom":
      case "dbinom":
      case "tbinom": {
        const above = this.argument();
        const fraction = m("mfrac", { linethickness: "0" }, above, this.argument());
        return { node: m("mrow", null, m("mo", null, "("), fraction, m("mo", null, ")")) };
      }
      case "sqrt": {
        if (!this.take("[")) return { node: m("msqrt", null, this.argument()) };
        const degree = row(this.until(["]"]));
        this.expect("]");
        return { node: m("mroot", null, this.argument(), degree) };
      }
      case "text":
      case "textrm":
      case "mbox":
      case "textnormal":
      case "textsf":
        return { node: m("mtext", null, this.plain()) };
      case "textbf":
        return { node: m("mtext", { class: "bold" }, this.plain()) };
      case "textit":
      case "emph":
        return { node: m("mtext", { class: "slanted" }, this.plain()) };
      case "texttt":
        return { node: m("mtext", { class: "typed" }, this.plain()) };
      case "mathrm":
      case "rm":
        return this.within("roman");
      case "mathit":
      case "mathnormal":
        return this.within(null);
      case "operatorname":
      case "operatorname*": {
        const word = this.plain().replace(/\\[,;! ]/g, " ");
        return { node: m("mo", { lspace: "0", rspace: "0.167em" }, word), limits: name.endsWith("*") };
      }
      case "overset":
      case "stackrel": {
        const over = this.argument();
        return { node: m("mover", null, this.argument(), over) };
      }
      case "underset": {
        const under = this.argument();
        return { node: m("munder", null, this.argument(), under) };
      }
      case "xrightarrow":
      case "xleftarrow": {
        const arrow = m("mo", { stretchy: "true" }, name === "xrightarrow" ? "→" : "←");
        return { node: m("mover", null, arrow, m("mpadded", { width: "+0.8em", lspace: "0.4em" }, this.argument())) };
      }
      case "left":
        return { node: this.fenced() };
      case "begin":
        return { node: this.environment(this.raw()) };
      case "boxed":
      case "fbox":
        return { node: m("mrow", { class: "boxed" }, this.argument()) };
      case "phantom":
        return { node: m("mphantom", null, this.argument()) };
      case "pmod":
        return {
          node: m(
            "mrow",
            null,
            m("mspace", { width: "0.5em" }),
            operator("("),
            m("mi", null, "mod"),
            m("mspace", { width: "0.3em" }),
            this.argument(),
            operator(")"),
          ),
        };
      case "bmod":
      case "mod":
        return { node: operator("mod", { lspace: "0.25em", rspace: "0.25em" }) };
      case "substack": {
        const inner = new Formula(this.raw());
        inner.depth = this.depth + 1;
        return { node: inner.table(null, "", "") };
      }
      case "tag":
        return { node: m("mtext", null, `\u2003(${this.raw()})`) };
      case "label":
        return (this.raw(), null);
      case "ensuremath":
      case "mathop":
      case "mathbin":
      case "mathrel":
      case "mathord":
        return { node: this.argument(), limits: name === "mathop" };
      default:
        throw new Error(`\\${name} isn't known`);
    }
  }

  /** A word in braces, as text. */
  plain() {
    return this.raw()
      .replace(/\\([{}%$&#_ ])/g, "$1")
      .replace(/~/g, "\u00a0")
      .replace(/^ | $/g, "\u00a0");
  }

  delimiter() {
    this.skip();
    if (this.sign !== "\\") {
      const sign = this.source[this.at++];
      if (sign === undefined || !"()[]|/.<>".includes(sign)) throw new Error("a fence is missing");
      return { ".": "", "<": "⟨", ">": "⟩" }[sign] ?? sign;
    }
    const node = this.command()?.node;
    if (node?.localName !== "mo") throw new Error("no fence");
    return node.textContent;
  }

  fenced() {
    const left = this.delimiter();
    const inner = this.until(["\\right"]);
    this.expect("\\right");
    const right = this.delimiter();
    const fence = (sign) => (sign ? [m("mo", { stretchy: "true", fence: "true" }, sign)] : []);
    return m("mrow", null, ...fence(left), ...inner, ...fence(right));
  }

  environment(name) {
    const known = Object.hasOwn(FENCES, name) || ALIGNED.has(name) || GATHERED.has(name);
    if (!known) throw new Error(`\\begin{${name}} isn't known`);
    let columns = "";
    if (name === "array") columns = this.raw();
    if (name === "alignedat") this.raw();
    const end = `\\end{${name}}`;
    const table = this.table(end, ALIGNED.has(name) ? "aligned" : name === "cases" ? "cases" : "", columns);
    this.expect(end);
    const [open, close] = [FENCES[name]?.[0], FENCES[name]?.[1]];
    if (!open) return table;
    return m(
      "mrow",
      null,
      m("mo", { fence: "true" }, open),
      table,
      ...(close ? [m("mo", { fence: "true" }, close)] : []),
    );
  }

  table(end, kind, columns) {
    const table = m(
      "mtable",
      kind === "aligned" ? { displaystyle: "true", class: "aligned" } : kind ? { class: kind } : null,
    );
    const sides = [...columns.replace(/[^lcr]/g, "")];
    let cells = [];
    const finish = () => {
      if (cells.length > 1 || cells[0]?.childNodes.length) table.append(m("mtr", null, ...cells));
      cells = [];
    };
    const stops = end ? ["&", "\\\\", "\\cr", end] : ["&", "\\\\"];
    for (;;) {
      this.take("\\hline");
      const side = { l: "left", r: "right" }[sides[cells.length]];
      const inner = this.until(stops, !end);
      cells.push(m("mtd", side ? { class: side } : null, ...inner));
      if (this.take("&")) continue;
      finish();
      if (this.take("\\\\") || this.take("\\cr")) {
        if (this.take("[")) (this.until(["]"]), this.expect("]"));
        continue;
      }
      return table;
    }
  }
}

/** A formula as a <math> element; as code where it holds something that isn't known. */
function renderMath(source, display) {
  try {
    const formula = new Formula(source);
    const table = display && /\\\\/.test(source) && !/\\begin/.test(source);
    const nodes = table ? [formula.table(null, "", "")] : formula.until([], true);
    if (formula.at < source.length) throw new Error("something is left over");
    return m("math", { display: display ? "block" : "inline" }, m("mrow", null, ...nodes));
  } catch {
    return h("code", { class: "formula" }, source);
  }
}
