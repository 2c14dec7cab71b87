r"""LaTeX and light Markdown in texts of a run, as trees of elements.

Every character of a text stays in its tree, in order: delimiters and the source of formulas are in
elements of class `mark`, which the style sheet hides unless the raw text is shown. A formula has
its MathML beside the source. latex2mathml builds it; only tags, attributes and values of the lists
below are taken over. What cannot be read (prices, unclosed delimiters, unknown commands) stays as
it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from dto.redact import CONTROL
from dto.viewer.tree import Element, Node, el, run_text

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element as Xml

LONGEST = 2_000
"""Characters of a formula; a longer one is shown as its source."""
MOST_ELEMENTS, DEEPEST = 1_500, 60
WIDE = 60
"""A formula inside a line with more characters can be scrolled."""
CACHED = 120
"""Formulas with at most this many characters are kept, as most occur many times."""
TAGS = {
    "math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "msub", "msup",
    "msubsup", "munder", "mover", "munderover", "mtable", "mtr", "mtd", "mstyle", "mpadded",
    "menclose",
}  # fmt: skip
_LENGTH = r"[+-]?\d{0,2}(?:\.\d{1,4})?(?:em|ex|pt|px|mu)?"
ATTRIBUTES = {
    name: re.compile(values)
    for values, names in {
        "true|false": "displaystyle stretchy fence largeop movablelimits accent accentunder "
        "symmetric separator",
        rf"{_LENGTH}(?: {_LENGTH}){{0,9}}": "width height depth lspace rspace voffset minsize "
        "maxsize linethickness rowspacing columnspacing",
        r"[+-]?\d": "scriptlevel",
        r"[a-z][a-z -]{0,40}": "display mathvariant notation form columnalign columnlines rowlines",
    }.items()
    for name in names.split()
}
"""Attributes that are taken over, with the form of their values.

