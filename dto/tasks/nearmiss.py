r"""Make near misses of a gold answer: small changes that certainly give a different answer.

A grader that accepts one of them is too lax. Only answers of these forms are changed, because a
change that may mean the same would be a false alarm:

- a sum of terms without a zero in it, `-\frac{3\sqrt{2}}{5} + x^2`, or 0 or a decimal number, with
  or without `x =` before it and a unit behind it;
- a tuple of these, a list or set of different numbers, an interval with ascending ends, and a
  union of disjoint intervals;
- a numeral in a base, words, and the letter of an option.

Letters that mean any number (`+ C`, `k\pi`) and the unit of 0 are not changed, nor are decimal
numbers by less than a ten thousandth.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Literal, NamedTuple

GoldKind = Literal["number", "words", "mathematics", "letter", "program", "other_rule"]
NearMissKind = Literal["sign", "digit", "element", "bracket", "letter", "unit", "base"]
MOST = 3  # of each kind, for each gold answer
LONGEST = 200  # characters; a longer gold answer is not changed
DECIMAL_DIGITS = 4

_NUMERAL = r"(?:[1-9]\d{0,2}(?:,(?:\\!)?\s?\d{3})+(?!\d)|[1-9]\d*)"
_FACTOR = (
    rf"(?:\\sqrt\s*\{{{_NUMERAL}\}}|\\pi(?![A-Za-z])|(?!i\^)[A-Za-z](?:\^\{{?[1-9](?!\d)\}}?)?)\s*"
)
_PRODUCT = rf"(?:{_NUMERAL}\s*(?:{_FACTOR})*|(?:{_FACTOR})+)"
_FRACTION = rf"\\[dt]?frac\s*\{{{_PRODUCT}\}}\s*\{{{_PRODUCT}\}}|{_NUMERAL}\s*/\s*{_NUMERAL}"
_TERM = rf"\s*(?:{_FRACTION}|{_PRODUCT})\s*"
_SUM = re.compile(rf"\s*[+-]?{_TERM}(?:[+-]{_TERM})*|\s*[+-]?(?:0|\d*\.\d+)\s*")
_WORDED = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4}")  # not a product of letters
_NUMBER = re.compile(
    rf"([+-]?)\s*(?:(?P<plain>\d*\.\d+|0|{_NUMERAL})|\\[dt]?frac\s*\{{(?P<top>\d+)\}}\s*\{{"
    rf"(?P<bottom>[1-9]\d*)\}}|(?P<over>\d+)/(?P<under>[1-9]\d*)|(?P<infinite>\\infty))"
)
_ANY = re.compile(r"(?<![A-Za-z\\])[CKk](?![A-Za-z])|\\mathbb|\\pm")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_LETTER = re.compile(r"(?<![\\A-Za-z])(?![eid])[A-Za-z]")
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
    """A changed gold answer and the kind of the change."""

    kind: NearMissKind
    answer: str


def near_misses(gold: str, kind: GoldKind) -> tuple[NearMiss, ...]:
    """At most `MOST` near misses of each kind, all different, always the same for a gold answer.

    `kind`: the kind of the gold answer, from `dto.tasks.validate`. Programs and answers under a
    rule of another package have no near misses.
    """
    gold = gold.strip()
    if kind in ("program", "other_rule") or not gold or len(gold) > LONGEST:
        return ()
    count: Counter[NearMissKind] = Counter()
    changed_answers: dict[str, NearMiss] = {}
    for changed, answer in _changes(gold, kind):
        if count[changed] < MOST and answer not in changed_answers:
            count[changed] += 1
            changed_answers[answer] = NearMiss(changed, answer)
    return tuple(changed_answers.values())


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
        base += base == 10  # the base of a numeral that names none
        yield "base", f"{numeral[1]}{base}{numeral[3]}"
    elif around := None if _ANY.search(gold) else _AROUND.fullmatch(gold):
        before, body, unit, after = around.groups()
        for changed, answer in _body_changes(body):
            yield changed, f"{before}{answer}{unit}{after}"
        for other in _units(unit) if _number(body) else ():
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
        for changed, answer in _list_changes(inside, ordered=opening != r"\{"):
            yield changed, f"{left}{opening}{answer}{right}{closing}"
        if _ends(body):
            yield from (("bracket", answer) for answer in _other_brackets(body))
    elif "," in body and not _is_sum(body):
        yield from _list_changes(body, ordered=False)
    else:
        yield from _sum_changes(body)
        for letter in _LETTER.finditer(body) if _is_sum(body) else ():
            other = _unused(body, "pqruvwyz")
            yield "letter", f"{body[: letter.start()]}{other}{body[letter.end() :]}"


def _sum_changes(text: str) -> _Changes:
    """Change the leading sign, or the last digit of a numeral; nothing if it is not a sum."""
    text = text.strip()
    if not _is_sum(text):
        return
    if _number(text) != 0:
        yield "sign", text[1:].lstrip() if text[0] in "+-" else f"-{text}"
    if "." in text and sum(map(str.isdigit, text)) > DECIMAL_DIGITS:
        return
    for numeral in re.finditer(r"\d+", text):
        place = numeral.end() - 1
        digit = 8 if text[place] == "9" else int(text[place]) + 1
        yield "digit", f"{text[:place]}{digit}{text[place + 1 :]}"


def _is_sum(text: str) -> bool:
    return bool(_SUM.fullmatch(text)) and not _WORDED.search(text)


def _list_changes(inside: str, *, ordered: bool) -> _Changes:
    """Change a sign or digit of a part, or omit a part, unless there are only two."""
    parts = inside.split(",")
    numbers = {_number(part) for part in parts}
    if not ordered and (None in numbers or len(numbers) < len(parts)):
        return
    for place, part in enumerate(parts):
        space = part[: len(part) - len(part.lstrip())]
        for changed, answer in _sum_changes(part):
            yield changed, ",".join([*parts[:place], space + answer, *parts[place + 1 :]])
    for place in range(len(parts) if len(parts) > 1 + ordered else 0):
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


def _ends(text: str) -> tuple[Fraction | float, Fraction | float] | None:
    """The ends of an interval, if the lower is below the upper; None for anything else."""
    bracketed = _BRACKETED.fullmatch(text.strip())
    if bracketed is None or "{" in bracketed["open"] or "}" in bracketed["close"]:
        return None
    ends = [_number(part) for part in bracketed["inside"].split(",")]
    if len(ends) != 2 or ends[0] is None or ends[1] is None or ends[0] >= ends[1]:
        return None
    return ends[0], ends[1]


def _other_brackets(interval: str) -> Iterator[str]:
    """Open or close one of the finite ends of an interval."""
    bracketed, (low, high) = _BRACKETED.search(interval), _ends(interval) or (-math.inf, math.inf)
    assert bracketed is not None
    for name, end in (("open", low), ("close", high)):
        if not math.isinf(end):
            other = {"(": "[", "[": "(", ")": "]", "]": ")"}[bracketed[name]]
            yield interval[: bracketed.start(name)] + other + interval[bracketed.end(name) :]


def _number(text: str) -> Fraction | float | None:
    """A number, as a float if it is infinite; None for anything else."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    sign = -1 if match[1] == "-" else 1
    if match["infinite"]:
        return sign * math.inf
    if match["plain"]:
        return sign * Fraction(re.sub(r"[^\d.]", "", match["plain"]))
    return sign * Fraction(
        int(match["top"] or match["over"]), int(match["bottom"] or match["under"])
    )


def _unused(text: str, letters: str) -> str:
    return next((letter for letter in letters if letter not in text.casefold()), letters[0])
