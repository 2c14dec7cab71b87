// The list: rows that match search and filters, sorted. Only visible rows are in the document.
const HEIGHTS = { row: 56, head: 50, part: 30 }, MARGIN = 300;
const number = new Intl.NumberFormat("en");
const SIGNS = { correct: "✓", wrong: "✗", truncated: "…", failed: "!" };
const SAVED = [["", "any saving"], ["75", "saved ≥ 75 %"], ["50", "saved ≥ 50 %"], ["25", "saved ≥ 25 %"],
  ["1", "saved > 0 %"], ["0", "nothing saved"]];
const SORTS = [["", "sort by id"], ["saved", "most tokens saved first"], ["before", "longest first"],
  ["-before", "shortest first"], ["-saved", "fewest tokens saved first"]];
const LABELS = { change: "gain or loss", chain: "reason without a chain", prompt: "prompt size" }; // others: the name
const GROUPS = [["", "by problem"], ["closed", "problems only"], ["off", "single rows"]];
let index, list, shown = [], items = [], selectable = 0, at = -1, chosen = -1, found = null, asked = 0, opened = 0, noted = 0;
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
  showChips();
  lay();
  showCount();
  const place = placeOf(chosen);
  if (shown.length) point(place >= 0 ? place : items.findIndex((item) => !opens(item)), searching);
  else {
    at = pointed = -1;
    draw();
    opened++;
    $("list").removeAttribute("aria-activedescendant");
    delete document.body.dataset.opened;
    $("detail").replaceChildren(make("p.empty", searching ? "Searching …" : "No row matches the search and filters (r clears them)."));
  }
}

// A chip for each chosen filter, which removes it.
function showChips() {
  const chips = selects().filter((select) => select.value && !["f-sort", "f-group"].includes(select.id)).map((select) => {
    const label = select.getAttribute("aria-label"), value = select.id === "f-saved" ? select.selectedOptions[0].text : select.value.replaceAll("_", " ");
    const chip = make("button.chip", `${select.id === "f-saved" ? "" : `${label}: `}${value} ×`);
    chip.type = "button";
    chip.title = "Remove this filter";
    chip.setAttribute("aria-label", `remove the filter ${label}: ${value}`);
    chip.addEventListener("click", () => {
      select.value = "";
      choose();
      note("step");
      ($("chips").querySelector("button") || $("list")).focus();
    });
    return chip;
  });
  $("chips").replaceChildren(...chips);
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

// ---- the list: samples by problem, below a head; only visible items are in the document

const problem = (row) => list.id[row].split("/", 1)[0];
const opens = (item) => item.kind === "head" && isOpen(item);
const isOpen = (head) => ($("f-group").value !== "closed") !== list.turned.has(problem(head.row));

// Lay out the shown rows as items. A head can be selected while its group is closed.
function lay() {
  items = [];
  let top = 0, place = 0;
  const add = (kind, row, rows) => {
    const item = { kind, row, rows, top, height: HEIGHTS[kind] };
    items.push(item);
    top += item.height;
    if (!opens(item)) item.place = place++;
  };
  const group = $("f-group");
  if (group) group.disabled = !!$("f-sort").value;
  if (!group || group.value === "off" || group.disabled) for (const row of shown) add("row", row);
  else {
    const groups = new Map();
    for (const row of shown) groups.get(problem(row))?.push(row) ?? groups.set(problem(row), [row]);
    for (const rows of groups.values()) {
      if (rows.length === 1) { add("row", rows[0]); continue; }
      add("head", rows.includes(chosen) ? chosen : rows[0], rows);
      if (isOpen(items.at(-1))) for (const row of rows) add("part", row);
    }
  }
  selectable = place;
  $("space").style.height = `${top}px`;
}

const placeOf = (row) => items.findIndex((item) => !opens(item) && (item.row === row || item.rows?.includes(row)));

// The item at a height of the list.
function itemAt(height) {
  let low = 0, high = items.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (items[middle].top <= height) low = middle;
    else high = middle - 1;
  }
  return low;
}

function draw() {
  const top = $("list").scrollTop, height = $("list").clientHeight, elements = [];
  for (let place = itemAt(top - MARGIN); place < items.length && items[place].top < top + height + MARGIN; place++) elements.push(line(place));
  $("space").replaceChildren(...elements);
}

