"""Trees of elements: one tree becomes HTML in a notebook, JSON in the page, text in a terminal.

Text from a run (texts, answers, names) is wrapped in `RunText` and always escaped. Tags, classes
and attribute names are our own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from math import isfinite
from typing import NamedTuple

from dto.records import OptimizedTrajectory, Problem
from dto.sequential import clopper_pearson


class RunText(NamedTuple):
    """Text from a run; our own labels are plain strings."""

    text: str


class Element(NamedTuple):
    """An element. `tag` is a name with classes, such as `div.segment.cut`.

    Attribute values are escaped.
    """

    tag: str
    attributes: dict[str, str]
    children: tuple[Node, ...]


Node = str | RunText | Element
Nodes = Iterable["Node | Nodes | None"]

# Invisible characters and those that change the display of others: C0 and C1 except line feed and
# tab, soft hyphen, zero-width space, line separators, bidirectional embeddings and isolates, BOM,
# surrogates. Joiners and left-to-right marks stay, since some scripts and emoji need them.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)

LONG = 10_000
"""A text with more characters than this is split into blocks."""


def el(tag: str, *children: Node | Nodes | None, **attributes: str | float) -> Element:
    """Build an element: None children are skipped, lists flattened, `_` in names becomes `-`."""
    named = {name.replace("_", "-"): str(value) for name, value in attributes.items()}
    nodes: list[Node] = []
    _flatten(children, nodes)
    return Element(tag, named, tuple(nodes))


def _flatten(children: Nodes, nodes: list[Node]) -> None:
    for child in children:
        if isinstance(child, str | RunText | Element):
            nodes.append(child)
        elif child is not None:
            _flatten(child, nodes)


def run_text(text: str) -> list[Node]:
    """Wrap text from a run; each invisible character becomes a marked element."""
    nodes: list[Node] = []
    place = 0
    for match in _CONTROL.finditer(text):
        if match.start() > place:
            nodes.append(RunText(text[place : match.start()]))
        nodes.append(el("span.control", visible(match[0]), title=f"U+{ord(match[0]):04X}"))
        place = match.end()
    return [*nodes, RunText(text[place:])] if place < len(text) or not nodes else nodes


def passage(text: str) -> list[Node]:
    """Wrap text and split long text into blocks, so that a browser lays out only visible ones."""
    if len(text) <= LONG:
        return run_text(text)
    blocks: list[Node] = []
    place = 0
    while place < len(text):
        end = place + LONG
        end = text.rfind("\n", place, end) + 1 or text.rfind(" ", place, end) + 1 or end
        blocks.append(el("div.block", run_text(text[place:end])))
        place = end
    return blocks


def visible(character: str) -> str:
    """Return the picture of a control character, such as `␛`, or its number."""
    code = ord(character)
    return chr(0x2400 + code) if code < 32 else f"U+{code:04X}"


def visible_text(text: str) -> str:
    """Replace invisible characters by `‹␛›` and the like, for plain text."""
    return _CONTROL.sub(lambda match: f"‹{visible(match[0])}›", text)


def to_html(node: Node) -> str:
    """Render the tree as HTML."""
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
"""Line prefix by class, in place of the colours and frames of the page."""
KINDS = {
    "opening": "bright_black", "understanding": "bright_green", "plan": "bright_cyan",
    "derivation": "bright_yellow", "hypothesis": "cyan", "verification": "blue",
    "alternative": "magenta", "summary": "yellow", "conclusion": "green", "loop": "red",
}  # fmt: skip
"""Kinds of segments with their terminal colours."""
_STYLES = {f"k-{kind}": colour for kind, colour in KINDS.items()} | {
    "id": "bold", "h3": "bold", "b": "bold", "kind": "bold", "s": "strike dim", "note": "yellow",
    "label": "bright_black", "count": "bright_black", "exit": "bright_black", "verdict": "italic",
    "correct": "green", "wrong": "red", "truncated": "yellow", "failed": "red",
    "leave": "bold green", "question": "default", "text": "default",
}  # fmt: skip
"""Style of rich by tag or class."""


def to_text(node: Node) -> list[tuple[str, str]]:
    """Render the tree for a terminal, as (text, style of rich) pieces.

    Every line of a passage has a mark; removed passages have their own mark, visible without the
    strike-through. Drawings are skipped, since labels and lines around them say the same.
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
    """Return the text of a node."""
    if not isinstance(node, Element):
        return visible_text(node if isinstance(node, str) else node.text)
    text = "".join(map(_plain, node.children))
    return f"‹{text}›" if node.tag == "span.control" else text


