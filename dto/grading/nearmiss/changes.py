"""Small changes of an answer's text, by kind; `reading` says whether they mean another answer."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, get_args

from dto.grading.nearmiss.reading import read
from dto.grading.nearmiss.tokens import RELATIONS, Gold, Token
from dto.grading.nearmiss.values import PLURALS, UNITS, UnreadableError, measure

NearMissKind = Literal[
    "sign", "digit", "scale", "element", "order", "bracket", "letter", "unit", "base", "exponent",
    "fraction", "term", "function", "relation", "plus_minus", "percent", "grouping",
]  # fmt: skip
KINDS: tuple[NearMissKind, ...] = get_args(NearMissKind)

_PAIRS = {
    r"\sin": r"\cos", r"\cos": r"\sin", r"\tan": r"\cot", r"\cot": r"\tan", r"\sec": r"\csc",
    r"\csc": r"\sec", r"\arcsin": r"\arccos", r"\arccos": r"\arcsin", r"\arctan": r"\arcsin",
    r"\ln": r"\log", r"\log": r"\ln", r"\sinh": r"\cosh", r"\cosh": r"\sinh",
}  # fmt: skip
_RELATED = {
    "<": (r"\le ", ">"), ">": (r"\ge ", "<"), r"\le": ("<", r"\ge "), r"\ge": (">", r"\le "),
    "=": (r"\ne ",), r"\ne": ("=",), r"\cup": (r"\cap ",), r"\cap": (r"\cup ",),
}  # fmt: skip
_NEUTRAL, _LIKE_UNITS = "abnpqruvwyz", "mgsthcL"
_ANY_CONSTANT = re.compile(r"\+\s*[CK]\b|\\in\s*\\(?:mathbb|Z)|\\mathbb")
_DUMMY = re.compile(r"\\in(?![A-Za-z])|[<>]|\\[lg]eq?(?![A-Za-z])|\\\{|≤|≥|∈")
_FUNCTION = re.compile(r"^\s*\$?\s*[a-zA-Z]\s*(?:\\left)?\(\s*[a-zA-Z]\s*(?:\\right)?\)\s*=")
_TEXT = re.compile(r"(\\\w+\s*\{\s*)([^{}]*?)(\s*\}\Z)")
_CURRENCIES = {r"\$": ("€", "¥"), "€": (r"\$", "¥"), "¥": ("€", r"\$")}


def _sign(gold: Gold) -> Iterator[str]:
    starts = {"(", "[", "{", r"\{", ",", "&", r"\\", r"\cup", *RELATIONS}
    for index, token in enumerate(gold.tokens):
        before = gold.tokens[index - 1].text if index else ","
        begins = before in starts or before.startswith(r"\begin")
        if token.text in "+-" and not begins:
            yield gold.replaced(token, "-" if token.text == "+" else "+")
        elif token.text == "-":
            yield gold.replaced(token, "")
        elif begins and (
            token.kind in ("number", "letter")
            or token.text in (r"\frac", r"\sqrt", r"\pi", r"\infty", r"\$")
            or token.text in _PAIRS
        ):
            yield gold.put(token.start, token.start, "-")


def _digit(gold: Gold) -> Iterator[str]:
    for token in gold.numbers():
        written = gold.text[token.start : token.end]
        places = [place for place, character in enumerate(written) if character.isdigit()]
        grouped = bool(re.search(r"[^\d.]", written))
        for place in places:
            digit = int(written[place])
            for other in {(digit + 1) % 10, (digit - 1) % 10} - ({0} if place == 0 else set()):
                yield gold.replaced(token, f"{written[:place]}{other}{written[place + 1 :]}")
            if not grouped:
                yield gold.replaced(token, written[:place] + written[place:][:1] + written[place:])
                dropped = written[:place] + written[place + 1 :]
                if dropped[:1].isdigit() and dropped[:2] != "0" and not dropped.endswith("."):
                    yield gold.replaced(token, dropped)
        for one, two in pairwise(places):
            if one or written[two] != "0":
                exchanged = list(written)
                exchanged[one], exchanged[two] = exchanged[two], exchanged[one]
                yield gold.replaced(token, "".join(exchanged))


def _scale(gold: Gold) -> Iterator[str]:
    for token in gold.numbers():
        written = gold.text[token.start : token.end]
        if re.fullmatch(r"\d+", written):
            for other in (f"{written}0", f"{written}00"):
                yield gold.replaced(token, other)
            if len(gold.tokens) == 1:
                filled = written.zfill(3)
                yield gold.replaced(token, f"{filled[:-1].lstrip('0') or '0'}.{filled[-1]}")
                yield gold.replaced(token, f"{filled[:-2].lstrip('0') or '0'}.{filled[-2:]}")
        elif re.fullmatch(r"\d*\.\d+", written):
            whole, _, behind = written.partition(".")
            yield gold.replaced(token, (whole + behind).lstrip("0"))
            yield gold.replaced(token, f"{whole}{behind[0]}.{behind[1:] or '0'}".lstrip("0"))
        elif re.search(r"[^\d.]\d{3}\Z", written):
            shorter = re.sub(r"[^\d.]+\d{3}\Z", "", written)
            yield gold.replaced(token, shorter)


def _element(gold: Gold) -> Iterator[str]:
    for opening, first, end in gold.groups():
        if opening == "{":
            continue
        separators = ([","], [r"\cup"]) if opening == "" else ([","],)
        for signs in separators:
            pieces = gold.pieces(first, end, signs)
            if len(pieces) < 2 or any(begin == stop for begin, stop in pieces):
                continue
            for number, (begin, stop) in enumerate(pieces):
                ends = (begin, stop) if number == 0 else (begin - 1, stop - 1)
                yield gold.put(*gold.span(*ends), "")
            if signs == [","] and (opening == r"\{" or not opening):
                place = gold.tokens[end - 1].end
                yield gold.put(place, place, ", 97")
    for first, end in _matrices(gold):
        rows = gold.pieces(first, end, [r"\\"])
        if len(rows) > 1:
            for number, (begin, stop) in enumerate(rows):
                ends = (begin, stop) if number == 0 else (begin - 1, stop - 1)
                yield gold.put(*gold.span(*ends), "")


def _matrices(gold: Gold) -> Iterator[tuple[int, int]]:
    begins = [i for i, token in enumerate(gold.tokens) if token.text.startswith(r"\begin")]
    ends = [i for i, token in enumerate(gold.tokens) if token.text.startswith(r"\end")]
    for begin, end in zip(begins, ends, strict=False):
        yield begin + 1, end


def _order(gold: Gold) -> Iterator[str]:
    for opening, first, end in gold.groups():
        if opening in ("(", "["):
            yield from _exchanged(gold, gold.pieces(first, end, [","]))
    for first, end in _matrices(gold):
        cells = [
            cell
            for begin, stop in gold.pieces(first, end, [r"\\"])
            for cell in gold.pieces(begin, stop, ["&"])
        ]
        yield from _exchanged(gold, cells)


def _exchanged(gold: Gold, pieces: Sequence[tuple[int, int]]) -> Iterator[str]:
    if any(begin == stop for begin, stop in pieces):
        return
    for number, one in enumerate(pieces):
        for other in pieces[number + 1 :]:
            (a, b), (c, d) = (gold.span(begin, stop - 1) for begin, stop in (one, other))
            text = gold.text
            yield text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:]


def _bracket(gold: Gold) -> Iterator[str]:
    for opening, closing in gold.closing.items():
        begin, end = gold.tokens[opening], gold.tokens[closing]
        pieces = gold.pieces(opening + 1, closing, [","])
        if begin.text not in ("(", "[") or len(pieces) != 2:
            continue
        ends = [gold.text[slice(*gold.span(first, stop - 1))] for first, stop in pieces]
        if not _ascending(*ends):
            continue
        if "infty" not in ends[0] and "∞" not in ends[0]:
            yield gold.replaced(begin, "[" if begin.text == "(" else "(")
        if "infty" not in ends[1] and "∞" not in ends[1]:
            yield gold.replaced(end, "]" if end.text == ")" else ")")


def _ascending(lower: str, upper: str) -> bool:
    """Whether a pair may be an interval."""
    try:
        values = [complex(each) for each in _numbers(lower, upper)]
    except (UnreadableError, OverflowError):
        return False
    return all(value.imag == 0 for value in values) and values[0].real < values[1].real


def _numbers(*texts: str) -> list[complex]:
    values = [read(text) for text in texts]
    if any(value.shape != "number" for value in values):
        raise UnreadableError
    return [complex(value.number[0]) for value in values]


def _letter(gold: Gold) -> Iterator[str]:
    text = gold.text
    letters = [token for token in gold.tokens if token.kind == "letter"]
    if _ANY_CONSTANT.search(text):
        return
    names = {token.text for token in letters}
    dummy = bool(_DUMMY.search(text)) and len(names) == 1
    for name in sorted(names):
        places = [token for token in letters if token.text == name]
        if name in ("e", "i", "d") or dummy or _FUNCTION.match(text):
            continue
        for others in (_NEUTRAL, _LIKE_UNITS):
            free = [other for other in others if other not in text and other not in names]
            if free:
                other = random.Random(f"{name} {text}").choice(free)
                yield _renamed(text, places, other)
                if len(places) > 1:
                    yield _renamed(text, places[:1], other)
        if re.search("'", name):
            yield _renamed(text, places, name.removesuffix("'"))
    for index, token in enumerate(gold.tokens):
        # A factor is left out: 6c is not 6.
        last = _last_of_power(gold, index)
        before = gold.tokens[index - 1] if index else None
        if token.kind == "letter" and before and last is not None and not dummy and (
            before.kind in ("number", "letter") or before.text in (")", r"\cdot", "}")
        ):  # fmt: skip
            begin = before.start if before.text == r"\cdot" else token.start
            yield gold.put(begin, gold.tokens[last].end, "")


def _renamed(text: str, places: Sequence[Token], other: str) -> str:
    for token in reversed(places):
        length = len(token.text.rstrip("'"))
        tail = text[token.start + length : token.end] if "'" not in other else ""
        text = text[: token.start] + other + tail + text[token.end :]
    return text


def _last_of_power(gold: Gold, index: int) -> int | None:
    """The last token of a factor with its exponent."""
    if index + 1 >= len(gold.tokens) or gold.tokens[index + 1].text != "^":
        return index
    exponent = gold.argument(index + 2)
    return None if exponent is None else exponent[1]


def _unit(gold: Gold) -> Iterator[str]:
    for index, token in enumerate(gold.tokens):
        for other in _CURRENCIES.get(token.text, ()):
            yield gold.replaced(token, other)
        if token.text == "°" and index == len(gold.tokens) - 1:
            yield gold.replaced(token, r"\text{ radians}")
        if token.kind != "text":
            continue
        written = gold.text[token.start : token.end]
        match = _TEXT.fullmatch(written)
        before, word, after = match.groups() if match else ("", written, "")
        known = measure(word.strip(" ."))
        if known is None:
            continue
        plural = word in PLURALS or (len(word) > 2 and word.endswith("s"))
        for sizes in UNITS.values():
            for other in sizes:
                if other.isascii() == word.isascii() and (len(other) > 2) == (len(word) > 2):
                    many = {one: two for two, one in PLURALS.items()}.get(other, f"{other}s")
                    yield gold.replaced(token, before + (many if plural else other) + after)
        if index + 1 < len(gold.tokens) and gold.tokens[index + 1].text == "^":
            exponent = gold.argument(index + 2)
            if exponent:
                begin, end = gold.span(index + 1, exponent[1])
                yield gold.put(begin, end, "")
                yield gold.put(begin, end, "^3" if gold.inner(exponent) == "2" else "^2")
        else:
            yield gold.put(token.end, token.end, "^2")


def _base(gold: Gold) -> Iterator[str]:
    for index, token in enumerate(gold.tokens):
        if token.text != "_" or not index or gold.tokens[index - 1].kind != "number":
            continue
        argument = gold.argument(index + 1)
        inner = gold.inner(argument) if argument else ""
        if argument and inner.isdigit():
            for other in {int(inner) + 1, int(inner) - 1, int(inner) + 3} - {0, 1}:
                new = str(other) if len(str(other)) == 1 else f"{{{other}}}"
                braced = gold.tokens[argument[0]].text == "{"
                yield gold.put(*gold.span(*argument), f"{{{other}}}" if braced else new)


def _exponent(gold: Gold) -> Iterator[str]:
    if re.search(r"=\s*0\b|\b0\s*=", gold.text):
        return  # x^2 = 0 says what x = 0 says
    for index, token in enumerate(gold.tokens):
        argument = gold.argument(index + 1) if token.text == "^" else None
        if argument is None or (index and gold.tokens[index - 1].kind == "text"):
            continue
        begin, end = gold.span(index, argument[1])
        yield gold.put(begin, end, "")
        inner = gold.inner(argument)
        before = gold.tokens[index - 1] if index else None
        if before and not (before.text == ")" and not inner.isdigit()):
            joined = inner if before.kind == "number" else f"{inner}"
            if not inner.startswith("-"):
                yield gold.put(begin, end, joined)
        if re.fullmatch(r"\d+", inner):
            yield gold.put(begin, end, f"^{{{int(inner) + 1}}}")


def _fraction(gold: Gold) -> Iterator[str]:
    for index, token in enumerate(gold.tokens):
        if token.text == "/" and index and index + 1 < len(gold.tokens):
            one, two = gold.tokens[index - 1], gold.tokens[index + 1]
            if one.kind in ("number", "letter") and two.kind in ("number", "letter"):
                a, b = gold.text[one.start : one.end], gold.text[two.start : two.end]
                for other in (f"{b}/{a}", a, b, f"{a}{b}"):
                    yield gold.put(one.start, two.end, other)
        if token.text != r"\frac":
            continue
        parts = _parts(gold, index)
        if parts is None:
            continue
        (above, below), last = parts
        begin, end = token.start, last
        command = re.match(r"\\[dtc]?frac", gold.text[begin:])
        name = command[0] if command else r"\frac"
        yield gold.put(begin, end, f"{name}{{{below}}}{{{above}}}")
        simple = re.compile(r"[\w\\]+")
        if len(gold.tokens) == index + 7 or (simple.fullmatch(above) and simple.fullmatch(below)):
            if not (index and gold.tokens[index - 1].kind == "number"):
                yield gold.put(begin, end, above)
                yield gold.put(begin, end, below)
            if above.isdigit() and below.isdigit():
                yield gold.put(begin, end, f"{above}{below}")


def _parts(gold: Gold, index: int) -> tuple[tuple[str, str], int] | None:
    r"""Numerator and denominator of a `\frac`, and the offset of its end; `\frac43` too."""
    first = gold.argument(index + 1)
    if first is None:
        return None
    begin, end = gold.span(*first)
    written = gold.text[begin:end]
    if gold.tokens[first[0]].kind == "number" and len(written) > 1:
        return ((written[0], written[1]), begin + 2) if written.isdigit() else None
    second = gold.argument(first[1] + 1)
    if second is None:
        return None
    below = gold.inner(second)
    if gold.tokens[second[0]].kind == "number":
        begin, _ = gold.span(*second)
        return (gold.inner(first), below[:1]), begin + 1
    return (gold.inner(first), below), gold.span(*second)[1]


def _term(gold: Gold) -> Iterator[str]:
    for _, first, end in gold.groups():
        pieces = gold.pieces(first, end, ["+", "-"])
        if end - first < 3 or len(pieces) < 2:
            continue
        for number, (begin, stop) in enumerate(pieces):
            inside = {token.text for token in gold.tokens[begin:stop]}
            if begin == stop or inside & {",", "&", r"\\", r"\cup", r"\in", *RELATIONS}:
                continue
            if begin > first and pieces[number - 1][1] == begin - 1:
                yield gold.put(*gold.span(begin - 1, stop - 1), "")
            elif number == 0 and stop < end and gold.tokens[stop].text == "+":
                yield gold.put(*gold.span(begin, stop), "")


def _function(gold: Gold) -> Iterator[str]:
    for index, token in enumerate(gold.tokens):
        if token.text in _PAIRS:
            other = _PAIRS[token.text]
            plain = not gold.text[token.start : token.end].startswith("\\")
            yield gold.replaced(token, other[1:] if plain else other)
        if token.text == r"\sqrt":
            argument = gold.argument(index + 1)
            written = gold.text[token.start : token.end]
            if argument and written == r"\sqrt":
                inner = gold.inner(argument)
                if not index or gold.tokens[index - 1].kind != "number":
                    yield gold.put(token.start, gold.tokens[argument[1]].end, inner)
                else:
                    product = rf"\cdot {inner}"
                    yield gold.put(token.start, gold.tokens[argument[1]].end, product)
                cube = rf"\sqrt[3]{{{inner}}}"
                if gold.tokens[index + 1].text == "{":
                    yield gold.put(token.start, gold.tokens[argument[1]].end, cube)
        if token.text == r"\pi":
            behind = index and gold.tokens[index - 1].kind == "number"
            yield gold.replaced(token, "" if behind else "1")


def _relation(gold: Gold) -> Iterator[str]:
    chained = sum(token.text in RELATIONS for token in gold.tokens) > 1
    for token in gold.tokens:
        for number, other in enumerate(_RELATED.get(token.text, ())):
            if not (chained and (number or token.text == "=")):
                yield gold.replaced(token, other)


def _plus_minus(gold: Gold) -> Iterator[str]:
    for token in gold.tokens:
        if token.text == r"\pm":
            yield gold.replaced(token, "+")
            yield gold.replaced(token, "-")


def _percent(gold: Gold) -> Iterator[str]:
    for token in gold.tokens:
        if token.text == "%":
            yield gold.replaced(token, "")


def _grouping(gold: Gold) -> Iterator[str]:
    """Parentheses are lost."""
    for opening, closing in gold.closing.items():
        if gold.tokens[opening].text == "(" and gold.tokens[closing].text == ")":
            begin, end = gold.tokens[opening], gold.tokens[closing]
            separators = [",", *RELATIONS]
            if len(gold.pieces(opening + 1, closing, separators)) == 1 and opening + 2 < closing:
                kept = gold.text[begin.end : end.start]
                kept = re.sub(r"\\(?:left|right)\s*\Z", "", kept)
                before = re.sub(r"\\left\s*\Z", "", gold.text[: begin.start])
                if before[-1:].isalpha() and kept[:1].isalnum():
                    continue  # sin(pi) is no sinpi
                yield f"{before}{kept}{gold.text[end.end :]}"


CHANGES: dict[NearMissKind, Callable[[Gold], Iterator[str]]] = {
    "sign": _sign, "digit": _digit, "scale": _scale, "element": _element, "order": _order,
    "bracket": _bracket, "letter": _letter, "unit": _unit, "base": _base, "exponent": _exponent,
    "fraction": _fraction, "term": _term, "function": _function, "relation": _relation,
    "plus_minus": _plus_minus, "percent": _percent, "grouping": _grouping,
}  # fmt: skip
