r"""Near misses of gold answers: small changes that make another answer.

A grader that takes one of them for right is too lax. Each change is made in the gold answer's own
notation (`changes`), and kept only where `reading`, which shares nothing with the grader, shows
that it means something else: never the sign of 0, a point with two equal coordinates exchanged, a
change of a decimal by less than a ten thousandth, `5 m` as `500 cm`, or anything in notation that
it cannot read.

Not changed, because the grader's rules let it vary: a unit that is left out or added, the left side
of `y = 2x`, the name of the variable of an interval or of a function's argument, the base of a
numeral that is left out, the order of a list, the constant of an integral. Another name for the
variable of an equation or expression (`x = 5`, `y = 5`) does make another answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from dto.grading.nearmiss.changes import CHANGES, KINDS, NearMissKind
from dto.grading.nearmiss.reading import as_words, differ
from dto.grading.nearmiss.tokens import Gold, tokens
from dto.grading.nearmiss.values import UnreadableError
from dto.records import AnswerKind

MOST = 3  # of each kind, for one gold answer
MOST_TRIED = 30  # changes of one kind that are read
LONGEST = 500  # characters of a gold answer that is changed

_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True, slots=True)
class NearMiss:
    """An answer that is almost the gold answer, and how it was changed."""

    kind: NearMissKind
    answer: str


def near_misses(
    gold: str, kind: AnswerKind = "math", *, percent: bool = False, most: int = MOST
) -> tuple[NearMiss, ...]:
    """At most `most` near misses of each kind, all different, always the same for a gold answer.

    `percent`: the question asks for a percentage, so that the sign may be left out. Programs have
    none. Milliseconds for an answer.
    """
    gold = gold.strip()
    if not gold or kind == "code" or len(gold) > LONGEST:
        return ()
    made: list[NearMiss] = []
    seen = {gold}
    for name in KINDS:
        if name == "percent" and percent:
            continue
        changes = _choice_changes(gold, name) if kind == "choice" else _changes(gold, name)
        candidates = list(dict.fromkeys(changes))
        random.Random(f"{name} {gold}").shuffle(candidates)
        shown = 0
        for answer in candidates[:MOST_TRIED]:
            if shown < most and answer not in seen and (kind == "choice" or differ(gold, answer)):
                made.append(NearMiss(name, answer))
                seen.add(answer)
                shown += 1
    return tuple(made)


def _choice_changes(gold: str, kind: NearMissKind) -> Iterator[str]:
    places = [match.span() for match in re.finditer(r"(?<![A-Za-z\\])[A-J]+(?![a-z])", gold)]
    if len(places) != 1 or len(_WORD.findall(gold)) > 1:
        return
    (begin, end), letters = places[0], gold[slice(*places[0])]
    if kind == "letter":
        for place in range(begin, end):
            for letter in "ABCD":
                if letter not in letters:
                    yield f"{gold[:place]}{letter}{gold[place + 1 :]}"
    elif kind == "element":
        for place in range(begin, end if end - begin > 1 else begin):
            yield gold[:place] + gold[place + 1 :]
        for letter in "ABCD":
            if letter not in letters:
                yield f"{gold[:end]}{letter}{gold[end:]}"


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
        if match.start() and gold[match.start() - 1] == "\\":
            continue
        word = match[0]
        if not word.isascii():
            continue
        for place, (one, two) in enumerate(pairwise(word)):
            begin = match.start() + place
            if one.lower() != two.lower():
                yield f"{gold[:begin]}{two}{one}{gold[begin + 2 :]}"
            other = "n" if one != "n" else "t"
            yield f"{gold[:begin]}{other}{gold[begin + 1 :]}"
    for match in re.finditer(r"(?<![A-Za-z\\])[A-Z](?![A-Za-z])", gold):
        for letter in "ABCDE":
            if letter != match[0]:
                yield f"{gold[: match.start()]}{letter}{gold[match.end() :]}"