Colours are not: one could hide a formula, or be illegible in the dark.
"""
_DEFINES = re.compile(r"\\(?:re)?newcommand|\\[gex]?def(?![A-Za-z])|\\let(?![A-Za-z])")
"""Macros of a formula could grow without bound."""
_UNKNOWN = re.compile(r"\\[A-Za-z]")
"""What latex2mathml does not know, it copies."""
_CHARACTER = re.compile(r"&#x([0-9A-Fa-f]{1,6});")
_INVISIBLE = re.compile("[\u2061-\u2064]")
"""Operators without a picture, such as the application of a function."""

_SIGN = re.compile(r"[\\$`*#]|-[ \t]")
"""Most texts have none of these; looking for them is fast."""
_OPEN = re.compile(
    r"\\[\\$*`]|\\\(|\\\[|\\boxed(?=\{)|\\begin(?=\{)|\$\$?|`+"
    r"|^[ \t]*[-*][ \t]+(?=[^\W\d_]|[\"'(`*$\\\[])|^#{1,6}[ \t]+(?=\S)|\*\*?",
    re.MULTILINE,
)
_ENVIRONMENT = re.compile(
    r"\\begin\{((?:align|equation|gather)\*?|(?:[pbBvV]|small)?matrix|cases|array|split)\}"
)
_NAMES = {
    "align": "align*", "align*": "align*", "aligned": "split", "split": "split",
    "equation": "equation", "equation*": "equation*", "gather": "matrix", "gather*": "matrix",
    "gathered": "matrix", "array": "array", "cases": "cases", "matrix": "matrix",
    "pmatrix": "pmatrix", "bmatrix": "bmatrix", "Bmatrix": "Bmatrix", "vmatrix": "vmatrix",
    "Vmatrix": "Vmatrix", "smallmatrix": "smallmatrix",
}  # fmt: skip
"""Environments, with one that looks the same and that latex2mathml lays out, without numbers."""
_BORDER = re.compile(r"\\(begin|end)\s*\{([^{}]*)\}")
_ROW_SPACE = re.compile(r"(\\\\)\[[\d.]+(?:pt|em|ex|mm|cm)\]")
_PERCENT = re.compile(r"(?<!\\)%")
"""What a model writes is a percent sign, not a comment."""
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_DOLLAR = re.compile(r"(?<!\\)\$")
_AFTER = re.compile(r"(?:st|nd|rd|th|s)\b|(?![A-Za-z0-9])")
"""What may follow the closing dollar: no digit (a price), no letter but in `$n$th`."""
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,},? +[A-Za-z]{2,}(?![A-Za-z])")
_WORD_AND_SPACE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,} ")
_TEXT_COMMAND = re.compile(r"\\[A-Za-z]+\s*\{[^{}]*\}")
_LATEX = re.compile(r"\\[A-Za-z]|\^\{?\w|(?<![A-Za-z0-9]{2})_\{?\w")
_WORD = re.compile(r"[^\W\d_]{2}")
_ALNUM = re.compile(r"[A-Za-z0-9_*]")
_LINE = 400
"""Characters within which emphasis, inline code and a heading have to end."""


class _Piece(NamedTuple):
    """A span of a text with its kind, and the span `first:last` inside its delimiters."""

    kind: str
    start: int
    first: int
    last: int
    end: int


def marked_up(text: str) -> list[Node]:
    """Return the text with formulas and Markdown as elements; plain run text if it has none."""
    nodes = list(_nodes(text, 0)) if _SIGN.search(text) else []
    if all(not isinstance(node, Element) or node.tag == "span.control" for node in nodes):
        return run_text(text)
    return [el("span.rich", nodes)]


def answer_text(text: str) -> list[Node]:
    """Return an answer, which can be a formula without delimiters, as `marked_up` does a text."""
    if _LATEX.search(text) and not _OPEN.search(text) and (math := _kept_formula(text)):
        return [el("span.rich", el("span.math.math", _mark(text), math))]
    return marked_up(text)


def _nodes(text: str, inside: int) -> Iterator[Node]:
    """Yield the nodes of a text. `inside`: 1 in a heading, 2 in an emphasis, which has no other."""
    start = place = 0
    while (opening := _OPEN.search(text, place)) is not None:
        piece = _read(text, opening, inside)
        if piece is not None and piece.kind in ("display", "fence"):
            piece = _with_blank_lines(text, piece, start)
        node = _node(text, piece) if piece is not None else None
        if piece is None or node is None:
            place = piece.end if piece is not None else opening.end()
            continue
        if piece.start > start:
            yield from run_text(text[start : piece.start])
        yield node
        start = place = piece.end
    if start < len(text):
        yield from run_text(text[start:])


def _read(text: str, opening: re.Match[str], inside: int) -> _Piece | None:
    """Return the piece that begins with an opening; None where it is no more than characters."""
    sign, at, after = opening[0], opening.start(), opening.end()
    if sign in (r"\(", r"\["):
        kind, close = ("math", r"\)") if sign == r"\(" else ("display", r"\]")
        return _formula_piece(kind, text, at, after, text.find(close, after, after + LONGEST), 2)
    if sign == "$$":
        return _formula_piece(
            "display", text, at, after, text.find(sign, after, after + LONGEST), 2
        )
    if sign == "$":
        return _between_dollars(text, at)
    if sign == r"\boxed":
        last = _groups(text).get(after, -1)
        return _Piece("math", at, at, last, last) if last > 0 else None
    if sign == r"\begin":
        if (named := _ENVIRONMENT.match(text, at)) is None:
            return None
        close = rf"\end{{{named[1]}}}"
        last = text.find(close, after, after + LONGEST)
        end = last + len(close)
        return _Piece("display", at, at, end, end) if last > 0 else None
    if sign[0] == "`":
        return _code(text, at, after)
    if sign[0] == "*" and sign in ("*", "**"):
        return _emphasis(text, at, after) if inside < 2 else None
    if inside == 0 and sign.lstrip()[0] in "-*":
        at = text.index(sign.lstrip()[0], at)
        return _Piece("bullet", at, at, at + 1, at + 1)
    if inside == 0 and sign[0] == "#":
        end = text.find("\n", after)
        end = end if end >= 0 else len(text)
        clear = len(sign.rstrip()) > 1 or not text[after].islower()
        return _Piece("heading", at, after, end, end) if clear and end - at <= _LINE else None
    return None  # an escaped character


def _formula_piece(
    kind: str, text: str, at: int, first: int, last: int, close: int
) -> _Piece | None:
    inner = text[first:last] if last > 0 else ""
    if not inner.strip() or "\n\n" in inner.strip():
        return None
    return _Piece(kind, at, first, last, last + close)


def _between_dollars(text: str, at: int) -> _Piece | None:
    """Pandoc's rule, and stricter: prices, shell variables and prose are no formulas."""
    first = at + 1
    closing = _DOLLAR.search(text, first, first + LONGEST)
    if closing is None or (at > 0 and _ALNUM.match(text[at - 1])):
        return None
    last = closing.start()
    inner = text[first:last]
    if inner != inner.strip() or not _AFTER.match(text, last + 1):
        return None
    words = _TEXT_COMMAND.sub("", inner)
    if _PROSE.search(words) or (inner[0].isdigit() and _WORD_AND_SPACE.search(words)):
        return None
    return _formula_piece("math", text, at, first, last, 1)


@lru_cache(4)
def _groups(text: str) -> dict[int, int]:
    """Return the end of each group in braces by its start."""
    ends: dict[int, int] = {}
    starts: list[int] = []
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            starts.append(brace.start())
        elif brace[0] == "}" and starts:
            ends[starts.pop()] = brace.end()
    return ends


