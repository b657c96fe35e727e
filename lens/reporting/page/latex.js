// What a language model wrote -> text nodes and MathML. Nothing of it is ever read as HTML: every node is made by
// createElement and createTextNode, so that whatever a model writes stays text.
"use strict";

const Latex = (() => {
  const MATHML = "http://www.w3.org/1998/Math/MathML";
  const DEEPEST = 60; // nested groups; deeper ones are shown as they were written
  const table = (entries) => Object.assign(Object.create(null), entries); // knows no name but its own
  const SYMBOLS = table({
    alpha: "α", beta: "β", gamma: "γ", delta: "δ", epsilon: "ε", varepsilon: "ε", zeta: "ζ", eta: "η", theta: "θ",
    iota: "ι", kappa: "κ", lambda: "λ", mu: "μ", nu: "ν", xi: "ξ", pi: "π", rho: "ρ", sigma: "σ", tau: "τ",
    upsilon: "υ", phi: "φ", varphi: "φ", chi: "χ", psi: "ψ", omega: "ω", Gamma: "Γ", Delta: "Δ", Theta: "Θ",
    Lambda: "Λ", Xi: "Ξ", Pi: "Π", Sigma: "Σ", Phi: "Φ", Psi: "Ψ", Omega: "Ω", infty: "∞", ell: "ℓ", emptyset: "∅",
    varnothing: "∅", angle: "∠", triangle: "△", degree: "°", prime: "′", hbar: "ℏ", partial: "∂", nabla: "∇",
    cdot: "⋅", times: "×", div: "÷", pm: "±", mp: "∓", ast: "∗", star: "⋆", circ: "∘", bullet: "•", oplus: "⊕",
    otimes: "⊗", le: "≤", leq: "≤", leqslant: "≤", ge: "≥", geq: "≥", geqslant: "≥", ne: "≠", neq: "≠", lt: "<",
    gt: ">", equiv: "≡", approx: "≈", sim: "∼", cong: "≅", propto: "∝", perp: "⊥", parallel: "∥", mid: "∣",
    in: "∈", notin: "∉", subset: "⊂", subseteq: "⊆", supset: "⊃", supseteq: "⊇", cup: "∪", cap: "∩", setminus: "∖",
    land: "∧", wedge: "∧", lor: "∨", vee: "∨", neg: "¬", lnot: "¬", forall: "∀", exists: "∃", to: "→",
    rightarrow: "→", leftarrow: "←", leftrightarrow: "↔", Rightarrow: "⇒", implies: "⇒", Leftarrow: "⇐",
    Leftrightarrow: "⇔", iff: "⇔", mapsto: "↦", longrightarrow: "⟶", ldots: "…", dots: "…", cdots: "⋯", vdots: "⋮",
    ddots: "⋱", sum: "∑", prod: "∏", int: "∫", oint: "∮", lfloor: "⌊", rfloor: "⌋", lceil: "⌈", rceil: "⌉",
    langle: "⟨", rangle: "⟩", lvert: "|", rvert: "|", vert: "|", Vert: "‖", therefore: "∴", because: "∵",
    backslash: "\\", checkmark: "✓", square: "□", Box: "□", blacksquare: "■", colon: ":", bmod: "mod", lbrace: "{",
    rbrace: "}",
  });
  const FUNCTIONS = new Set(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp max min gcd lcm det dim deg lim sup inf arg Pr ker".split(" "));
  const SPACES = table({ ",": 0.17, ":": 0.22, ";": 0.28, " ": 0.25, "!": 0, quad: 1, qquad: 2 });
  const FRACTIONS = new Set(["frac", "dfrac", "tfrac", "cfrac"]);
  const WORDS = new Set(["text", "textbf", "textit", "textrm", "texttt", "mbox", "mathrm", "operatorname", "textnormal"]);
  const LOOKS = new Set(["mathbf", "mathcal", "mathit", "mathsf", "boldsymbol", "bm", "displaystyle", "textstyle",
    "limits", "nolimits", "left", "right", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "middle"]);
  const OVER = table({ overline: "‾", bar: "‾", hat: "^", widehat: "^", vec: "→", overrightarrow: "→", tilde: "~", dot: "˙" });
  const BLACKBOARD = table({ R: "ℝ", Z: "ℤ", N: "ℕ", Q: "ℚ", C: "ℂ", P: "ℙ" });
  const FENCES = table({ pmatrix: "()", bmatrix: "[]", vmatrix: "||", Bmatrix: "{}", cases: "{", matrix: "", array: "" });
  const TOKEN = /\\[a-zA-Z]+|\\[^]|\d+(?:[.,]\d+)*|\s+|[^]/uy;
  const STOPS = new Set(["}", "&", "\\\\", "\\end", "\\cr"]);

  function element(tag, children = [], attributes = {}) {
    const node = document.createElementNS(MATHML, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  // Reads LaTeX from a place in a text; `place` is where it stopped.
  class Parser {
    constructor(source, place = 0) {
      this.source = source;
      this.place = place;
      this.depth = 0;
    }

    peek() {
      TOKEN.lastIndex = this.place;
      return TOKEN.exec(this.source)?.[0];
    }

    next() {
      const token = this.peek();
      this.place += token?.length ?? 0;
      return token;
    }

    skipSpace() {
      while (/^\s/.test(this.peek() ?? "")) this.next();
    }

    row(stops = STOPS) {
      const nodes = [];
      for (let token = this.peek(); token !== undefined && !stops.has(token); token = this.peek()) {
        if (/^\s/.test(token)) this.next();
        else nodes.push(this.scripted());
      }
      return nodes;
    }

    scripted() {
      const base = this.atom();
      let below, above;
      for (;;) {
        const { place } = this;
        this.skipSpace();
        const token = this.peek();
        if (token === "_" && !below) { this.next(); below = this.argument(); }
        else if (token === "^" && !above) { this.next(); above = this.argument(); }
        else if (token === "'" && !above) { this.next(); above = element("mo", ["′"]); }
        else { this.place = place; break; }
      }
      if (below && above) return element("msubsup", [base, below, above]);
      if (below) return element("msub", [base, below]);
      return above ? element("msup", [base, above]) : base;
    }

    // {…} or a single token
    argument() {
      this.skipSpace();
      if (this.peek() === undefined || STOPS.has(this.peek())) return element("mrow");
      return this.atom();
    }

    // {…} as it was written, for words
    words() {
      this.skipSpace();
      if (this.peek() !== "{") return this.next() ?? "";
      const start = this.place + 1;
      let open = 0;
      for (let token = this.next(); token !== undefined; token = this.next()) {
        if (token === "{") open++;
        if (token === "}" && --open === 0) break;
      }
      return this.source.slice(start, this.place - 1);
    }

    atom() {
      if (++this.depth > DEEPEST) throw new RangeError("nested too deeply");
      const node = this.node(this.next());
      this.depth--;
      return node;
    }

    node(token) {
      if (token === undefined) return element("mrow");
      if (token === "{") {
        const nodes = this.row();
        if (this.peek() === "}") this.next();
        return element("mrow", nodes);
      }
      if (token[0] === "\\") return this.command(token.slice(1));
      if (/^\d/.test(token)) return element("mn", [token]);
      if (/^\p{L}/u.test(token)) return element("mi", [token]);
      return element("mo", [token === "-" ? "−" : token === "~" ? " " : token]);
    }

    command(name) {
      if (FRACTIONS.has(name)) return element("mfrac", [this.argument(), this.argument()]);
      if (name === "binom" || name === "dbinom" || name === "tbinom") {
        const inner = element("mfrac", [this.argument(), this.argument()], { linethickness: "0" });
        return element("mrow", [element("mo", ["("]), inner, element("mo", [")"])]);
      }
      if (name === "sqrt") {
        this.skipSpace();
        if (this.peek() !== "[") return element("msqrt", [this.argument()]);
        this.next();
        const index = this.row(new Set([...STOPS, "]"]));
        if (this.peek() === "]") this.next();
        return element("mroot", [this.argument(), element("mrow", index)]);
      }
      if (name === "boxed" || name === "fbox") return element("mrow", [this.argument()], { class: "boxed" });
      if (WORDS.has(name)) return element("mtext", [this.words().replaceAll("\\$", "$").replaceAll("\\%", "%")]);
      if (name === "mathbb") {
        const letters = this.words();
        return element("mi", [BLACKBOARD[letters] ?? letters]);
      }
      if (LOOKS.has(name)) {
        this.skipSpace();
        if ((name === "left" || name === "right") && this.peek() === ".") { this.next(); return element("mrow"); }
        return element("mrow");
      }
      if (name in OVER) return element("mover", [this.argument(), element("mo", [OVER[name]])]);
      if (name === "underline") return element("munder", [this.argument(), element("mo", ["_"])]);
      if (name === "pmod") {
        return element("mrow", [element("mtext", ["\u00a0(mod\u00a0"]), this.argument(), element("mo", [")"])]);
      }
      if (name === "not") return element("mrow", [element("mo", ["̸"]), this.argument()]);
      if (name === "begin") return this.environment();
      if (name in SPACES) return element("mspace", [], { width: `${SPACES[name]}em` });
      if (FUNCTIONS.has(name)) return element("mi", [name]);
      if (name in SYMBOLS) return element(/^\p{L}/u.test(SYMBOLS[name]) && name !== "bmod" ? "mi" : "mo", [SYMBOLS[name]]);
      if (name.length === 1 && !/[a-zA-Z]/.test(name)) return element("mo", [name === "|" ? "‖" : name]);
      return element("mtext", [`\\${name}`], { class: "unknown" });
    }

    environment() {
      const name = this.words().replace("*", "");
      if (name === "array" || name === "tabular") this.words(); // alignment of columns
      const lines = [[]];
      for (;;) {
        lines.at(-1).push(element("mtd", this.row()));
        const token = this.next();
        if (token === "\\\\" || token === "\\cr") lines.push([]);
        else if (token === "\\end") { this.words(); break; }
        else if (token === undefined) break;
      }
      const table = element("mtable", lines.filter((line) => line.length).map((line) => element("mtr", line)));
      const [open, close] = FENCES[name] ?? "";
      return element("mrow", [...(open ? [element("mo", [open])] : []), table, ...(close ? [element("mo", [close])] : [])]);
    }
  }

  function math(source, block) {
    const parser = new Parser(source);
    const nodes = [];
    try {
      while (parser.peek() !== undefined) {
        nodes.push(...parser.row());
        if (parser.peek() !== undefined && parser.next() === "\\\\") nodes.push(element("mspace", [], { linebreak: "newline" }));
      }
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      return document.createTextNode(source);
    }
    return element("math", [element("mrow", nodes)], block ? { display: "block" } : {});
  }

  // Formulas between delimiters ($ x $ is how a word-level tokenizer writes $x$), and commands that stand in plain text,
  // as \boxed{} often does.
  const FORMULA = /\$\$([^]+?)\$\$|\\\[([^]+?)\\\]|\\\(([^]+?)\\\)|\$(?=\S)((?:\\[^]|[^$\\])+?)\$(?!\d)|\$ ([^$]+?) \$|\\(?:[a-zA-Z]+|[$%])/gu;

  // The text as a fragment of text nodes and MathML.
  function render(text) {
    const fragment = document.createDocumentFragment();
    let place = 0;
    for (FORMULA.lastIndex = 0; ;) {
      const found = FORMULA.exec(text);
      if (!found) break;
      fragment.append(text.slice(place, found.index));
      const [whole, dollars, brackets, parentheses, dollar, spaced] = found;
      const formula = dollars ?? brackets ?? parentheses ?? dollar ?? spaced;
      if (formula !== undefined) {
        fragment.append(math(formula, dollars !== undefined || brackets !== undefined));
        place = found.index + whole.length;
      } else {
        const parser = new Parser(text, found.index);
        try {
          fragment.append(element("math", [parser.scripted()]));
          place = parser.place;
        } catch (error) {
          if (!(error instanceof RangeError)) throw error;
          fragment.append(whole);
          place = found.index + whole.length;
        }
      }
      FORMULA.lastIndex = place;
    }
    fragment.append(text.slice(place));
    return fragment;
  }

  return { render };
})();