GRADE_SIGNS = {"correct": "✓", "wrong": "✗", "truncated": "…", "failed": "!"}


def flops(value: float) -> str:
    """Format as `1.2e+08`; a dash where the size of the model is unknown."""
    return f"{value:.1e}" if isfinite(value) else "–"


def decimal(value: float) -> str:
    """Format with two decimals; a dash for nan."""
    return f"{value:.2f}" if isfinite(value) else "–"


def interval(value: float, low: float, high: float) -> str:
    """Format as `0.94 (0.71–1.00)`."""
    return f"{decimal(value)} ({low:.2f}–{high:.2f})"


def verified_rate(version: OptimizedTrajectory) -> str:
    """Format the success rate after a prune, its 95 % interval (Clopper-Pearson) and the rollouts.

    Empty where the rate is unknown.
    """
    trials = version.verified_rollouts
    if not trials or not isfinite(version.verified_p):
        return ""
    low, high = clopper_pearson(round(version.verified_p * trials), trials)
    return f"{interval(version.verified_p, low, high)}, {trials} fresh rollouts"


def relative_change(before: float, after: float) -> str:
    """Format the relative change as `−78 %`; empty where it is unknown."""
    if not (isfinite(before) and isfinite(after)) or before <= 0:
        return ""
    percent = round((after / before - 1) * 100)
    return f"{'+' if percent > 0 else '−' if percent else '±'}{abs(percent)} %"


def change(before: float, after: float, text: Callable[[float], str] = "{:,}".format) -> str:
    """Format as `356 → 80 (−78 %)`; a dash where a value is unknown."""
    if not (isfinite(before) and isfinite(after)):
        return "–"
    return f"{text(before)} → {text(after)} ({relative_change(before, after) or '–'})"


def heading(problem: Problem | None, row_id: str, *further: Node) -> Element:
    """Build the header: question, gold answer and row id."""
    if problem is None:
        return el("header", el("div.id", run_text(row_id), further))
    gold = problem.answer if problem.rule != "code" else ""
    return el(
        "header",
        el("div.id", run_text(problem.task), " · ", run_text(row_id), further),
        el("div.question", passage(problem.question), dir="auto"),
        el("div.gold", el("span.label", "gold answer"), " ", el("bdi", run_text(gold)))
        if gold
        else None,
    )


def block(text: str, head: str = "") -> Element:
    """Build a passage, with an optional head."""
    above = el("div.head", el("span.kind", head)) if head else None
    return el("div.segment", above, el("div.text", passage(text), dir="auto"))


def rows_node(names: Sequence[str], rows: Sequence[Element]) -> Element:
    """Build a table with these column names."""
    head = el("thead", el("tr", [el("th", name, scope="col") for name in names]))
    return el("table.trial-list", head, el("tbody", rows))


def grade(value: str, reason: str = "") -> Element:
    """Build a grade with sign, word and colour."""
    title = {"title": reason} if reason else {}
    return el(f"span.grade.{value}", f"{GRADE_SIGNS.get(value, '')} {value}", **title)


def grade_sign(value: str) -> Element:
    """Build the sign of a grade; the word is its accessible name."""
    sign = GRADE_SIGNS.get(value, value)
    return el(f"span.grade.{value}", sign, title=value, role="img", aria_label=value)


def facts_node(facts: Sequence[tuple[str, Node | list[Node]]]) -> Element:
    """Build a line of names and values."""
    return el(
        "div.facts",
        [el("div.fact", el("span.label", name), el("span.value", value)) for name, value in facts],
    )
