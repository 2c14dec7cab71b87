// The address, which holds row, search and filters, so that links and the back button restore the
// view; the selected row; controls and keys.
const KEYS = [["j k, ↓ ↑", "next, previous row"], ["g G, Home End", "first, last row"],
  ["PgDn PgUp", "a page of rows"], ["Enter", "open the row"], ["→ ←", "open, close the samples of a problem"], ["n p", "next, previous segment or answer"],
  ["e", "go to the exit"], ["m M", "next, previous match of the search"], ["Space", "scroll the row (with Shift: back)"],
  ["x", "toggle the strike-through of removed text"], ["s", "raw text or rendered formulas"], ["c", "open or close pairs and settings"], ["y", "copy the row id"],
  ["/", "search"], ["Esc", "leave the search or the row"], ["r", "clear search and filters"],
  ["l", "next list"], ["t", "light, dark or system theme"], ["?", "this help"]];

// ---- the address

function address() {
  const query = new URLSearchParams();
  if (list !== index.lists[0]) query.set("list", list.name.toLowerCase());
  if (words()) query.set("q", $("search").value.trim());
  for (const select of selects()) if (select.value) query.set(select.id.slice(2), select.value);
  const id = chosen < 0 ? "" : encodeURIComponent(list.id[chosen]).replaceAll("%2F", "/");
  const rest = query.toString();
  return `#${id}${rest ? `&${rest}` : ""}`;
}

// Store the view in the address: as a new history step, or in place of the last one, at once or
// after a pause in key presses (browsers allow only a few updates a second).
function note(how) {
  clearTimeout(noted);
  const put = (method) => {
    const state = { reading: reading() };
    if (address() !== (location.hash || "#") || state.reading !== !!history.state?.reading) history[method](state, "", address());
  };
  if (how) put(how === "step" ? "pushState" : "replaceState");
  else noted = setTimeout(put, 300, "replaceState");
}

function visit(hash) {
  const [first, ...rest] = hash.slice(1).split("&");
  const query = new URLSearchParams(rest.join("&"));
  let id = first;
  try { id = decodeURIComponent(first); } catch { /* keep it undecoded */ }
  const lists = index.lists, has = (other) => other.id.includes(id) || (id && other.id.some((rowId) => rowId.startsWith(id)));
  let place = lists.findIndex((other) => other.name.toLowerCase() === query.get("list"));
  if (place < 0 && id) place = lists.findIndex(has);
  show(Math.max(0, place), query);
  chosen = list.id.indexOf(id);
  if (chosen < 0 && id) chosen = list.id.findIndex((rowId) => rowId.startsWith(id));
  say(id && chosen < 0 ? `No row ${list.part ? "of this page, which shows a part of the run, " : ""}has the id ${id}.` : "");
  search();
  return chosen >= 0;
}

// ---- the selected row

async function open(row) {
  const key = `${list.name} ${row}`, turn = ++opened, from = list;
  if ($("detail").dataset.row === key && document.body.dataset.opened) return;
  let place = 0, first = 0;
  while (row >= first + from.chunks[place]) first += from.chunks[place++];
  const data = await chunk(from.first + place);
  if (turn !== opened) return; // another row was selected meanwhile
  const article = build(data.r[row - first], data);
  const button = make("button.copy", "Copy id");
  button.type = "button";
  button.title = "Copy the row id (y). In a notebook, dto.show(RUN, id) shows the row";
  button.addEventListener("click", ACTIONS.y);
  article.querySelector(".id")?.append(button);
  $("detail").replaceChildren(article);
  $("detail").dataset.row = key;
  $("detail").scrollTo({ top: 0, behavior: "instant" });
  document.body.dataset.opened = from.id[row];
  remark();
}

// Mark the matches of the search and scroll to the first.
function remark() {
  marks = matches($("detail"), words());
  here = -1;
  if (marks.length) reveal(marks[0], $("detail"));
}

function match(by) {
  if (!marks.length) return say(words() ? "No match in this row." : "The search is empty.");
  here = here < 0 ? (by > 0 ? 0 : marks.length - 1) : (here + by + marks.length) % marks.length;
  mark("found-here", [marks[here]]);
  reveal(marks[here], $("detail"));
  say(`match ${here + 1} of ${marks.length}${marks.length >= MARKED ? " or more" : ""}`);
}

