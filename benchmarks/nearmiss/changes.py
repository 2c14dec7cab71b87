"""Small changes of an answer's text, by kind; `reading` says whether they mean another answer."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, pairwise
from typing import Literal, get_args

from benchmarks.nearmiss.reading import as_words, differ, read
from benchmarks.nearmiss.tokens import RELATIONS, Gold, Token, tokens
from benchmarks.nearmiss.values import PLURALS, UNITS, UnreadableError, measure

NearMissKind = Literal[
    "sign", "digit", "scale", "element", "order", "bracket", "letter", "unit", "base", "exponent",
    "fraction", "term", "function", "relation", "plus_minus", "percent", "grouping",
]  # fmt: skip
KINDS: tuple[NearMissKind, ...] = get_args(NearMissKind)
MOST = 3  # of each kind, for one gold answer
MOST_TRIED = 30  # changes of one kind that are read
LONGEST = 500  # characters of a gold answer that is changed

_WORD = re.compile(r"[^\W\d_]{2,}")
_PAIRS = {
    r"\sin": r"\cos", r"\cos": r"\sin", r"\tan": r"\cot", r"\cot": r"\tan", r"\sec": r"\csc",
    r"\csc": r"\sec", r"\arcsin": r"\arccos", r"\arccos": r"\arcsin", r"\arctan": r"\arcsin",
    r"\ln": r"\log", r"\log": r"\ln", r"\sinh": r"\cosh", r"\cosh": r"\sinh",
}  # fmt: skip
_RELATED = {
    "<": (r"\le ", ">"), ">": (r"\ge ", "<"), r"\le": ("<", r"\ge "), r"\ge": (">", r"\le "),
    "=": (r"\ne ",), r"\ne": ("=",), r"\cup": (r"\cap ",), r"\cap": (r"\cup ",),
}  # fmt: skip
_CURRENCIES = {r"\$": ("€", "¥"), "€": (r"\$", "¥"), "¥": ("€", r"\$")}
_STARTS = {"(", "[", "{", r"\{", ",", "&", r"\\", r"\cup", *RELATIONS}
_SIGNED = {r"\frac", r"\sqrt", r"\pi", r"\infty", r"\$", *_PAIRS}
_NEUTRAL, _LIKE_UNITS = "abnpqruvwyz", "mgsthcL"
_ANY_CONSTANT = re.compile(r"\+\s*[CK]\b|\\in\s*\\(?:mathbb|Z)|\\mathbb")
_DUMMY = re.compile(r"\\in(?![A-Za-z])|[<>]|\\[lg]eq?(?![A-Za-z])|\\\{|≤|≥|∈")
_FUNCTION = re.compile(r"^\s*\$?\s*[a-zA-Z]\s*(?:\\left)?\(\s*[a-zA-Z]\s*(?:\\right)?\)\s*=")
_TEXT = re.compile(r"(\\\w+\s*\{\s*)([^{}]*?)(\s*\}\Z)")
_SIMPLE = re.compile(r"[\w\\]+")


@dataclass(frozen=True, slots=True)
class NearMiss:
    """An answer that is almost the gold answer, and how it was changed."""

    kind: NearMissKind
    answer: str


def near_misses(
    gold: str, rule: str = "math", *, percent: bool = False, most: int = MOST
) -> tuple[NearMiss, ...]:
    """At most `most` near misses of each kind, all different, always the same for a gold answer.

    `percent`: the question asks for a percentage, so that the sign may be left out. Programs have
    none. Milliseconds for an answer.
    """
    gold = gold.strip()
    if not gold or rule == "code" or len(gold) > LONGEST:
        return ()
    made: dict[str, NearMiss] = {}
    for name in KINDS:
        if name == "percent" and percent:
            continue
        changes = _choice_changes(gold, name) if rule == "choice" else _changes(gold, name)
        candidates = list(dict.fromkeys(changes))
        random.Random(f"{name} {gold}").shuffle(candidates)
        fit = (
            answer
            for answer in candidates[:MOST_TRIED]
            if answer not in (gold, *made) and (rule == "choice" or differ(gold, answer))
        )
        made |= {answer: NearMiss(name, answer) for answer in islice(fit, most)}
    return tuple(made.values())


def _choice_changes(gold: str, kind: NearMissKind) -> Iterator[str]:
    places = [match.span() for match in re.finditer(r"(?<![A-Za-z\\])[A-J]+(?![a-z])", gold)]
    if len(places) != 1 or len(_WORD.findall(gold)) > 1:
        return
    (begin, end), letters = places[0], gold[slice(*places[0])]
    others = [letter for letter in "ABCD" if letter not in letters]
    if kind == "letter":
        for place in range(begin, end):
            yield from (f"{gold[:place]}{letter}{gold[place + 1 :]}" for letter in others)
    elif kind == "element":
        for place in range(begin, end if end - begin > 1 else begin):
            yield gold[:place] + gold[place + 1 :]
        yield from (f"{gold[:end]}{letter}{gold[end:]}" for letter in others)


def _changes(gold: str, kind: NearMissKind) -> Iterator[str]:
    if as_words(gold):
        if kind == "letter":
            yield from _misspelt(gold)
        return
    try:
        found = tokens(gold)
    except UnreadableError:
        return
    if found:
        yield from CHANGES[kind](Gold(gold, found))


def _misspelt(gold: str) -> Iterator[str]:
    for match in _WORD.finditer(gold):
        word = match[0]
        if not word.isascii() or gold[: match.start()].endswith("\\"):
            continue
        for begin, (one, two) in enumerate(pairwise(word), match.start()):
            if one.lower() != two.lower():
                yield f"{gold[:begin]}{two}{one}{gold[begin + 2 :]}"
            yield f"{gold[:begin]}{'n' if one != 'n' else 't'}{gold[begin + 1 :]}"
    for match in re.finditer(r"(?<![A-Za-z\\])[A-Z](?![A-Za-z])", gold):
        for letter in "ABCDE".replace(match[0], ""):
            yield f"{gold[: match.start()]}{letter}{gold[match.end() :]}"


def _exchanged(table: Mapping[str, Sequence[str]]) -> Callable[[Gold], Iterator[str]]:
    """A change that puts another token in the place of one."""

    def change(gold: Gold) -> Iterator[str]:
        for token in gold.tokens:
            for other in table.get(token.text, ()):
                yield gold.replaced(token, other)

    return change


def _sign(gold: Gold) -> Iterator[str]:
    for index, token in enumerate(gold.tokens):
        before = gold.tokens[index - 1].text if index else ","
        begins = before in _STARTS or before.startswith(r"\begin")
        if token.text in "+-" and not begins:
            yield gold.replaced(token, "-" if token.text == "+" else "+")
        elif token.text == "-":
            yield gold.replaced(token, "")
        elif begins and (token.kind in ("number", "letter") or token.text in _SIGNED):
            yield gold.put(token.start, token.start, "-")


def _digit(gold: Gold) -> Iterator[str]:
    for token in gold.numbers():
        written = gold.text[token.start : token.end]
        places = [place for place, character in enumerate(written) if character.isdigit()]
        grouped = bool(re.search(r"[^\d.]", written))
        for place in places:
            before, digit, behind = written[:place], written[place], written[place + 1 :]
            others = {(int(digit) + 1) % 10, (int(digit) - 1) % 10}
            for other in others - ({0} if place == 0 else set()):
                yield gold.replaced(token, f"{before}{other}{behind}")
            if not grouped:
                yield gold.replaced(token, f"{before}{digit}{digit}{behind}")
                dropped = before + behind
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
            yield gold.replaced(token, f"{written}0")
            yield gold.replaced(token, f"{written}00")
            filled = written.zfill(3)
            for places in (1, 2) if len(gold.tokens) == 1 else ():
                whole, behind = filled[:-places].lstrip("0") or "0", filled[-places:]
                yield gold.replaced(token, f"{whole}.{behind}")
        elif re.fullmatch(r"\d*\.\d+", written):
            whole, _, behind = written.partition(".")
            yield gold.replaced(token, (whole + behind).lstrip("0"))
            yield gold.replaced(token, f"{whole}{behind[0]}.{behind[1:] or '0'}".lstrip("0"))
        elif re.search(r"[^\d.]\d{3}\Z", written):
            yield gold.replaced(token, re.sub(r"[^\d.]+\d{3}\Z", "", written))


def _element(gold: Gold) -> Iterator[str]:
    for opening, first, end in gold.groups():
        for sign in {"": [",", r"\cup"], "{": []}.get(opening, [","]):
            pieces = gold.pieces(first, end, [sign])
            if len(pieces) < 2 or any(begin == stop for begin, stop in pieces):
                continue
            yield from _without_one(gold, pieces)
            if sign == "," and opening in (r"\{", ""):
                place = gold.tokens[end - 1].end
                yield gold.put(place, place, ", 97")
    for first, end in _matrices(gold):
        rows = gold.pieces(first, end, [r"\\"])
        if len(rows) > 1:
            yield from _without_one(gold, rows)


def _without_one(gold: Gold, pieces: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Each of the pieces is left out, with the separator before it or, of the first, behind it."""
    for begin, stop in pieces:
        back = begin > pieces[0][0]
        yield gold.put(*gold.span(begin - back, stop - back), "")


