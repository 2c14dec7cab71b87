"""Elements as plain data: one tree for a notebook's HTML, the page's script and a terminal.

What comes from a run (texts, answers, names) stands in `Data`, and is only ever escaped text; tags,
classes and attribute names are ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from math import isfinite
from typing import NamedTuple

from dto.records import OptimizedTrajectory, Problem
from dto.sequential import clopper_pearson


class Data(NamedTuple):
    """Text of a run, as against our own labels."""

    text: str


class Element(NamedTuple):
    """`tag` is a name with its classes, `div.segment.cut`. Values of attributes are escaped."""

    tag: str
    attributes: dict[str, str]
    children: tuple[Node, ...]


Node = str | Data | Element
Nodes = Iterable["Node | Nodes | None"]

# Characters that do not show or that change how others show: C0 and C1 but line feed and tab, soft
# hyphen, zero-width space, line separators, bidirectional embeddings and isolates, BOM, tag
# characters. Joiners and left-to-right marks stay: scripts and emoji are written with them.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)

LONG = 10_000
"""Characters of a text from which on it is cut into blocks."""


def el(tag: str, *children: Node | Nodes | None, **attributes: str | float) -> Element:
    """An element. Children that are None are left out, lists are opened; `_` in names reads `-`."""
    named = {name.replace("_", "-"): str(value) for name, value in attributes.items()}
    found: list[Node] = []
    _flatten(children, found)
    return Element(tag, named, tuple(found))


def _flatten(children: Nodes, found: list[Node]) -> None:
    for child in children:
        if isinstance(child, str | Data | Element):
            found.append(child)
        elif child is not None:
            _flatten(child, found)


def data(text: str) -> list[Node]:
    """Text of a run; what cannot be seen stands as a marked sign of its own."""
    nodes: list[Node] = []
    place = 0
    for match in _CONTROL.finditer(text):
        if match.start() > place:
            nodes.append(Data(text[place : match.start()]))
        nodes.append(el("span.control", visible(match[0]), title=f"U+{ord(match[0]):04X}"))
        place = match.end()
    return [*nodes, Data(text[place:])] if place < len(text) or not nodes else nodes


def passage(text: str) -> list[Node]:
    """Text that may be long: cut into blocks, so that a browser lays out only those in view."""
    if len(text) <= LONG:
        return data(text)
    blocks: list[Node] = []
    place = 0
    while place < len(text):
        end = place + LONG
        end = text.rfind("\n", place, end) + 1 or text.rfind(" ", place, end) + 1 or end
        blocks.append(el("div.block", data(text[place:end])))
        place = end
    return blocks


def visible(character: str) -> str:
    """A control character by its picture, `␛`, or by its number."""
    code = ord(character)
    return chr(0x2400 + code) if code < 32 else f"U+{code:04X}"


def visible_text(text: str) -> str:
    """Text where there are no marks: control characters stand as `‹␛›`."""
    return _CONTROL.sub(lambda match: f"‹{visible(match[0])}›", text)


def to_html(node: Node) -> str:
    """The tree as HTML."""
    parts: list[str] = []
    _write(node, parts)
    return "".join(parts)


def _write(node: Node, parts: list[str]) -> None:
    if not isinstance(node, Element):
        parts.append(escape(node if isinstance(node, str) else node.text))
        return
    name, *classes = node.tag.split(".")
    parts.append(f"<{name}")
    if classes:
        parts.append(f' class="{" ".join(classes)}"')
    parts += [f' {key}="{escape(value)}"' for key, value in node.attributes.items()]
    parts.append(">")
    for child in node.children:
        _write(child, parts)
    parts.append(f"</{name}>")


_LINES = (
    "article",
    "details",
    "div",
    "h3",
    "header",
    "p",
    "s",
    "section",
    "summary",
    "table",
    "tr",
)
_MARKS = {"head": "▌ ", "exit": "── ", "leave": "══ ", "verdict": "   "}
"""By class, how a line begins whose place is told by colours and frames on a page."""
KINDS = {
    "opening": "bright_black", "understanding": "bright_green", "plan": "bright_cyan",
    "derivation": "bright_yellow", "hypothesis": "cyan", "verification": "blue",
    "alternative": "magenta", "summary": "yellow", "conclusion": "green", "loop": "red",
}  # fmt: skip
"""The kinds of segments, each with its colour in a terminal."""
_STYLES = {f"k-{kind}": colour for kind, colour in KINDS.items()} | {
    "id": "bold", "h3": "bold", "b": "bold", "kind": "bold", "s": "strike dim", "note": "yellow",
    "label": "bright_black", "count": "bright_black", "exit": "bright_black", "verdict": "italic",
    "correct": "green", "wrong": "red", "truncated": "yellow", "failed": "red",
    "leave": "bold green", "question": "default", "text": "default",
}  # fmt: skip
"""By tag or class, in styles of rich."""


def to_text(node: Node) -> list[tuple[str, str]]:
    """The tree as text for a terminal: pieces, each with a style of rich.

    Every line of a passage is marked, of one that was cut so that it shows without its strike.
    Drawings are left out, as their labels and the lines around them say the same.
    """
    pieces: list[tuple[str, str]] = []
    _print(node, "", pieces)
    return pieces


def _print(node: Node, style: str, pieces: list[tuple[str, str]]) -> None:
    if not isinstance(node, Element):
        pieces.append((_plain(node), style))
        return
    tag, *classes = node.tag.split(".")
    named = (tag, *classes)
    if tag == "figure" or "aria-hidden" in node.attributes or not (whole := _plain(node)):
        return
    style = " ".join(_STYLES[name] for name in named if name in _STYLES) or style
    before = pieces[-1][0][-1:] if pieces else "\n"
    if tag in _LINES:
        pieces += [("\n", "")] * ((before != "\n") + (tag in ("h3", "summary")))
        pieces += [(_MARKS[name], style) for name in classes if name in _MARKS][-1:]
    elif not before.isspace():
        pieces.append(("  ", ""))
    if "text" in classes:
        for line in whole.strip("\n").split("\n"):
            pieces += [("┆ " if tag == "s" else "  ", "bright_black"), (line, style), ("\n", "")]
        return
    for child in node.children:
        _print(child, style, pieces)
    if tag in _LINES and not pieces[-1][0].endswith("\n"):
        pieces.append(("\n", ""))


def _plain(node: Node) -> str:
    """What of a node is text."""
    if not isinstance(node, Element):
        return visible_text(node if isinstance(node, str) else node.text)
    text = "".join(map(_plain, node.children))
    return f"‹{text}›" if node.tag == "span.control" else text


GRADE_SIGNS = {"correct": "✓", "wrong": "✗", "truncated": "…", "failed": "!"}


def flops(value: float) -> str:
    """Two digits, `1.2e+08`; a dash where the model's size is not known."""
    return f"{value:.1e}" if isfinite(value) else "–"


