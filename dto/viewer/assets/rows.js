// Rows: unpack the chunks below the script, build elements, search, and mark matches. Texts become
// text nodes, never HTML.
const KEPT_CHUNKS = 16, MARKED = 2000;
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

function holds(node, hits) {
  if (typeof node === "number") return hits.has(node);
  return typeof node !== "string" && node.some((each, i) => i > 1 && holds(each, hits));
}

// Indices within a chunk of the rows that contain the words.
async function holding(place, words) {
  const open = await chunk(place), hits = new Set(), rows = [];
  open.t.forEach((text, number) => { if (text.toLowerCase().includes(words)) hits.add(number); });
  if (hits.size) open.r.forEach((tree, row) => { if (holds(tree, hits)) rows.push(row); });
  return rows;
}

// Find the words in the shown row; browsers without highlights still scroll to them.
function matches(root, words) {
  const found = [];
  if (words) {
    const pattern = new RegExp(words.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"), "giu");
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    for (let node; found.length < MARKED && (node = walker.nextNode());) {
      for (const match of node.data.matchAll(pattern)) {
        const range = new Range();
        range.setStart(node, match.index);
        range.setEnd(node, match.index + match[0].length);
        found.push(range);
      }
    }
  }
  mark("found", found);
  mark("found-here", []);
  return found;
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
  range.startContainer.parentElement.scrollIntoView({ block: "nearest", behavior: "instant" });
  const match = range.getBoundingClientRect(), view = box.getBoundingClientRect();
  box.scrollTo({ top: box.scrollTop + match.top - view.top - view.height / 3, behavior: "instant" });
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