def _matrices(gold: Gold) -> Iterator[tuple[int, int]]:
    begins = [i for i, token in enumerate(gold.tokens) if token.text.startswith(r"\begin")]
    ends = [i for i, token in enumerate(gold.tokens) if token.text.startswith(r"\end")]
    return ((begin + 1, end) for begin, end in zip(begins, ends, strict=False))


def _order(gold: Gold) -> Iterator[str]:
    lists = [
        gold.pieces(first, end, [","]) for opening, first, end in gold.groups() if opening in "(["
        and opening
    ]  # fmt: skip
    for first, end in _matrices(gold):
        rows = gold.pieces(first, end, [r"\\"])
        lists.append([cell for row in rows for cell in gold.pieces(*row, ["&"])])
    for pieces in lists:
        if all(begin < stop for begin, stop in pieces):
            for pair in combinations(pieces, 2):
                (a, b), (c, d) = (gold.span(begin, stop - 1) for begin, stop in pair)
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
        if not re.search("infty|∞", ends[0]):
            yield gold.replaced(begin, "[" if begin.text == "(" else "(")
        if not re.search("infty|∞", ends[1]):
            yield gold.replaced(end, "]" if end.text == ")" else ")")


def _ascending(lower: str, upper: str) -> bool:
    """Whether a pair may be an interval."""
    try:
        ends = [read(text) for text in (lower, upper)]
        values = [complex(end.number[0]) for end in ends if end.shape == "number"]
    except (UnreadableError, OverflowError):
        return False
    real = len(values) == 2 and all(value.imag == 0 for value in values)
    return real and values[0].real < values[1].real


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
        if "'" in name:
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
    if [token.text for token in gold.tokens[index + 1 : index + 2]] != ["^"]:
        return index
    exponent = gold.argument(index + 2)
    return None if exponent is None else exponent[1]


