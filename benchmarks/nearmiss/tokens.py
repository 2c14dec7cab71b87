"""Pieces of an answer, with their places in its text. For `benchmarks.nearmiss.reading`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.nearmiss.values import UnreadableError, measure

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


class Gold:
    """A gold answer and its tokens: the helper of all changes."""

    def __init__(self, text: str, found: Sequence[Token]) -> None:
        self.text, self.tokens = text, found
        self.closing: dict[int, int] = {}  # index of each opening bracket's closing one
        opened: list[int] = []
        for index, token in enumerate(found):
            if token.text in OPENING:
                opened.append(index)
            elif opened and token.text in OPENING[found[opened[-1]].text]:
                self.closing[opened.pop()] = index

    def numbers(self) -> Iterator[Token]:
        """Numbers that are no bases of numerals and no exponents of units."""
        for index, token in enumerate(self.tokens):
            first = index - (index > 0 and self.tokens[index - 1].text == "{")
            sign = self.tokens[first - 1].text if first else ""
            of_unit = sign == "^" and first > 1 and self.tokens[first - 2].kind == "text"
            if token.kind == "number" and sign != "_" and not of_unit:
                yield token

    def put(self, begin: int, end: int, replacement: str) -> str:
        """The text with `replacement` in place of characters begin to end.

        A letter is kept apart from a command before it.
        """
        before, after = self.text[:begin], self.text[end:]
        if re.search(r"\\[A-Za-z]+\Z", before) and (replacement or after)[:1].isalpha():
            before += " "
        if re.search(r"\\[A-Za-z]+\Z", replacement) and after[:1].isalpha():
            replacement += " "
        return f"{before}{replacement}{after}"

    def replaced(self, token: Token, replacement: str) -> str:
        """The text with `replacement` in place of a token."""
        return self.put(token.start, token.end, replacement)

    def argument(self, index: int) -> tuple[int, int] | None:
        """Indices of the first and the last token of an argument that begins at `index`."""
        if index >= len(self.tokens):
            return None
        if self.tokens[index].text == "{":
            return (index, self.closing[index]) if index in self.closing else None
        if self.tokens[index].text == "-":
            behind = self.argument(index + 1)
            return (index, behind[1]) if behind else None
        return index, index

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Offsets from the first token's start to the last one's end."""
        return self.tokens[first].start, self.tokens[last].end

    def inner(self, argument: tuple[int, int]) -> str:
        """The text of an argument without its braces."""
        begin, end = self.span(*argument)
        piece = self.text[begin:end]
        return piece[1:-1] if piece.startswith("{") else piece

    def groups(self) -> Iterator[tuple[str, int, int]]:
        """Opening bracket, first index and end index of what stands in it; the whole first."""
        yield "", 0, len(self.tokens)
        for opening, closing in self.closing.items():
            yield self.tokens[opening].text, opening + 1, closing

    def pieces(self, first: int, end: int, separators: Sequence[str]) -> list[tuple[int, int]]:
        """Ranges of indices between separators that stand in no further bracket."""
        cut, begin, index = [], first, first
        while index < end:
            if self.tokens[index].text in separators:
                cut.append((begin, index))
                begin = index + 1
            index = self.closing.get(index, index) + 1
        return [*cut, (begin, end)]