def _code(text: str, at: int, after: int) -> _Piece | None:
    ticks = text[at:after]
    if len(ticks) < 3:
        last = text.find(ticks, after, after + _LINE)
        inner, end = text[after:last] if last > 0 else "", last + len(ticks)
        whole = inner.strip() and "\n" not in inner and text[end : end + 1] != "`"
        return _Piece("code", at, after, last, end) if whole else None
    line = text.find("\n", after)
    last = text.find(f"\n{ticks}", line) if line >= 0 else -1
    if last < 0 or text[text.rfind("\n", 0, at) + 1 : at].strip() or "`" in text[after:line]:
        return None
    end = last + 1 + len(ticks)
    rest = text[end : text.find("\n", end) if "\n" in text[end:] else len(text)]
    return _Piece("fence", at, line + 1, max(last, line + 1), end) if not rest.strip() else None


def _emphasis(text: str, at: int, after: int) -> _Piece | None:
    """Emphasis where it is unambiguous: words, no product and no power."""
    sign = text[at:after]
    last = text.find(sign, after, after + _LINE)
    inner = text[after:last] if last > 0 else ""
    end = last + len(sign)
    if not inner.strip() or inner != inner.strip() or "\n" in inner or inner[0] == "*":
        return None
    before, behind = text[max(0, at - 1) : at], text[end : end + 1]
    if _ALNUM.match(before) or _ALNUM.match(behind):
        return None
    if sign == "**":
        return _Piece("bold", at, after, last, end)
    starts = not before or before.isspace() or before in "([\"'“‘—"
    return _Piece("italic", at, after, last, end) if starts and _WORD.search(inner) else None


def _with_blank_lines(text: str, piece: _Piece, start: int) -> _Piece:
    """Extend a piece that stands on its own lines over the line breaks around it."""
    first, end = piece.start, piece.end
    while first > start and text[first - 1] in " \t":
        first -= 1
    if first > start and text[first - 1] != "\n":
        first = piece.start
    for _ in range(2):
        first -= first > start and text[first - 1] == "\n"
    for _ in range(2):
        end += text[end : end + 1] == "\n"
    return piece._replace(start=first, end=end)


def _node(text: str, piece: _Piece) -> Element | None:
    """Build the element of a piece; None if its formula cannot be read."""
    kind, start, first, last, end = piece
    inner = text[first:last]
    before, after = _mark(text[start:first]), _mark(text[last:end])
    if kind in ("math", "display"):
        convert = _kept_formula if len(inner) <= CACHED else formula
        math = convert(inner.strip(), kind == "display")
        if math is None:
            return None
        kind = "math.wide" if kind == "math" and len(inner) > WIDE else f"math.{kind}"
        return el(f"span.{kind}", _mark(text[start:end]), math)
    if kind == "bullet":
        return el("span.bullet", _mark(inner))
    if kind in ("code", "fence"):
        return el(f"code.{kind}", before, run_text(inner) if inner else None, after)
    tag, inside = {"bold": ("b", 2), "italic": ("i.em", 2), "heading": ("b.heading", 1)}[kind]
    return el(tag, before, _nodes(inner, inside), after if last < end else None)


def _mark(text: str) -> Element:
    return el("span.mark", run_text(text))


def formula(latex: str, display: bool = False) -> Element | None:
    """Build the MathML of a formula; None if it is too long, defines macros or cannot be read."""
    if len(latex) > LONGEST or _DEFINES.search(latex) or not _balanced(latex):
        return None
    from latex2mathml.converter import Converter

    try:
        latex = _BORDER.sub(lambda border: rf"\{border[1]}{{{_NAMES[border[2]]}}}", latex)
        latex = _PERCENT.sub(r"\%", _ROW_SPACE.sub(r"\1", latex))
        tree = Converter(display="block" if display else "inline").convert_to_element(latex)
        if sum(1 for _ in tree.iter()) > MOST_ELEMENTS:
            return None
        return _taken_over(tree, DEEPEST)
    except Exception:  # its errors have no common class, and odd input raises others
        return None


def _balanced(latex: str) -> bool:
    depth = 0
    for brace in _BRACE.finditer(latex):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth < 0:
            return False
    return depth == 0


_kept_formula = lru_cache(2_048)(formula)


def _taken_over(tree: Xml, depth: int) -> Element:
    """Copy tags, attributes and texts of the lists; raises ValueError for what is in none."""
    text = _CHARACTER.sub(lambda match: chr(int(match[1], 16)), tree.text or "")
    text = _INVISIBLE.sub("", text)
    broken = tree.attrib.get("linebreak") or (tree.tail or "").strip()
    if tree.tag not in TAGS or not depth or broken or _UNKNOWN.search(text) or CONTROL.search(text):
        raise ValueError(tree.tag)
    attributes = {
        name: value
        for name, value in tree.attrib.items()
        if name in ATTRIBUTES and ATTRIBUTES[name].fullmatch(value)
    }
    children = [_taken_over(child, depth - 1) for child in tree]
    return el(tree.tag, text or None, children, **attributes)