def _unit(gold: Gold) -> Iterator[str]:
    yield from _exchanged(_CURRENCIES)(gold)
    for index, token in enumerate(gold.tokens):
        if token.text == "°" and index == len(gold.tokens) - 1:
            yield gold.replaced(token, r"\text{ radians}")
        written = gold.text[token.start : token.end]
        match = _TEXT.fullmatch(written)
        before, word, after = match.groups() if match else ("", written, "")
        if token.kind != "text" or measure(word.strip(" .")) is None:
            continue
        plural = word in PLURALS or (len(word) > 2 and word.endswith("s"))
        singular = {one: many for many, one in PLURALS.items()}
        for other in (name for sizes in UNITS.values() for name in sizes):
            if other.isascii() == word.isascii() and (len(other) > 2) == (len(word) > 2):
                named = singular.get(other, f"{other}s") if plural else other
                yield gold.replaced(token, before + named + after)
        raised = [each.text for each in gold.tokens[index + 1 : index + 2]] == ["^"]
        if exponent := gold.argument(index + 2) if raised else None:
            begin, end = gold.span(index + 1, exponent[1])
            yield gold.put(begin, end, "")
            yield gold.put(begin, end, "^3" if gold.inner(exponent) == "2" else "^2")
        elif not raised:
            yield gold.put(token.end, token.end, "^2")


def _base(gold: Gold) -> Iterator[str]:
    for index, token in enumerate(gold.tokens):
        if token.text != "_" or not index or gold.tokens[index - 1].kind != "number":
            continue
        argument = gold.argument(index + 1)
        inner = gold.inner(argument) if argument else ""
        if argument and inner.isdigit():
            braced = gold.tokens[argument[0]].text == "{"
            for other in {int(inner) + 1, int(inner) - 1, int(inner) + 3} - {0, 1}:
                new = f"{{{other}}}" if braced or other > 9 else str(other)
                yield gold.put(*gold.span(*argument), new)


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
        bracketed = index and gold.tokens[index - 1].text == ")" and not inner.isdigit()
        if index and not bracketed and not inner.startswith("-"):
            yield gold.put(begin, end, inner)
        if re.fullmatch(r"\d+", inner):
            yield gold.put(begin, end, f"^{{{int(inner) + 1}}}")