function line(place) {
  const item = items[place], open = opens(item);
  const element = item.kind === "head" ? headOf(item) : rowOf(item.row, item.kind);
  element.style.top = `${item.top}px`;
  element.id = `item${place}`;
  if (!open) {
    element.setAttribute("role", "option");
    element.setAttribute("aria-selected", place === at);
    element.setAttribute("aria-setsize", selectable);
    element.setAttribute("aria-posinset", item.place + 1);
  }
  if (item.kind === "head") element.setAttribute("aria-expanded", open);
  element.addEventListener("click", () => (item.kind === "head" ? toggle(item) : enter(place)));
  return element;
}

function rowOf(row, kind) {
  const grade = list.note[row] ? "" : valueOf("grade", row);
  const before = list.before[row], after = list.after[row];
  const tokens = after >= 0 && after !== before ? `${number.format(before)} → ${number.format(after)}` : number.format(before);
  const sample = make("span.sample", list.id[row].split("/").filter((part) => part.length < 12).join("/"));
  const cells = [grade ? make(`span.grade.${grade}`, `${SIGNS[grade] || ""} ${grade}`) : make("span", list.note[row]),
    make("span", valueOf("outcome", row).replace("_", " ")), make("span.end", tokens), make("span.less", percent(saving(row)))];
  if (kind === "part") return make("div.row.part", "", make("div.meta", "", sample, ...cells));
  return make("div.row", "", make("div.title", "", sample, make("bdi", list.title[row])), make("div.meta", "", ...cells));
}

// "4 samples: 3 right", of the rows that are shown; of answers, how many of all.
function headOf(item) {
  let right = 0, failed = 0, all = 0, before = 0, after = 0;
  for (const row of item.rows) {
    const noted = /^(\d+) of (\d+)/.exec(list.note[row]);
    right += noted ? +noted[1] : valueOf("grade", row) === "correct";
    failed += !noted && valueOf("grade", row) === "failed";
    all += noted ? +noted[2] : 0;
    if (list.before[row] > 0 && list.after[row] >= 0) { before += list.before[row]; after += list.after[row]; }
  }
  const what = `${item.rows.length} ${list.noun === "chains" ? "chains" : "samples"}: ${right} ${all ? `of ${all} answers ` : ""}right${failed ? `, ${failed} failed` : ""}`;
  return make("div.group", "", make("div.title", "", make("span.fold", opens(item) ? "▾" : "▸"), make("bdi", list.title[item.row])),
    make("div.meta", "", make("span", what), make("span.end.less", before ? percent(1 - after / before) : "")));
}

// Open or close a group.
function toggle(head) {
  const key = problem(head.row);
  if (!list.turned.delete(key)) list.turned.add(key);
  lay();
  if (chosen < 0) chosen = head.row;
  if (placeOf(chosen) >= 0) point(placeOf(chosen), true);
  else draw();
}

function fold(open) {
  const item = items[at], head = item?.kind === "head" ? item : items.find((each) => each.rows?.includes(item?.row));
  if (head && isOpen(head) !== open) toggle(head);
}

// Show a row beside the list and scroll the list to it, but only once during a search.
function point(place, still) {
  at = place;
  const box = $("list"), item = items[at], id = list.id[item.row];
  if (!still || pointed !== item.row) {
    const head = items[at - 1]?.kind === "head" ? items[at - 1].top : item.top;
    if (head < box.scrollTop) box.scrollTop = head;
    else if (item.top + item.height > box.scrollTop + box.clientHeight) box.scrollTop = item.top + item.height - box.clientHeight;
  }
  pointed = item.row;
  draw();
  box.setAttribute("aria-activedescendant", `item${at}`);
  document.body.dataset.chosen = id;
  document.title = `${id} · ${document.querySelector("h1").textContent} · dto view`;
  open(item.row);
}

// Select the item at a place, or the next one in this direction that can be selected.
function select(place, way = 1) {
  if (!items.length) return;
  let next = Math.max(0, Math.min(place, items.length - 1));
  while (items[next] && opens(items[next])) next += way;
  if (!items[next]) next = at;
  chosen = items[next].row;
  say("");
  point(next);
  note();
}

function enter(place) {
  if (!items.length) return;
  note("now");
  select(place);
  read(true);
  note("step");
}