function go(element) {
  if (!element) return;
  for (const each of $("detail").querySelectorAll(".at")) each.classList.remove("at");
  element.classList.add("at");
  element.scrollIntoView({ block: "nearest" });
}

const segment = (place) => $("detail").querySelector(`.original [data-segment="${place}"]`);

function step(by) {
  const elements = [...$("detail").querySelectorAll(".original [data-segment], .card")];
  const last = elements.findIndex((each) => each.classList.contains("at"));
  go(elements[Math.max(0, Math.min(elements.length - 1, last < 0 ? 0 : last + by))]);
}

// ---- controls

function filter(column) {
  const counts = new Map(), label = LABELS[column] || column;
  for (const names of list.names) for (const name of names[column]) counts.set(name, (counts.get(name) || 0) + 1);
  const same = counts.size < 2 && [...counts.values()].every((count) => count === list.id.length);
  if (same && column !== "outcome") return [];
  const choices = [...counts].sort((a, b) => b[1] - a[1])
    .map(([name, count]) => [name, `${name.replaceAll("_", " ")} (${number.format(count)})`]);
  return [control(column, label, [["", `any ${label}`], ...choices])];
}

function control(name, label, choices) {
  const select = make("select");
  select.id = `f-${name}`;
  select.setAttribute("aria-label", label);
  for (const [value, text] of choices) {
    const option = make("option", text);
    option.value = value;
    select.append(option);
  }
  select.addEventListener("change", () => { choose(); note("step"); });
  return select;
}

// Show a list with the search and filters of an address.
function show(place, query) {
  list = index.lists[place];
  read(false);
  say("");
  chosen = -1;
  list.head ??= list.id.map((id, row) => `${id}\n${list.title[row]}`.toLowerCase());
  list.turned ??= new Set();
  list.grouped ??= list.noun !== "responses" && new Set(list.id.map((_, row) => problem(row))).size < list.id.length;
  $("part").textContent = list.part;
  [...$("lists").children].forEach((button, i) => button.setAttribute("aria-pressed", i === place));
  const both = list.after.some((tokens) => tokens >= 0);
  $("filters").replaceChildren(...Object.keys(list.names[0]).flatMap(filter), ...(both ? [control("saved", "tokens saved", SAVED)] : []),
    control("sort", "order", SORTS.filter(([value]) => both || !value.endsWith("saved"))), ...(list.grouped ? [control("group", "groups", GROUPS)] : []));
  $("search").value = query.get("q") || "";
  for (const select of selects()) {
    const wanted = query.get(select.id.slice(2)) || "";
    if ([...select.options].some((option) => option.value === wanted)) select.value = wanted;
  }
}

// Switch to a list, with its last search and filters.
function turn(place) {
  if (index.lists[place] === list) return;
  list.left = address();
  visit(index.lists[place].left || `#&list=${index.lists[place].name.toLowerCase()}`);
  note("step");
}

function clear() {
  $("search").value = "";
  for (const select of selects()) select.value = "";
  search();
  note("step");
}

function theme(turn) {
  const root = document.documentElement, states = ["", "light", "dark"];
  let state = "";
  try { state = localStorage.getItem("dto-theme") || ""; } catch { /* not stored */ }
  if (turn) {
    state = states[(states.indexOf(root.dataset.theme || "") + 1) % 3];
    try { localStorage.setItem("dto-theme", state); } catch { /* not stored */ }
  }
  if (state) root.dataset.theme = state;
  else delete root.dataset.theme;
  $("theme").textContent = state ? state[0].toUpperCase() + state.slice(1) : "Auto";
  $("theme").setAttribute("aria-label", `Theme: ${state || "system"}`);
}

// Raw text, or rendered formulas and Markdown; remembered.
function source(turn) {
  let on = false;
  try { on = localStorage.getItem("dto-raw") === "1"; } catch { /* not stored */ }
  if (turn) {
    on = !raw();
    try { localStorage.setItem("dto-raw", on ? "1" : ""); } catch { /* not stored */ }
  }
  document.body.classList.toggle("raw", on);
  $("raw").setAttribute("aria-pressed", on);
  if (turn) remark();
}