def _fraction(gold: Gold) -> Iterator[str]:
    for index, token in enumerate(gold.tokens):
        if token.text == "/" and index and index + 1 < len(gold.tokens):
            one, two = gold.tokens[index - 1], gold.tokens[index + 1]
            if {one.kind, two.kind} <= {"number", "letter"}:
                a, b = gold.text[one.start : one.end], gold.text[two.start : two.end]
                for other in (f"{b}/{a}", a, b, f"{a}{b}"):
                    yield gold.put(one.start, two.end, other)
        parts = _parts(gold, index) if token.text == r"\frac" else None
        if parts is None:
            continue
        above, below, end = parts
        begin = token.start
        command = re.match(r"\\[dtc]?frac", gold.text[begin:])
        name = command[0] if command else r"\frac"
        yield gold.put(begin, end, f"{name}{{{below}}}{{{above}}}")
        if len(gold.tokens) == index + 7 or all(map(_SIMPLE.fullmatch, (above, below))):
            if not (index and gold.tokens[index - 1].kind == "number"):
                yield gold.put(begin, end, above)
                yield gold.put(begin, end, below)
            if above.isdigit() and below.isdigit():
                yield gold.put(begin, end, f"{above}{below}")


def _parts(gold: Gold, index: int) -> tuple[str, str, int] | None:
    r"""Numerator and denominator of a `\frac`, and the offset of its end; `\frac43` too."""
    first = gold.argument(index + 1)
    if first is None:
        return None
    begin, end = gold.span(*first)
    written = gold.text[begin:end]
    if gold.tokens[first[0]].kind == "number" and len(written) > 1:
        return (written[0], written[1], begin + 2) if written.isdigit() else None
    second = gold.argument(first[1] + 1)
    if second is None:
        return None
    below, (begin, end) = gold.inner(second), gold.span(*second)
    if gold.tokens[second[0]].kind == "number":
        below, end = below[:1], begin + 1
    return gold.inner(first), below, end


def _term(gold: Gold) -> Iterator[str]:
    for _, first, end in gold.groups():
        pieces = gold.pieces(first, end, ["+", "-"])
        if end - first < 3 or len(pieces) < 2:
            continue
        for begin, stop in pieces:
            inside = {token.text for token in gold.tokens[begin:stop]}
            if begin == stop or inside & {",", "&", r"\\", r"\cup", r"\in", *RELATIONS}:
                continue
            if begin > first:
                yield gold.put(*gold.span(begin - 1, stop - 1), "")
            elif stop < end and gold.tokens[stop].text == "+":
                yield gold.put(*gold.span(begin, stop), "")


def _function(gold: Gold) -> Iterator[str]:
    for index, token in enumerate(gold.tokens):
        behind = index > 0 and gold.tokens[index - 1].kind == "number"
        written = gold.text[token.start : token.end]
        if other := _PAIRS.get(token.text):
            yield gold.replaced(token, other if written.startswith("\\") else other[1:])
        argument = gold.argument(index + 1) if written == r"\sqrt" else None
        if argument:
            inner, end = gold.inner(argument), gold.tokens[argument[1]].end
            yield gold.put(token.start, end, rf"\cdot {inner}" if behind else inner)
            if gold.tokens[index + 1].text == "{":
                yield gold.put(token.start, end, rf"\sqrt[3]{{{inner}}}")
        if token.text == r"\pi":
            yield gold.replaced(token, "" if behind else "1")


def _relation(gold: Gold) -> Iterator[str]:
    chained = sum(token.text in RELATIONS for token in gold.tokens) > 1
    for token in gold.tokens:
        for number, other in enumerate(_RELATED.get(token.text, ())):
            if not (chained and (number or token.text == "=")):
                yield gold.replaced(token, other)


def _grouping(gold: Gold) -> Iterator[str]:
    """Parentheses are lost."""
    for opening, closing in gold.closing.items():
        begin, end = gold.tokens[opening], gold.tokens[closing]
        pieces = gold.pieces(opening + 1, closing, [",", *RELATIONS])
        if begin.text + end.text == "()" and len(pieces) == 1 and opening + 2 < closing:
            kept = re.sub(r"\\(?:left|right)\s*\Z", "", gold.text[begin.end : end.start])
            before = re.sub(r"\\left\s*\Z", "", gold.text[: begin.start])
            if not (before[-1:].isalpha() and kept[:1].isalnum()):  # sin(pi) is no sinpi
                yield f"{before}{kept}{gold.text[end.end :]}"


CHANGES: dict[NearMissKind, Callable[[Gold], Iterator[str]]] = {
    "sign": _sign, "digit": _digit, "scale": _scale, "element": _element, "order": _order,
    "bracket": _bracket, "letter": _letter, "unit": _unit, "base": _base, "exponent": _exponent,
    "fraction": _fraction, "term": _term, "function": _function, "relation": _relation,
    "plus_minus": _exchanged({r"\pm": ("+", "-")}), "percent": _exchanged({"%": ("",)}),
    "grouping": _grouping,
}  # fmt: skip
