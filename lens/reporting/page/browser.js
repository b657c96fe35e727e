// The group browser: run, step, level -> groups -> answers -> text. A step's groups are parsed when first looked at.
"use strict";

(() => {
  const root = document.getElementById("browser");
  if (!root) return;
  const index = JSON.parse(document.getElementById("browser-index").textContent);
  const FIELDS = Object.fromEntries(index.fields.map((name, place) => [name, place]));
  const UNLEVELLED = "none";
  const WRONG = new Set(["incorrect", "no_answer", "timeout", "error"]);
  const state = { run: 0, step: 0, level: null, group: null, answer: null, raw: false };
  const parsed = new Map();

  const get = (answer, name) => answer[FIELDS[name]];
  const levelOf = (group) => (group.level === null ? UNLEVELLED : String(group.level));
  const levelName = (level) => (level === UNLEVELLED ? "No level" : `Level ${level}`);
  const surestWrong = (group) =>
    Math.max(0, ...group.answers.filter((a) => WRONG.has(get(a, "verdict"))).map((a) => get(a, "confidence") ?? 0));

  const asked = (group, most) => (group.question === null ? group.id : Latex.render(group.question.slice(0, most)));

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "onclick") node.addEventListener("click", value);
      else if (name === "onchange") node.addEventListener("change", value);
      else if (value !== null && value !== false) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }

  function number(value, signed) {
    if (value === null) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    const text = size >= 0.1 ? size.toFixed(3) : size >= 0.001 ? size.toFixed(5) : size.toExponential(2);
    return (value < 0 ? "−" : signed ? "+" : "") + text;
  }

  function groups() {
    const { key } = index.runs[state.run].steps[state.step];
    if (!parsed.has(key)) {
      const all = JSON.parse(document.getElementById(key).textContent);
      all.sort((a, b) => (a.kind !== "negative") - (b.kind !== "negative") || surestWrong(b) - surestWrong(a));
      parsed.set(key, all);
    }
    return parsed.get(key);
  }

  function choose(changes) {
    Object.assign(state, changes);
    const run = index.runs[state.run];
    const place = [state.run, run.steps[state.step].step, state.level, state.group, state.answer];
    history.replaceState(null, "", "#groups/" + place.filter((part) => part !== null).map(encodeURIComponent).join("/"));
    draw();
  }

  function restore() {
    const [name, run, step, level, group, answer] = location.hash.slice(1).split("/").map(decodeURIComponent);
    if (name !== "groups" || !index.runs[run]) return;
    const steps = index.runs[run].steps.map((known) => String(known.step));
    Object.assign(state, {
      run: Number(run), step: Math.max(0, steps.indexOf(step)), level: level ?? null, group: group ?? null,
      answer: answer === undefined ? null : Number(answer),
    });
  }

  function controls() {
    const run = index.runs[state.run];
    const pick = (options, chosen, onchange) =>
      make("select", { onchange: (event) => onchange(Number(event.target.value)) },
        ...options.map((text, place) => make("option", { value: place, selected: place === chosen ? "" : null }, text)));
    const runs = pick(index.runs.map((r) => `${r.label}, seed ${r.seed}`), state.run, (place) => {
      const steps = index.runs[place].steps.map((known) => known.step);
      const same = steps.indexOf(run.steps[state.step].step);
      choose({ run: place, step: Math.max(0, same), answer: null });
    });
    const steps = pick(run.steps.map((s) => String(s.step)), state.step, (place) => choose({ step: place, answer: null }));
    return make("div", { class: "controls" },
      make("label", {}, "Run ", runs), make("label", {}, "Step ", steps), ...levels());
  }

  function levels() {
    const counts = new Map();
    for (const group of groups()) {
      const count = counts.get(levelOf(group)) ?? { all: 0, negative: 0 };
      count.all++;
      count.negative += group.kind === "negative";
      counts.set(levelOf(group), count);
    }
    return [...counts].sort(([a], [b]) => a.localeCompare(b)).map(([level, { all, negative }]) =>
      make("button", {
        class: "level", "aria-pressed": String(level === state.level), "data-level": level,
        onclick: () => choose({ level, group: null, answer: null }),
      }, make("b", {}, levelName(level)), ` ${all} group${all === 1 ? "" : "s"}, ${negative} negative`));
  }

  function list() {
    const members = groups().filter((group) => levelOf(group) === state.level);
    return make("ol", { class: "groups" }, ...members.map((group) => {
      const right = group.answers.filter((a) => get(a, "verdict") === "correct").length;
      const surest = surestWrong(group);
      return make("li", {}, make("button", {
        class: "group", "aria-pressed": String(group.id === state.group), "data-group": group.id,
        onclick: () => choose({ group: group.id, answer: null }),
      },
      make("span", { class: `kind ${group.kind}` }, group.kind),
      make("span", { class: "question" }, asked(group, 400)),
      make("small", {}, `${right} of ${group.answers.length} right` + (surest ? `, surest wrong ${number(surest)}` : ""))));
    }));
  }

  // A number with a bar to the left or right of the middle; `largest` is the longest bar's.
  function bar(value, largest) {
    const share = value && largest ? (50 * Math.abs(value)) / largest : 0;
    const side = value < 0 ? `right:50%` : `left:50%`;
    return make("td", { class: "number" }, number(value, true),
      make("span", { class: "bar" }, make("i", { class: value < 0 ? "down" : "up", style: `${side};width:${share}%` })));
  }

  function detail() {
    const group = groups().find((candidate) => candidate.id === state.group);
    if (!group) return make("div", { class: "detail hint" }, "Choose a group: negative groups come first, the surest wrong answers on top.");
    const columns = ["grpo", "lens", "trained"];
    const largest = Object.fromEntries(columns.map((name) => [name, Math.max(...group.answers.map((a) => Math.abs(get(a, name))))]));
    const head = ["confidence", "grade", "calibrated reward", "advantage under GRPO", "under LENS", "as trained", "tokens"];
    const rows = group.answers.flatMap((answer) => {
      const sample = get(answer, "sample");
      const open = sample === state.answer;
      const row = make("tr", {
        class: `answer ${get(answer, "verdict")}${open ? " open" : ""}`, "data-sample": sample,
        onclick: () => choose({ answer: open ? null : sample }),
      },
      make("td", {}, make("button", { class: "opens", "aria-expanded": String(open), "aria-label": "show the text" }, open ? "▾" : "▸"),
        number(get(answer, "confidence"))),
      make("td", {}, get(answer, "verdict").replace("_", " ") + (get(answer, "valid") ? "" : ", teaches nothing")),
      make("td", { class: "number" }, number(get(answer, "reward"), true)),
      ...columns.map((name) => bar(get(answer, name), largest[name])),
      make("td", { class: "number" }, `${get(answer, "length")}${get(answer, "finish_reason") === "length" ? " (cut)" : ""}`));
      return open ? [row, make("tr", { class: "text" }, make("td", { colspan: head.length }, text(answer)))] : [row];
    });
    return make("div", { class: "detail" },
      make("p", { class: "about" }, make("span", { class: `kind ${group.kind}` }, group.kind), ` ${levelName(levelOf(group))} · ${group.id}`),
      make("p", { class: "asked" }, asked(group)), make("p", {}, "Gold answer: ", Latex.render(String(group.gold))),
      make("table", {}, make("thead", {}, make("tr", {}, ...head.map((name) => make("th", {}, name)))), make("tbody", {}, ...rows)));
  }

  function text(answer) {
    const written = get(answer, "text");
    const shown = make("div", { class: state.raw ? "completion raw" : "completion" });
    shown.append(state.raw ? written : Latex.render(written));
    return make("div", {}, make("button", { class: "raw", onclick: () => choose({ raw: !state.raw }) },
      state.raw ? "show formulas" : "show as written"), shown);
  }

  function draw() {
    const scrolled = root.querySelector(".groups")?.scrollTop ?? 0;
    root.replaceChildren(controls(), state.level === null
      ? make("p", { class: "hint" }, "Choose a level.")
      : make("div", { class: "columns" }, list(), detail()));
    const groupList = root.querySelector(".groups");
    if (groupList) groupList.scrollTop = scrolled;
  }

  restore();
  draw();
})();
