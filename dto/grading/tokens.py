"""Pieces of an answer, with their places in its text. For `dto.grading.reading`."""

from __future__ import annotations

import re
from typing import NamedTuple

from dto.grading.values import UnreadableError, measure

MOST_TOKENS = 400


class Token(NamedTuple):
    """A piece of an answer; `start` and `end` are offsets into it.

    Kinds: number, letter (Greek ones too; with subscript and primes), command, text (in text mode,
    or Chinese), symbol.
    """

    kind: str
    text: str
    start: int
    end: int


_SPACE = re.compile(
    r"(?:\s|\\[,;:! ]"
    r"|\\(?:left|right|displaystyle|limits|[bB]igg?[lr]?|q?quad|thinspace)(?![A-Za-z])|~|(?<!\\)\$)+"
)
_SEPARATED = r"\d{1,3}(?:(?:\{,\}|,\\!\s*|\\[,!]\s*|%s)\d{3})+(?!\d)(?:\.\d+)?"
_OUTSIDE = _SEPARATED % "[, \u2009\u202f]"
_TOKEN = re.compile(
    rf"(?P<number>{_OUTSIDE}|\d*\.\d*\\overline\s*\{{\d+\}}"
    r"|\d+(?:\.\d+)?[eE][+-]?\d+(?!\w)|\d+(?:\.\d+)?|\.\d+)"
    r"|(?P<text>\\(?:text|mbox|hbox|mathrm|textbf|textrm|textit|textnormal)\s*\{[^{}]*\}"
    r"|[\u4e00-\u9fff]+)"
    r"|(?P<degree>\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])|°)"
    r"|(?P<command>\\(?:begin|end)\s*\{[a-zA-Z*]+\}|\\[A-Za-z]+|\\\\|\\[{}%$|]"
    r"|(?:pi|sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp)(?![A-Za-z]))"
    r"|(?P<letter>[A-Za-z](?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9+-]+\}))?'*)"
    r"|(?P<symbol>\*\*|<=|>=|!=|[^\s])"
)
_UNIT_WORD = re.compile(r"(?P<text>[A-Za-z]+(?:/[A-Za-z]+)?)(?=\s*(?:\^\s*\{?[23]\}?)?\s*\$?\Z)")
# No products of letters.
_WORD = re.compile(
    r"[A-Za-z]{4,}|(?:abs|arg|deg|det|dim|gcd|inf|lcm|lim|max|min|mod|sgn|sup)(?![A-Za-z])"
)
_IN_BRACKETS = re.compile(rf"{_SEPARATED % r'(?!)'}|\d+(?:\.\d+)?|\.\d+")
_CHARACTERS = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | str.maketrans(
    "−–，。、√π∞∪∩≤≥≠×·±", "--,.,√π∞∪∩≤≥≠×·±"
)
_SAME = {
    "π": r"\pi", "pi": r"\pi", "∞": r"\infty", "∪": r"\cup", "∩": r"\cap", "≤": r"\le", "≥": r"\ge",
    "≠": r"\ne", "×": r"\cdot", "·": r"\cdot", "*": r"\cdot", r"\times": r"\cdot", "±": r"\pm",
    "√": r"\sqrt", "**": "^", "<=": r"\le", ">=": r"\ge", "!=": r"\ne", r"\leq": r"\le",
    r"\geq": r"\ge", r"\leqslant": r"\le", r"\geqslant": r"\ge", r"\neq": r"\ne", r"\lt": "<",
    r"\gt": ">", r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\%": "%",
    r"\div": "/", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\lbrace": r"\{",
    r"\rbrace": r"\}", r"\varnothing": r"\emptyset", "∅": r"\emptyset",
}  # fmt: skip
_PLAIN_NAMES = {"sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp"}
_GREEK = re.compile(
    r"\\(?:alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|kappa|lambda|mu|nu|xi"
    r"|rho|sigma|tau|phi|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega|ell)"
)
OPENING = {"(": ")]", "[": ")]", "{": "}", r"\{": (r"\}",)}
RELATIONS = ("=", "<", ">", r"\le", r"\ge", r"\ne")


def tokens(text: str) -> tuple[Token, ...]:
    """The pieces of an answer, without white space and LaTeX that changes nothing.

    A comma groups thousands at the outermost level only: `(1,234)` is a point.
    """
    mapped = text.translate(_CHARACTERS)
    found: list[Token] = []
    depth = place = 0
    while place < len(mapped):
        space = _SPACE.match(mapped, place)
        if space:
            place = space.end()
            continue
        match = _TOKEN.match(mapped, place)
        if depth and match and match.lastgroup == "number":
            match = _IN_BRACKETS.match(mapped, place)
        if match is None or len(found) > MOST_TOKENS:
            raise UnreadableError
        if match.lastgroup == "letter" and found and found[-1].kind == "number":
            match = _unit_behind(mapped, place) or match
        if match.lastgroup == "letter" and _WORD.match(mapped, place):
            raise UnreadableError
        kind, piece = match.lastgroup or "number", match[0]
        piece = _SAME.get(piece, f"\\{piece}" if piece in _PLAIN_NAMES else piece)
        if kind == "degree":
            kind, piece = "symbol", "°"
        elif _GREEK.fullmatch(piece):
            kind = "letter"
        depth += (piece in ("(", "[", r"\{")) - (piece in (")", "]", r"\}"))
        found.append(Token(kind, piece, match.start(), match.end()))
        place = match.end()
    return tuple(found)


def _unit_behind(text: str, place: int) -> re.Match[str] | None:
    """A unit without text mode, at the end of an answer; one letter only behind a space, but m."""
    match = _UNIT_WORD.match(text, place)
    if match is None or (
        match["text"] != "percent" and None in map(measure, match["text"].split("/"))
    ):
        return None
    return (
        match if match["text"] == "m" or len(match["text"]) > 1 or text[place - 1] == " " else None
    )
