r"""Near misses of a gold answer: small changes that make another answer by how they are made.

A grader that takes one of them for right is too lax. They are made of answers whose whole text has
one of these forms, and of no others, for a change that may mean the same would be a false alarm:

- a sum of terms without a zero in it, `-\frac{3\sqrt{2}}{5} + x^2`, or 0 or a decimal number, with
  or without `x =` before it and a unit behind it;
- a list, set, tuple or interval of such sums whose values all differ at one point, and a union of
  intervals that lie apart;
- a numeral in a base, words, and the letter of an option.

In such a sum one whole numeral, the leading sign or every one of a letter can change, and its value
does too. Not changed are letters that stand for any number (`+ C`, `k\pi`), decimal numbers by less
than a ten thousandth, and the unit of 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

GoldKind = Literal["number", "words", "mathematics", "letter", "program"]
NearMissKind = Literal["sign", "digit", "element", "bracket", "letter", "unit", "base"]
MOST = 3  # of each kind, for one gold answer
LONGEST = 200  # characters of a gold answer that is changed
DECIMAL_DIGITS = 4

_NUMERAL = r"(?:[1-9]\d{0,2}(?:,(?:\\!)?\s?\d{3})+(?!\d)|[1-9]\d*)"
_FACTOR = (
    rf"\\sqrt\s*\{{(?P<root>{_NUMERAL})\}}|(?P<pi>\\pi(?![A-Za-z]))"
    r"|(?P<letter>(?!i\^)[A-Za-z])(?:\^\{?(?P<power>[1-9])(?!\d)\}?)?"
)
_FACTORS = re.compile(rf"(?P<number>{_NUMERAL})|{_FACTOR}")
_UNNAMED = re.sub(r"\?P<\w+>", "?:", _FACTOR)
_PRODUCT = rf"(?:{_NUMERAL}\s*(?:(?:{_UNNAMED})\s*)*|(?:(?:{_UNNAMED})\s*)+)"
_TERM = re.compile(
    rf"\s*(?P<sign>[+-]?)\s*(?:\\[dt]?frac\s*\{{(?P<over>{_PRODUCT})\}}\s*\{{(?P<under>{_PRODUCT})\}}"
    rf"|(?P<top>{_NUMERAL})\s*/\s*(?P<bottom>{_NUMERAL})|(?P<plain>{_PRODUCT}))\s*"
)
_NO_PRODUCT = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4}")  # of letters: a word
_ALONE = re.compile(r"[+-]?\s*(?:0|\d*\.\d+)")
_INFINITE = {r"\infty": math.inf, r"+\infty": math.inf, r"-\infty": -math.inf}
_ANY = re.compile(r"(?<![A-Za-z\\])[CKk](?![A-Za-z])|\\mathbb|\\pm")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_LETTER = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")
_OPTION = re.compile(r"((?:\\text\s*\{)?\s*\(?)([A-Z])(\)?\.?\s*\}?)")
_IN_BASE = re.compile(r"([1-9]\d+_\{?)([2-9]|[1-9]\d)(\}?)")
_BRACKETED = re.compile(
    r"(?P<left>(?:\\left\s*)?)(?P<open>[(\[]|\\\{)(?P<inside>[^()\[\]]+?)"
    r"(?P<right>(?:\\right\s*)?)(?P<close>[)\]]|\\\})"
)
_SIZES = {
    "mm": "cm", "cm": "km", "km": "cm", "m": "km", "meters": "kilometers", "inches": "feet",
    "feet": "inches", "miles": "feet", "g": "kg", "kg": "g", "grams": "kilograms",
    "pounds": "ounces", "ounces": "pounds", "seconds": "hours", "minutes": "hours",
    "hours": "minutes", "hour": "minute", "days": "hours", "weeks": "days", "years": "days",
    "cents": "dollars", "dollars": "cents", "degrees": "radians", "radians": "degrees",
}  # fmt: skip
_AROUND = re.compile(
    r"(?P<before>\$?\s*(?:[A-Za-z]\s*(?:=|\\in(?![A-Za-z]))\s*)?(?:\\\$\s*)?)(?P<body>.+?)"
    r"(?P<unit>\s*\\(?:text|mbox|mathrm|textrm)\s*\{[^{}]*\}(?:\s*\^\s*\{?[23]\}?)?"
    rf"|\s+(?:{'|'.join(word for word in _SIZES if len(word) > 1)})"
    r"|\s*\\?%|\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})|)(?P<after>\s*\$?)",
    re.DOTALL,
)
_Changes = Iterator[tuple[NearMissKind, str]]


class NearMiss(NamedTuple):
    """An answer that is almost the gold answer, and how it was changed."""

    kind: NearMissKind
    answer: str


def near_misses(gold: str, kind: GoldKind) -> tuple[NearMiss, ...]:
    """At most `MOST` near misses of each kind, all different, always the same for a gold answer.

    `kind`: what the gold answer is, as `dto.tasks.validate` says. Programs have none.
    """
    gold = gold.strip()
    if kind == "program" or not gold or len(gold) > LONGEST:
        return ()
    count: Counter[NearMissKind] = Counter()
    made: dict[str, NearMiss] = {}
    for changed, answer in _changes(gold, kind):
        if count[changed] < MOST and answer not in made:
            count[changed] += 1
            made[answer] = NearMiss(changed, answer)
    return tuple(made.values())


def _changes(gold: str, kind: GoldKind) -> _Changes:
    if kind == "words":
        if words := sorted(_WORD.finditer(gold), key=lambda match: len(match[0])):
            end = words[-1].end()
            yield "letter", f"{gold[: end - 1]}{_unused(gold, 'qxzj')}{gold[end:]}"
    elif option := (_OPTION.fullmatch(gold) if kind == "letter" or "\\text" in gold else None):
        for letter in "ABCD".replace(option[2], ""):
            yield "letter", f"{option[1]}{letter}{option[3]}"
    elif numeral := _IN_BASE.fullmatch(gold):
        base = int(numeral[2]) + 1
        base += base == 10  # that of a numeral that names none
        yield "base", f"{numeral[1]}{base}{numeral[3]}"
    elif around := None if _ANY.search(gold) else _AROUND.fullmatch(gold):
        before, body, unit, after = around.groups()
        for changed, answer in _body_changes(body):
            yield changed, f"{before}{answer}{unit}{after}"
        for other in _units(unit) if _value(body) else ():
            yield "unit", f"{before}{body}{other}{after}"


def _units(unit: str) -> Iterator[str]:
    if r"\circ" in unit:
        yield r"\text{ radians}"
    elif (words := _WORD.findall(unit)) and words[-1] in _SIZES:
        head, tail = unit.rsplit(words[-1], 1)
        yield f"{head}{_SIZES[words[-1]]}{tail}"


def _body_changes(body: str) -> _Changes:
    if r"\cup" in body:
        yield from _union_changes(body.split(r"\cup"))
    elif bracketed := _BRACKETED.fullmatch(body):
        left, opening, inside, right, closing = bracketed.groups()
        fewest = 2 if opening == r"\{" else 3  # of a pair one is no pair
        for changed, answer in _list_changes(inside, fewest):
            yield changed, f"{left}{opening}{answer}{right}{closing}"
        if _ends(body):
            yield from (("bracket", answer) for answer in _other_brackets(body))
    elif "," in body and _value(body) is None:
        yield from _list_changes(body, 2)
    else:
        yield from _sum_changes(body)
        for letter in sorted(set(_LETTER.findall(body)) - set("eid")):
            name = rf"(?<![\\A-Za-z]){letter}"
            answer = re.sub(name, _unused(body, "pqruvwyz"), body)
            values = _value(body) or 0.0, _value(answer) or 0.0
            if not math.isclose(*values, rel_tol=1e-9, abs_tol=1e-9):
                yield "letter", answer


def _sum_changes(text: str) -> _Changes:
    """Another leading sign, or another last digit of a numeral; none of what is no sum."""
    text = text.strip()
    value = _value(text)
    if value is None or math.isinf(value):
        return
    if value:
        yield "sign", text[1:].lstrip() if text[0] in "+-" else f"-{text}"
    if "." in text and sum(map(str.isdigit, text)) > DECIMAL_DIGITS:
        return
    for numeral in re.finditer(r"\d+", text):
        place = numeral.end() - 1
        digit = 8 if text[place] == "9" else int(text[place]) + 1
        yield "digit", f"{text[:place]}{digit}{text[place + 1 :]}"


def _list_changes(inside: str, fewest: int) -> _Changes:
    """Another sign or digit of a part, or a part that is left out of at least `fewest`."""
    parts = inside.split(",")
    values = {_value(part) for part in parts}
    if None in values or len({f"{value:.6g}" for value in values}) < len(parts):
        return
    for place, part in enumerate(parts):
        space = part[: len(part) - len(part.lstrip())]
        for changed, answer in _sum_changes(part):
            yield changed, ",".join([*parts[:place], space + answer, *parts[place + 1 :]])
    for place in range(len(parts) if len(parts) >= fewest else 0):
        yield "element", ",".join(parts[:place] + parts[place + 1 :]).strip()


def _union_changes(pieces: list[str]) -> _Changes:
    for before, after in pairwise(pieces):
        one, other = _ends(before), _ends(after)
        both_open = before.strip()[-1:] == ")" and "[" not in after
        if not (one and other) or one[1] > other[0] or (one[1] == other[0] and not both_open):
            return  # they overlap, or may be one interval
    for place, piece in enumerate(pieces):
        yield "element", r"\cup".join(pieces[:place] + pieces[place + 1 :]).strip()
        for answer in _other_brackets(piece):
            yield "bracket", r"\cup".join([*pieces[:place], answer, *pieces[place + 1 :]])


def _ends(text: str) -> tuple[float, float] | None:
    """The ends of an interval, the lower surely below the upper; None for anything else."""
    bracketed = _BRACKETED.fullmatch(text.strip())
    if bracketed is None or bracketed["open"] == r"\{" or bracketed["close"] == r"\}":
        return None
    if _LETTER.search(bracketed["inside"]):
        return None  # of letters nobody knows which is larger
    ends = [_value(part) for part in bracketed["inside"].split(",")]
    if len(ends) != 2 or ends[0] is None or ends[1] is None or ends[0] >= ends[1]:
        return None
    return ends[0], ends[1]


def _other_brackets(interval: str) -> Iterator[str]:
    """The interval with, or without, one of its finite ends."""
    bracketed, (low, high) = _BRACKETED.search(interval), _ends(interval) or (-math.inf, math.inf)
    assert bracketed is not None
    for name, end in (("open", low), ("close", high)):
        if not math.isinf(end):
            other = {"(": "[", "[": "(", ")": "]", "]": ")"}[bracketed[name]]
            yield interval[: bracketed.start(name)] + other + interval[bracketed.end(name) :]


def _value(text: str) -> float | None:
    """The value of a sum with a number for each letter; None for anything else."""
    text = text.strip()
    if text in _INFINITE:
        return _INFINITE[text]
    if _ALONE.fullmatch(text):
        return float(text.replace(" ", ""))
    total, place = 0.0, 0
    while term := _TERM.match(text, place):
        if place and not term["sign"]:
            return None
        over, under = term["over"] or term["top"] or term["plain"], term["under"] or term["bottom"]
        size = _product(over) / (_product(under) if under else 1)
        total += -size if term["sign"] == "-" else size
        place = term.end()
    return total if 0 < place == len(text) and not _NO_PRODUCT.search(text) else None


def _product(text: str) -> float:
    size = 1.0
    for factor in _FACTORS.finditer(text):
        if number := factor["number"] or factor["root"]:
            value = float(re.sub(r"\D", "", number))
            size *= value if factor["number"] else math.sqrt(value)
        elif factor["letter"]:
            fixed = math.e if factor["letter"] == "e" else 1 + ord(factor["letter"]) * 0.618 % 1
            size *= fixed ** int(factor["power"] or 1)
        else:
            size *= math.pi
    return size


def _unused(text: str, letters: str) -> str:
    return next((letter for letter in letters if letter not in text.casefold()), letters[0])
