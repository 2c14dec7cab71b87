"use strict";
// The page keeps a short index of all rows. What a row looks like stands, compressed, in chunks of
// rows below the script, and is opened when the row is. Texts become text nodes, never HTML.
(() => {
  const HEIGHT = 56, MARGIN = 8, KEPT_CHUNKS = 16;
  const $ = (id) => document.getElementById(id);
  const number = new Intl.NumberFormat("en");
  const SIGNS = { correct: "✓", wrong: "✗", truncated: "…", failed: "!" };
  const SAVED = [["", "any saving"], ["75", "saved ≥ 75 %"], ["50", "saved ≥ 50 %"], ["25", "saved ≥ 25 %"],
    ["1", "saved > 0 %"], ["0", "saved nothing"]];
  const SORTS = [["", "in order of id"], ["saved", "most tokens saved first"], ["before", "longest first"],
    ["-before", "shortest first"], ["-saved", "least saved first"]];
  const KEYS = [["j k, ↓ ↑", "next, previous row"], ["g G, Home End", "first, last row"],
    ["PgDn PgUp", "a page of rows"], ["Enter", "into the row"], ["n p", "next, previous segment"],
    ["Space", "scroll the row"], ["x", "removed text with or without its strike"],
    ["c", "fold pairs open or closed"], ["/", "search"], ["Esc", "out of the search, out of the row"],
    ["r", "clear search and filters"], ["l", "the other list"], ["t", "light, dark, as the system"],
    ["?", "this help"]];
  let index, list, shown = [], at = -1, found = null, asked = 0, opened = 0, noted = 0, searching = false;
  const chunks = new Map();

  async function unpack(text) {
    const packed = text.trim();
    const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(packed)
      : Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).json();
  }

  const parsed = new Promise((resolve) => {
    if (document.readyState !== "loading") resolve();
    else document.addEventListener("DOMContentLoaded", resolve);
  });

  async function chunk(place) {
    let open = chunks.get(place);
    if (open) chunks.delete(place);
    else {
      if (!$(`c${place + 1}`)) await parsed; // an element is whole once the next one has begun
      open = unpack($(`c${place}`).textContent);
    }
    chunks.set(place, open);
    if (chunks.size > KEPT_CHUNKS) chunks.delete(chunks.keys().next().value);
    return open;
  }

  function build(node, texts) {
    if (typeof node === "string") return document.createTextNode(node);
    if (typeof node === "number") return document.createTextNode(texts[node]);
    const [name, ...classes] = node[0].split(".");
    const element = document.createElement(name);
    if (classes.length) element.className = classes.join(" ");
    for (const [key, value] of Object.entries(node[1] || {})) {
      if (key === "style") element.style.cssText = value;
      else element.setAttribute(key, value);
    }
    for (let i = 2; i < node.length; i++) element.append(build(node[i], texts));
    return element;
  }

  function make(tag, text, ...children) {
    const element = build([tag, 0], []);
    if (text) element.textContent = text;
    element.append(...children);
    return element;
  }

  // ---- which rows are shown

  const saving = (row) => {
    const before = list.before[row], after = list.after[row];
    return before > 0 && after >= 0 ? 1 - after / before : NaN;
  };

  function percent(share) {
    if (Number.isNaN(share)) return "";
    const rounded = Math.round(share * 100);
    return `${rounded > 0 ? "−" : rounded < 0 ? "+" : "±"}${Math.abs(rounded)} %`;
  }

  function fits(row) {
    for (const name of ["outcome", "grade", "task"]) {
      const wanted = $(`f-${name}`)?.value;
      if (wanted && list[name][row] !== +wanted) return false;
    }
    const kind = $("f-kind")?.value;
    if (kind && !(list.kind[row] & (1 << +kind))) return false;
    const least = $("f-saved").value;
    if (least === "0") return saving(row) <= 0;
    return !least || saving(row) * 100 >= +least - (least === "1" ? 0.9999 : 0);
  }

  function choose(keep) {
    const before = keep ? shown[at] : undefined;
    const words = $("search").value.trim().toLowerCase();
    shown = [];
    for (let row = 0; row < list.id.length; row++) {
      if (!fits(row)) continue;
      if (words && !found?.has(row) && !list.head[row].includes(words)) continue;
      shown.push(row);
    }
    const order = $("f-sort").value;
    if (order) {
      const sign = order[0] === "-" ? 1 : -1;
      const value = order.endsWith("saved") ? saving : (row) => list.before[row];
      const keyed = shown.map((row) => [Number.isNaN(value(row)) ? -Infinity * sign * -1 : value(row), row]);
      keyed.sort((a, b) => (a[0] === b[0] ? a[1] - b[1] : sign * (a[0] - b[0])));
      shown = keyed.map((pair) => pair[1]);
    }
    for (const select of $("filters").querySelectorAll("select")) select.classList.toggle("set", !!select.value);
    $("space").style.height = `${shown.length * HEIGHT}px`;
    at = before === undefined ? -1 : shown.indexOf(before);
    tell();
    draw();
    if (at < 0) {
      $("list").scrollTop = 0;
      if (shown.length) select(0, true);
      else $("detail").replaceChildren(make("p.empty", searching ? "Searching …" : "No row fits the search and the filters (r clears them)."));
    }
  }

  function tell(progress) {
    let before = 0, after = 0;
    for (const row of shown) {
      if (list.before[row] > 0 && list.after[row] >= 0) { before += list.before[row]; after += list.after[row]; }
    }
    const all = list.id.length === shown.length ? "" : ` of ${number.format(list.id.length)}`;
    const tokens = before ? ` · tokens ${number.format(before)} → ${number.format(after)} (${percent(1 - after / before)})` : "";
    $("count").title = list.noun === "questions" ? "Tokens without an early exit → mean of all other answers" : "Tokens before → after";
    $("count").textContent = `${number.format(shown.length)}${all} ${list.noun}${tokens}`
      + (progress ? ` · searching texts ${progress}` : "");
  }

  function holds(node, hits) {
    if (typeof node === "number") return hits.has(node);
    return typeof node !== "string" && node.some((each, i) => i > 1 && holds(each, hits));
  }

  async function search() {
    const words = $("search").value.trim().toLowerCase(), turn = ++asked;
    found = new Set();
    searching = !!words;
    choose(true);
    if (!words) return;
    await new Promise((resolve) => setTimeout(resolve, 180)); // while somebody types
    let first = 0, drawn = performance.now();
    for (let i = 0; i < list.chunks.length; i++) {
      if (turn !== asked) return;
      const open = await chunk(list.first + i);
      const hits = new Set();
      open.t.forEach((text, place) => { if (text.toLowerCase().includes(words)) hits.add(place); });
      if (hits.size) open.r.forEach((tree, place) => { if (holds(tree, hits)) found.add(first + place); });
      first += list.chunks[i];
      if (performance.now() - drawn > 250) {
        choose(true);
        tell(`${Math.round(((i + 1) / list.chunks.length) * 100)} %`);
        await new Promise((resolve) => setTimeout(resolve));
        drawn = performance.now();
      }
    }
    if (turn !== asked) return;
    searching = false;
    choose(true);
    document.body.dataset.searched = words;
  }

  // ---- the list: only the rows in view exist

  function draw() {
    const top = $("list").scrollTop, height = $("list").clientHeight;
    const from = Math.max(0, Math.floor(top / HEIGHT) - MARGIN);
    const to = Math.min(shown.length, Math.ceil((top + height) / HEIGHT) + MARGIN);
    const rows = [];
    for (let place = from; place < to; place++) rows.push(line(place));
    $("space").replaceChildren(...rows);
  }

  function line(place) {
    const row = shown[place], grade = list.grades[list.grade[row]] || "";
    const before = list.before[row], after = list.after[row];
    const tokens = after >= 0 && after !== before ? `${number.format(before)} → ${number.format(after)}` : number.format(before);
    const title = make("div.title", "", make("span.sample", list.id[row].split("/").pop()), make("bdi", list.title[row]));
    const outcome = list.outcomes[list.outcome[row]].replace("_", " ");
    const element = make("div.row", "", title, make("div.meta", "",
      grade ? make(`span.grade.${grade}`, `${SIGNS[grade] || ""} ${grade}`) : make("span", list.note[row]),
      make("span", outcome), make("span.end", tokens), make("span.less", percent(saving(row)))));
    element.style.top = `${place * HEIGHT}px`;
    element.id = `row${place}`;
    element.setAttribute("role", "option");
    element.setAttribute("aria-selected", place === at);
    element.setAttribute("aria-setsize", shown.length);
    element.setAttribute("aria-posinset", place + 1);
    element.addEventListener("click", () => { select(place); reading(true); });
    return element;
  }

  function select(place, quiet) {
    if (!shown.length) return;
    at = Math.max(0, Math.min(place, shown.length - 1));
    const box = $("list"), top = at * HEIGHT;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + HEIGHT > box.scrollTop + box.clientHeight) box.scrollTop = top + HEIGHT - box.clientHeight;
    draw();
    box.setAttribute("aria-activedescendant", `row${at}`);
    document.body.dataset.chosen = list.id[shown[at]];
    clearTimeout(noted); // browsers refuse to note more than a few rows a second
    if (!quiet) noted = setTimeout(() => history.replaceState(null, "", `#${encodeURIComponent(list.id[shown[at]])}`), 300);
    open(shown[at]);
  }

  // ---- one row in full

  async function open(row) {
    const turn = ++opened;
    let place = 0, first = 0;
    while (row >= first + list.chunks[place]) first += list.chunks[place++];
    const data = await chunk(list.first + place);
    if (turn !== opened) return; // another row was chosen meanwhile
    $("detail").replaceChildren(build(data.r[row - first], data.t));
    $("detail").scrollTop = 0;
    document.body.dataset.opened = list.id[row];
  }

  function go(segment) {
    const elements = [...$("detail").querySelectorAll(".original [data-segment]")];
    const element = elements.find((each) => each.dataset.segment === String(segment));
    if (!element) return;
    for (const each of elements) each.classList.toggle("at", each === element);
    element.scrollIntoView({ block: "nearest" });
  }

  function step(by) {
    const elements = [...$("detail").querySelectorAll(".original [data-segment]")];
    const here = elements.findIndex((each) => each.classList.contains("at"));
    const next = elements[Math.max(0, Math.min(elements.length - 1, here < 0 ? 0 : here + by))];
    if (next) go(next.dataset.segment);
  }

  const reading = (on) => document.querySelector(".panes").classList.toggle("reading", on);

  // ---- controls

  function options(select, choices) {
    for (const [value, text] of choices) {
      const option = make("option", text);
      option.value = value;
      select.append(option);
    }
  }

  function filter(name, label, names, values) {
    const counts = new Array(names.length).fill(0);
    for (const value of values) {
      if (name !== "kind") counts[value]++;
      else for (let bit = 0; bit < names.length; bit++) if (value & (1 << bit)) counts[bit]++;
    }
    const choices = names.map((each, i) => [String(i), `${each.replaceAll("_", " ") || "none"} (${number.format(counts[i])})`]);
    if (choices.length < 2 && name !== "outcome") return [];
    return [control(name, label, [["", `any ${label}`], ...choices])];
  }

  function control(name, label, choices) {
    const select = make("select");
    select.id = `f-${name}`;
    select.setAttribute("aria-label", label);
    options(select, choices);
    select.addEventListener("change", () => choose(true));
    return select;
  }

  function show(place) {
    list = index.lists[place];
    reading(false);
    shown = [];
    at = -1;
    list.head ??= list.id.map((id, row) => `${id}\n${list.title[row]}`.toLowerCase());
    [...$("lists").children].forEach((button, i) => button.setAttribute("aria-pressed", i === place));
    $("filters").replaceChildren(
      ...filter("outcome", "outcome", list.outcomes, list.outcome),
      ...filter("grade", "grade", list.grades, list.grade),
      ...filter("task", "task", list.tasks, list.task),
      ...filter("kind", list.kindName, list.kinds, list.kind),
      control("saved", "tokens saved", SAVED), control("sort", "order", SORTS));
    search();
  }

  function clear() {
    $("search").value = "";
    for (const select of $("filters").querySelectorAll("select")) select.value = "";
    search();
  }

  function theme(turn) {
    const root = document.documentElement, states = ["", "light", "dark"];
    let state = "";
    try { state = localStorage.getItem("dto-theme") || ""; } catch { /* none is kept */ }
    if (turn) {
      state = states[(states.indexOf(root.dataset.theme || "") + 1) % 3];
      try { localStorage.setItem("dto-theme", state); } catch { /* none is kept */ }
    }
    if (state) root.dataset.theme = state;
    else delete root.dataset.theme;
    $("theme").textContent = state ? state[0].toUpperCase() + state.slice(1) : "Auto";
  }

  const move = (by) => select(at + by);
  const page = () => Math.max(1, Math.floor($("list").clientHeight / HEIGHT) - 1);
  const ACTIONS = {
    j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
    PageDown: () => move(page()), PageUp: () => move(-page()),
    g: () => select(0), Home: () => select(0), G: () => select(shown.length - 1), End: () => select(shown.length - 1),
    Enter: () => { reading(true); $("detail").focus(); },
    n: () => step(1), p: () => step(-1),
    " ": () => { $("detail").scrollTop += $("detail").clientHeight * 0.85; },
    x: () => $("detail").classList.toggle("plain"),
    c: () => { for (const each of $("detail").querySelectorAll("details")) each.open = !each.open; },
    "/": () => { $("search").focus(); $("search").select(); },
    r: clear, t: () => theme(true),
    l: () => show((index.lists.indexOf(list) + 1) % index.lists.length),
    "?": () => ($("help").open ? $("help").close() : $("help").showModal()),
    Escape: () => { reading(false); $("list").focus(); },
  };

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inside = event.target.closest("input, select, button, summary, dialog");
    if (inside && inside.id === "search") {
      if (event.key === "Escape" || event.key === "Enter" || event.key === "ArrowDown") {
        event.preventDefault();
        $("list").focus();
      }
      return;
    }
    if ($("help").open ? event.key !== "?" : inside && (!/^[a-zG/?]$/.test(event.key) || inside.tagName === "SELECT")) return;
    const scrolls = document.activeElement === $("detail") && /^(Arrow|Page|Home|End)/.test(event.key);
    if (!ACTIONS[event.key] || scrolls) return;
    event.preventDefault();
    ACTIONS[event.key]();
  }

  async function start() {
    theme(false);
    if (typeof DecompressionStream === "undefined") {
      $("detail").replaceChildren(make("p.empty", "This browser is too old to open the rows: it has no DecompressionStream."));
      return;
    }
    index = await unpack($("index").textContent);
    index.lists.forEach((each, place) => {
      const button = make("button", `${each.name} ${number.format(each.id.length)}`);
      button.type = "button";
      button.addEventListener("click", () => show(place));
      $("lists").append(button);
    });
    for (const [keys, what] of KEYS) $("keytable").append(make("tr", "", make("td", "", make("kbd", keys)), make("td", what)));
    for (const cells of index.stages) $("stages").append(make("tr", "", ...cells.map((cell) => make("td", cell))));
    $("search").addEventListener("input", search);
    $("list").addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
    addEventListener("resize", draw);
    document.addEventListener("keydown", pressed);
    $("detail").addEventListener("click", (event) => {
      const target = event.target.closest("[data-go]");
      if (target) go(target.dataset.go);
    });
    $("theme").addEventListener("click", () => theme(true));
    $("keys").addEventListener("click", ACTIONS["?"]);
    $("back").addEventListener("click", ACTIONS.Escape);
    let wanted = location.hash.slice(1);
    try { wanted = decodeURIComponent(wanted); } catch { /* as it stands there */ }
    const place = index.lists.findIndex((each) => each.id.includes(wanted));
    show(Math.max(0, place));
    if (wanted && place >= 0) select(shown.indexOf(list.id.indexOf(wanted)));
    $("list").focus({ preventScroll: true });
    requestAnimationFrame(() => requestAnimationFrame(() => { document.body.dataset.ready = Math.round(performance.now()); }));
  }

  start();
})();
