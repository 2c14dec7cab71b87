// Rows: unpack the chunks below the script, build elements, search, and mark matches. Texts become
// text nodes, never HTML.
const KEPT_CHUNKS = 16, MARKED = 2000, MATHML = "http://www.w3.org/1998/Math/MathML";
const BLOCKS = "div, p, s, td, th, h3, summary, section, header, article, li";
const $ = (id) => document.getElementById(id);
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
    if (!$(`c${place + 1}`)) await parsed; // an element is complete once the next one exists
    open = unpack($(`c${place}`).textContent);
  }
  chunks.set(place, open);
  if (chunks.size > KEPT_CHUNKS) chunks.delete(chunks.keys().next().value);
  return open;
}

function build(node, data) {
  if (typeof node === "string") return document.createTextNode(node);
  if (typeof node === "number") return document.createTextNode(data.t[node]);
  if (node[0] === "rich") return rich(node, data);
  return filled(element(node[0], node[1]), node, (child) => build(child, data));
}

function element(tag, attributes, space) {
  const [name, ...classes] = tag.split(".");
  const made = space ? document.createElementNS(space, name) : document.createElement(name);
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "style") made.style.cssText = value;
    else made.setAttribute(key, value);
  }
  return made;
}

function filled(parent, node, of) {
  for (let i = 2; i < node.length; i++) parent.append(of(node[i]));
  return parent;
}

// A text with markup: its pieces are cut from the whole text, in order. Formulas are MathML.
function rich(node, data) {
  const text = data.t[node[1]];
  let place = 0;
  const math = (part) => (typeof part === "string" ? part : filled(element(part[0], part[1], MATHML), part, math));
  const piece = (part) => {
    if (typeof part === "string") return part;
    if (typeof part === "number") return text.slice(place, (place += part));
    if (part[0] === "math") return math(data.m[part[1]]);
    return filled(element(part[0], part[1]), part, piece);
  };
  return filled(make("span.rich"), node, piece);
}

function make(tag, text, ...children) {
  const element = build([tag, 0]);
  if (text) element.textContent = text;
  element.append(...children);
  return element;
}

function holds(node, hits) {
  if (typeof node === "number") return hits.has(node);
  if (node[0] === "rich") return hits.has(node[1]);
  return typeof node !== "string" && node.some((each, i) => i > 1 && holds(each, hits));
}

// Indices within a chunk of the rows that contain the words.
async function holding(place, words) {
  const open = await chunk(place), hits = new Set(), rows = [];
  open.t.forEach((text, number) => { if (text.toLowerCase().includes(words)) hits.add(number); });
  if (hits.size) open.r.forEach((tree, row) => { if (holds(tree, hits)) rows.push(row); });
  return rows;
}

// Find the words in the shown row, also across markup; browsers without highlights still scroll to
// them. What is found in the source of a formula marks the formula.
function matches(root, words) {
  const found = [];
  if (words) {
    const pattern = new RegExp(words.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"), "giu");
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT,
      (node) => (node.parentElement.closest("math") ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT));
    let block = null, nodes = [];
    for (let node = walker.nextNode(); node && found.length < MARKED; node = walker.nextNode()) {
      const around = node.parentElement.closest(BLOCKS);
      if (around !== block) {
        within(nodes, pattern, found);
        block = around;
        nodes = [];
      }
      nodes.push(node);
    }
    within(nodes, pattern, found);
  }
  mark("found", found);
  mark("found-here", []);
  return found;
}

// Add the ranges of all matches in consecutive text nodes.
function within(nodes, pattern, found) {
  const starts = [];
  let whole = "", last = 0;
  for (const node of nodes) {
    starts.push(whole.length);
    whole += node.data;
  }
  for (const match of whole.matchAll(pattern)) {
    const range = new Range(), end = match.index + match[0].length;
    while (last + 1 < nodes.length && starts[last + 1] <= match.index) last++;
    let until = last;
    while (until + 1 < nodes.length && starts[until + 1] < end) until++;
    const formula = !raw() && nodes[last].parentElement.closest(".math");
    if (formula) range.selectNodeContents(formula.querySelector("math"));
    else range.setStart(nodes[last], match.index - starts[last]);
    const closing = !raw() && nodes[until].parentElement.closest(".math");
    if (closing) range.setEndAfter(closing.querySelector("math"));
    else range.setEnd(nodes[until], end - starts[until]);
    found.push(range);
  }
}

function mark(name, ranges) {
  if (typeof Highlight === "undefined") return;
  if (ranges.length) CSS.highlights.set(name, new Highlight(...ranges));
  else CSS.highlights.delete(name);
}

// Scroll a match into view unless it is visible.
function reveal(range, box) {
  const inside = () => {
    const match = range.getBoundingClientRect(), view = box.getBoundingClientRect();
    return match.top >= view.top && match.bottom <= view.bottom;
  };
  if (inside()) return;
  (range.startContainer.parentElement.closest(".math") || range.startContainer.parentElement).scrollIntoView({ block: "nearest", behavior: "instant" });
  const match = range.getBoundingClientRect(), view = box.getBoundingClientRect();
  box.scrollTo({ top: box.scrollTop + match.top - view.top - view.height / 3, behavior: "instant" });
}

const raw = () => document.body.classList.contains("raw");

// Copy the source of texts and formulas, not what a formula is drawn with.
function copied(event) {
  const selection = getSelection();
  if (raw() || selection.isCollapsed || !$("detail").contains(selection.anchorNode)) return;
  const range = selection.getRangeAt(0), [start, end] = [range.startContainer, range.endContainer].map(
    (node) => (node.nodeType === Node.TEXT_NODE ? node.parentElement : node).closest(".math"));
  if (start) range.setStartBefore(start);
  if (end) range.setEndAfter(end);
  document.body.classList.add("raw");
  event.clipboardData.setData("text/plain", selection.toString());
  document.body.classList.remove("raw");
  event.preventDefault();
}

async function copy(text) {
  try { await navigator.clipboard.writeText(text); } catch {
    const area = make("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
