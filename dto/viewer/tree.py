"""Trees of elements: one tree becomes HTML in a notebook, JSON in the page, text in a terminal.

Text from a run (texts, answers, names) is wrapped in `RunText` and always escaped. Tags, classes
and attribute names are our own.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import NamedTuple

from dto.redact import CONTROL, visible, visible_text


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
    for match in CONTROL.finditer(text):
        if match.start() > place:
            nodes.append(RunText(text[place : match.start()]))
        nodes.append(el("span.control", visible(match[0]), title=f"U+{ord(match[0]):04X}"))
        place = match.end()
    return [*nodes, RunText(text[place:])] if place < len(text) or not nodes else nodes


def source(node: Node) -> str:
    """Return the run text of a tree, without formulas beside their source and without labels."""
    if isinstance(node, str):
        return ""
    if isinstance(node, RunText):
        return node.text
    return "" if node.tag == "math" else "".join(map(source, node.children))


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
    if node.tag == "span.rich":
        pieces.append((whole, style))
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
    if node.tag == "math":  # its source stands beside it
        return ""
    text = "".join(map(_plain, node.children))
    return f"‹{text}›" if node.tag == "span.control" else text
