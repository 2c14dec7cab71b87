"""Elements as plain data: one tree, read by the HTML of a notebook and by the page's script.

What comes from a run (texts, answers, names) stands in `Data`, and is only ever escaped text; tags,
classes and attribute names are ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import NamedTuple


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

_C0 = (
    "NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "HT", "LF", "VT", "FF", "CR",
    "SO", "SI", "DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC",
    "FS", "GS", "RS", "US",
)  # fmt: skip


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
    """A control character by its name in ASCII, `ESC`, or by its number."""
    code = ord(character)
    if code < len(_C0):
        return _C0[code]
    return "DEL" if code == 0x7F else f"U+{code:04X}"


def visible_text(text: str) -> str:
    """Text where there are no marks: control characters stand as `‹ESC›`."""
    return _CONTROL.sub(lambda match: f"‹{visible(match[0])}›", text)


def to_html(node: Node) -> str:
    """The tree as HTML."""
    parts: list[str] = []
    _write(node, parts)
    return "".join(parts)


def _write(node: Node, parts: list[str]) -> None:
    if isinstance(node, str):
        parts.append(escape(node))
        return
    if isinstance(node, Data):
        parts.append(escape(node.text))
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