const move = (by) => select(at + by, by);
function page(way) {
  if (at < 0) return;
  const place = itemAt(Math.max(0, items[at].top + way * ($("list").clientHeight - HEIGHTS.row)));
  select(place === at ? at + way : place, way);
}
const scroll = (event) => $("detail").scrollBy({ top: $("detail").clientHeight * (event.shiftKey ? -0.85 : 0.85) });
const ACTIONS = {
  j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
  PageDown: () => page(1), PageUp: () => page(-1),
  g: () => select(0), Home: () => select(0), G: () => select(items.length - 1, -1), End: () => select(items.length - 1, -1),
  ArrowRight: () => fold(true), ArrowLeft: () => fold(false),
  Enter: () => { enter(at); $("detail").focus(); },
  n: () => step(1), p: () => step(-1), m: () => match(1), M: () => match(-1),
  e: () => $("detail").querySelector(".leave")?.scrollIntoView({ block: "center" }),
  " ": scroll,
  x: () => $("detail").classList.toggle("plain"),
  c: () => { for (const each of $("detail").querySelectorAll("details")) each.open = !each.open; },
  y: async () => { if (at >= 0) { await copy(list.id[items[at].row]); say(`copied ${list.id[items[at].row]}`); } },
  "/": () => { $("search").focus(); $("search").select(); },
  r: clear, t: () => theme(true), s: () => source(true),
  l: () => turn((index.lists.indexOf(list) + 1) % index.lists.length),
  "?": () => ($("help").open ? $("help").close() : $("help").showModal()),
  Escape: () => { read(false); note("now"); $("list").focus(); },
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
  if ($("help").open ? event.key !== "?" : inside && event.key !== "Escape" && (!/^[a-zGM/?]$/.test(event.key) || inside.tagName === "SELECT")) return;
  const scrolls = document.activeElement === $("detail") && /^(Arrow|Page|Home|End)/.test(event.key);
  if (!ACTIONS[event.key] || scrolls) return;
  event.preventDefault();
  ACTIONS[event.key](event);
}

// Visit the address. A link to a row, in a narrow window, opens the row and not the list.
function arrive() {
  const state = history.state, linked = visit(location.hash);
  read(state ? !!state.reading : linked);
  history.replaceState({ reading: reading() }, "");
}

async function start() {
  theme(false);
  source(false);
  if (typeof DecompressionStream === "undefined") {
    $("detail").replaceChildren(make("p.empty", "This browser is too old to open the rows: it has no DecompressionStream."));
    return;
  }
  index = await unpack($("index").textContent);
  index.lists.forEach((each, place) => {
    const button = make("button", `${each.name} ${number.format(each.id.length)}`);
    button.type = "button";
    button.addEventListener("click", () => turn(place));
    $("lists").append(button);
  });
  for (const [keys, what] of KEYS) $("keytable").append(make("tr", "", make("td", "", make("kbd", keys)), make("td", what)));
  for (const cells of index.stages) $("stages").append(make("tr", "", ...cells.map((cell) => make("td", cell))));
  $("state").textContent = [["running", "Running"], ["not run yet", "Not run yet"]].map(([state, label]) => {
    const stages = index.stages.filter((stage) => stage[1] === state).map(([stage]) => stage);
    return stages.length ? `${label}: ${stages.join(", ")}.` : "";
  }).join(" ").trim();
  $("search").addEventListener("input", () => { search(); note(); });
  $("list").addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  addEventListener("resize", draw);
  document.addEventListener("keydown", pressed);
  $("detail").addEventListener("click", (event) => {
    const target = event.target.closest("[data-go]");
    if (target) go(segment(target.dataset.go));
  });
  $("theme").addEventListener("click", () => theme(true));
  $("raw").addEventListener("click", () => source(true));
  document.addEventListener("copy", copied);
  $("keys").addEventListener("click", ACTIONS["?"]);
  $("back").addEventListener("click", ACTIONS.Escape);
  addEventListener("popstate", () => {
    clearTimeout(noted);
    if (location.hash !== address() || !history.state) arrive();
    else read(!!history.state.reading);
    if (!reading()) $("list").focus({ preventScroll: true });
  });
  arrive();
  $("list").focus({ preventScroll: true });
  requestAnimationFrame(() => requestAnimationFrame(() => { document.body.dataset.ready = Math.round(performance.now()); }));
}

start();