def decimal(value: float) -> str:
    """Two decimals; a dash for no value."""
    return f"{value:.2f}" if isfinite(value) else "–"


def interval(value: float, low: float, high: float) -> str:
    """`0.94 (0.71–1.00)`."""
    return f"{decimal(value)} ({low:.2f}–{high:.2f})"


def verified(version: OptimizedTrajectory) -> str:
    """The success rate after a prune with its 95 % interval (Clopper-Pearson), and what it is of.

    Empty where it is not known.
    """
    trials = version.verified_rollouts
    if not trials or not isfinite(version.verified_p):
        return ""
    low, high = clopper_pearson(round(version.verified_p * trials), trials)
    return f"{interval(version.verified_p, low, high)}, {trials} fresh rollouts"


def saved(before: float, after: float) -> str:
    """What became of a length: `−78 %`; empty where it is not known."""
    if not (isfinite(before) and isfinite(after)) or before <= 0:
        return ""
    percent = round((after / before - 1) * 100)
    return f"{'+' if percent > 0 else '−' if percent else '±'}{abs(percent)} %"


def change(before: float, after: float, shown: Callable[[float], str] = "{:,}".format) -> str:
    """`356 → 80 (−78 %)`; a dash where one of them is not known."""
    if not (isfinite(before) and isfinite(after)):
        return "–"
    return f"{shown(before)} → {shown(after)} ({saved(before, after) or '–'})"


def heading(problem: Problem | None, row_id: str, *further: Node) -> Element:
    """The question, its gold answer, and which row this is."""
    if problem is None:
        return el("header", el("div.id", data(row_id), further))
    gold = problem.answer if problem.rule != "code" else ""
    return el(
        "header",
        el("div.id", data(problem.task), " · ", data(row_id), further),
        el("div.question", passage(problem.question), dir="auto"),
        el("div.gold", el("span.label", "gold answer"), " ", el("bdi", data(gold)))
        if gold
        else None,
    )


def block(text: str, head: str = "") -> Element:
    """A passage, below a head where it has one."""
    above = el("div.head", el("span.kind", head)) if head else None
    return el("div.segment", above, el("div.text", passage(text), dir="auto"))


def rows_node(names: Sequence[str], rows: Sequence[Element]) -> Element:
    """A table with these names above its columns."""
    head = el("thead", el("tr", [el("th", name, scope="col") for name in names]))
    return el("table.trial-list", head, el("tbody", rows))


def grade(value: str, reason: str = "") -> Element:
    """A grade: a sign, its word and its colour."""
    why = {"title": reason} if reason else {}
    return el(f"span.grade.{value}", f"{GRADE_SIGNS.get(value, '')} {value}", **why)


def grade_sign(value: str) -> Element:
    """The sign alone, where there is no room for the word, which it has as its name."""
    sign = GRADE_SIGNS.get(value, value)
    return el(f"span.grade.{value}", sign, title=value, role="img", aria_label=value)


def facts_node(facts: Sequence[tuple[str, Node | list[Node]]]) -> Element:
    """Names and values in a line."""
    return el(
        "div.facts",
        [el("div.fact", el("span.label", name), el("span.value", value)) for name, value in facts],
    )
