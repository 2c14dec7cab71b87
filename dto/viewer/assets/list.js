// The list: rows that match search and filters, sorted. Only visible rows are in the document.
const HEIGHT = 56, MARGIN = 8;
const number = new Intl.NumberFormat("en");
const SIGNS = { correct: "✓", wrong: "✗", truncated: "…", failed: "!" };
const SAVED = [["", "any saving"], ["75", "saved ≥ 75 %"], ["50", "saved ≥ 50 %"], ["25", "saved ≥ 25 %"],
  ["1", "saved > 0 %"], ["0", "nothing saved"]];
const SORTS = [["", "sort by id"], ["saved", "most tokens saved first"], ["before", "longest first"],
  ["-before", "shortest first"], ["-saved", "fewest tokens saved first"]];
const LABELS = { change: "gain or loss", chain: "reason without a chain", prompt: "prompt size" }; // others: the name
let index, list, shown = [], at = -1, chosen = -1, found = null, asked = 0, opened = 0, noted = 0;
let pointed = -1, searching = false, marks = [], here = -1;

const words = () => $("search").value.trim().toLowerCase();
const selects = () => [...$("filters").querySelectorAll("select")];
const reading = () => document.querySelector(".panes").classList.contains("reading");
const read = (on) => document.querySelector(".panes").classList.toggle("reading", on);
const say = (text) => { $("said").textContent = text; };

// ---- search, filters and order

const saving = (row) => {
  const before = list.before[row], after = list.after[row];
  return before > 0 && after >= 0 ? 1 - after / before : NaN;
};

function percent(share) {
  if (Number.isNaN(share)) return "";
  const rounded = Math.round(share * 100);
  return `${rounded > 0 ? "−" : rounded < 0 ? "+" : "±"}${Math.abs(rounded)} %`;
}

// The value of a row in a filter column with one value per row.
const valueOf = (column, row) => list.names[row][column]?.[0] || "";

// A test whether a row passes all filters.
function filterTest() {
  const tests = [];
  for (const column of Object.keys(list.names[0])) {
    const wanted = $(`f-${column}`)?.value;
    if (wanted) tests.push((row) => list.names[row][column].includes(wanted));
  }
  const least = $("f-saved")?.value;
  if (least === "0") tests.push((row) => saving(row) <= 0);
  else if (least) tests.push((row) => saving(row) * 100 >= +least - (least === "1" ? 0.9999 : 0));
  return (row) => tests.every((test) => test(row));
}

function choose() {
  const text = words(), passes = filterTest();
  shown = [];
  for (let row = 0; row < list.id.length; row++) {
    if (!passes(row)) continue;
    if (text && !found?.has(row) && !list.head[row].includes(text)) continue;
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
  for (const select of selects()) select.classList.toggle("set", !!select.value);
  $("space").style.height = `${shown.length * HEIGHT}px`;
  showCount();
  if (shown.length) point(Math.max(0, shown.indexOf(chosen)), searching);
  else {
    at = pointed = -1;
    draw();
    opened++;
    $("list").removeAttribute("aria-activedescendant");
    delete document.body.dataset.opened;
    $("detail").replaceChildren(make("p.empty", searching ? "Searching …" : "No row matches the search and filters (r clears them)."));
  }
}

function showCount(progress) {
  let before = 0, after = 0;
  for (const row of shown) {
    if (list.before[row] > 0 && list.after[row] >= 0) { before += list.before[row]; after += list.after[row]; }
  }
  const all = list.id.length === shown.length ? "" : ` of ${number.format(list.id.length)}`;
  const tokens = before ? ` · tokens ${number.format(before)} → ${number.format(after)} (${percent(1 - after / before)})` : "";
  $("count").title = list.noun === "questions" ? "Tokens without an early exit → mean of all other answers"
    : "Tokens before → after, over the rows with both";
  $("count").textContent = `${number.format(shown.length)}${all} ${list.noun}${tokens}`.replaceAll(" %", "\u00a0%")
    + (progress ? ` · searching texts ${progress}` : "");
}

async function search() {
  const text = words(), turn = ++asked;
  found = new Set();
  searching = !!text;
  choose();
  remark();
  if (!text) return;
  await new Promise((resolve) => setTimeout(resolve, 180)); // wait for more typing
  let first = 0, drawn = performance.now();
  for (let i = 0; i < list.chunks.length; i++) {
    if (turn !== asked) return;
    for (const row of await holding(list.first + i, text)) found.add(first + row);
    first += list.chunks[i];
    if (performance.now() - drawn > 250) {
      if (turn !== asked) return;
      choose();
      showCount(`${Math.round(((i + 1) / list.chunks.length) * 100)} %`);
      await new Promise((resolve) => setTimeout(resolve));
      drawn = performance.now();
    }
  }
  if (turn !== asked) return;
  searching = false;
  choose();
  document.body.dataset.searched = text;
}

// ---- the list: only visible rows are in the document

function draw() {
  const top = $("list").scrollTop, height = $("list").clientHeight;
  const from = Math.max(0, Math.floor(top / HEIGHT) - MARGIN);
  const to = Math.min(shown.length, Math.ceil((top + height) / HEIGHT) + MARGIN);
  const rows = [];
  for (let place = from; place < to; place++) rows.push(line(place));
  $("space").replaceChildren(...rows);
}

function line(place) {
  const row = shown[place], grade = list.note[row] ? "" : valueOf("grade", row);
  const before = list.before[row], after = list.after[row];
  const tokens = after >= 0 && after !== before ? `${number.format(before)} → ${number.format(after)}` : number.format(before);
  const title = make("div.title", "", make("span.sample", list.id[row].split("/").filter((part) => part.length < 12).join("/")), make("bdi", list.title[row]));
  const outcome = valueOf("outcome", row).replace("_", " ");
  const element = make("div.row", "", title, make("div.meta", "",
    grade ? make(`span.grade.${grade}`, `${SIGNS[grade] || ""} ${grade}`) : make("span", list.note[row]),
    make("span", outcome), make("span.end", tokens), make("span.less", percent(saving(row)))));
  element.style.top = `${place * HEIGHT}px`;
  element.id = `row${place}`;
  element.setAttribute("role", "option");
  element.setAttribute("aria-selected", place === at);
  element.setAttribute("aria-setsize", shown.length);
  element.setAttribute("aria-posinset", place + 1);
  element.addEventListener("click", () => enter(place));
  return element;
}

// Show a row beside the list and scroll the list to it, but only once during a search.
function point(place, still) {
  at = place;
  const box = $("list"), top = at * HEIGHT, id = list.id[shown[at]];
  if (!still || pointed !== shown[at]) {
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + HEIGHT > box.scrollTop + box.clientHeight) box.scrollTop = top + HEIGHT - box.clientHeight;
  }
  pointed = shown[at];
  draw();
  box.setAttribute("aria-activedescendant", `row${at}`);
  document.body.dataset.chosen = id;
  document.title = `${id} · ${document.querySelector("h1").textContent} · dto view`;
  open(shown[at]);
}

function select(place) {
  if (!shown.length) return;
  const next = Math.max(0, Math.min(place, shown.length - 1));
  chosen = shown[next];
  say("");
  point(next);
  note();
}

function enter(place) {
  if (!shown.length) return;
  note("now");
  select(place);
  read(true);
  note("step");
}
