"""Which sentences open a thinking pattern: a cue is a candidate, not yet a boundary.

2505.21765 (section 3) cuts at every cue. On real traces most cues at the start of a sentence stand
inside a pattern that is already open: a second "Wait" within a check, "So x = 3" in mid-derivation,
a string of "Or maybe"; and one pattern in ten opens without a cue. In text in Latin letters a model
decides, which has learned what words, paragraphs and neighbours weigh. Elsewhere there is none, and
rules take some of the cues: there a paragraph counts first.

The model is linear: the probability that a sentence opens a pattern is a logistic function of its
features (`dto.segmentation.features`), which include how far back the last boundary lies. That one
is itself uncertain, so the probabilities of all places for it go along from sentence to sentence; a
boundary is where the total is at least `threshold`. The kind is the best of one linear function a
kind. The weights in `weights.toml` are those that `benchmarks/patterns/learn.py` writes: logistic
regression on sentences of real traces that readers marked. No other language than English was read,
and no other questions than puzzles in words.

What a model says over and over is one segment of the kind `loop`, whatever the granularity: it
costs two boundaries, not one a repetition.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise, repeat
from math import exp
from typing import Literal, NamedTuple

import numpy as np

from dto.segmentation import LOOP, OPENING
from dto.segmentation.features import (
    Known,
    Place,
    Sentence,
    Since,
    Words,
    describe,
    since_place,
    since_words,
)

KINDS = (
    "understanding", "plan", "derivation", "verification", "alternative", "summary", "conclusion",
)  # fmt: skip
WINDOW = 10  # sentences back that the last boundary can lie
_NOTHING = repeat(0.0)
LEAST = 0.05  # probability of a place for it that is still followed


class Weights(NamedTuple):
    """`boundary[feature]`, `kinds[feature][kind]` in the order of `KINDS`, and the threshold."""

    threshold: float
    boundary: Mapping[str, float]
    kinds: Mapping[str, Sequence[float]]


class Opening(NamedTuple):
    """A sentence, by index, that opens a pattern: of which kind, and how likely it does."""

    sentence: int
    kind: str
    p: float


@cache
def _known() -> Known:
    """What has a weight of those that are shipped."""
    names = load().boundary.keys() | load().kinds.keys()
    words = frozenset(name[2:] for name in names if name.startswith("w="))
    pairs = (name[3:].split(" ") for name in names if name.startswith("ww="))
    return Known(words, frozenset((one, other) for one, other in pairs))


@cache
def load() -> Weights:
    """The weights that are shipped."""
    data = tomllib.loads(files(__package__).joinpath("weights.toml").read_text(encoding="utf-8"))
    boundary = {name: value / 100 for name, value in data["boundary"].items()}
    kinds = {name: [value / 100 for value in values] for name, values in data["kinds"].items()}
    return Weights(data["threshold"], boundary, kinds)


def openings(sentences: Sequence[Sentence], weights: Weights | None = None) -> list[Opening]:
    """The sentences that open a pattern, without the first."""
    rows = describe(sentences, None if weights else _known())
    weights = weights or load()
    chance = chances(sentences, rows, weights.boundary)
    opens = [index for index, p in enumerate(chance) if p >= weights.threshold]
    found: list[Opening] = []
    kind = OPENING
    for index, after in pairwise([*opens, len(sentences)]):
        known = [
            weights.kinds[name]
            for name in of_pattern(sentences, rows[index], index, after, kind)
            if name in weights.kinds
        ]
        scores = [sum(column) for column in zip(*known, strict=True)] or [1.0]
        kind = KINDS[scores.index(max(scores))]
        found.append(Opening(index, kind, chance[index]))
    return found


def chances(
    sentences: Sequence[Sentence], rows: Sequence[Sequence[str]], weights: Mapping[str, float]
) -> list[float]:
    """For each sentence the probability that it opens a pattern; 0 for the first."""
    found = [0.0] * len(sentences)
    weight = weights.get
    since = Since(sentences)
    places: dict[Place, float] = {}  # scores that come again and again
    words: dict[Words, float] = {}
    last = {0: 1.0}  # sentence that opened the open pattern: probability
    for index in range(1, len(sentences)):
        score = sum(map(weight, rows[index], _NOTHING))
        opens, stays = 0.0, {}
        for opened, p in last.items():
            place, begins = since(index, opened)
            if (far := places.get(place)) is None:
                far = places[place] = sum(map(weight, since_place(place), _NOTHING))
            if (said := words.get(begins)) is None:
                said = words[begins] = sum(map(weight, since_words(begins), _NOTHING))
            stay = p / (1 + exp(min(30.0, score + far + said)))
            opens += p - stay
            stays[opened] = stay
        stays[index] = found[index] = opens
        last = _followed(stays, index)
    return found


def _followed(last: dict[int, float], index: int) -> dict[int, float]:
    """Without the places too far back or too unlikely, which count as the next later one."""
    kept: dict[int, float] = {}
    over = 0.0
    for opened, p in last.items():  # in order
        p += over
        if opened != index and (p < LEAST or index - opened >= WINDOW):
            over = p
        else:
            kept[opened], over = p, 0.0
    return kept


def of_pattern(
    sentences: Sequence[Sentence], row: Sequence[str], first: int, after: int, before: str
) -> list[str]:
    """What the kind of a pattern depends on, besides features that do not matter.

    The pattern has the sentences `first` to `after`; `row` describes its first, `before` is the
    kind of the pattern before it.
    """
    role, count = sentences[first].role, after - first
    features = [
        *row, f"k={before}", f"k-role={role} {before}", f"k-count={min(count, 6)}",
        f"k-count={min(count, 3)}{role}", f"k-?={sentences[after - 1].text[-1:] == '?'}",
    ]  # fmt: skip
    for each in sentences[first + 1 : min(after, first + 3)]:
        features.append(f"k-next={each.role}")
        features += [f"k-t={topic}" for topic in each.topics]
    said = frozenset[str]().union(*(each.topics for each in sentences[first:after]))
    return features + [f"k-any={topic}" for topic in said]


Granularity = Literal["pattern", "cue"]

# Sizes are in UTF-8 bytes, since a Chinese character says about as much as three Latin ones.
MIN_OPEN = 200  # inside a paragraph: how much the open pattern holds before another can begin
MIN_ROOM = 250  # inside a paragraph: how much of the paragraph is left for the new pattern
MIN_OPEN_WEAK = 150  # weak cue: how much the open pattern holds
MIN_PARAGRAPH = 60  # weak cue: its paragraph is more than a line of a derivation

AFTER_LOOP = "derivation"  # kind of what follows one where nothing opens
CYCLES = 4  # repetitions in a row that are a loop
LONGEST_CYCLE = 64  # sentences that are repeated together

_AROUND = 100  # characters to either side that tell the script
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
_OTHER = re.compile(r"[^\W\d_A-Za-z\u00aa-\u024f]")
_INSIDE = ("verification", "alternative")  # kinds that turn thought within a paragraph
_BLANK_LINE = re.compile(r"\n[ \t]*\n\s*|\A\s*")
_NEWLINE = re.compile(r"\n\s*|\A\s*")
_SENTENCE_END = re.compile(r"[.!?…](?=[\s\"”’)*])|[。！？]")


class TextSegment(NamedTuple):
    """A half-open character span, the cue that opened it as it stands there, and its kind."""

    start: int
    end: int
    cue: str
    kind: str


class Candidate(NamedTuple):
    """A sentence that starts with a cue: `start` is that of the sentence, openers included."""

    start: int
    cue: str
    kind: str
    strong: bool


def tile(
    text: str,
    candidates: Sequence[Candidate],
    sentences: Sequence[Sentence],
    granularity: Granularity,
) -> tuple[TextSegment, ...]:
    """Cut a text at its candidates; the segments tile it, and an empty text has none."""
    repeated = loops(text, sentences)
    cues = {candidate.start: candidate for candidate in reversed(candidates)}
    if granularity == "cue":
        chosen = dict(cues)
    else:
        chosen = patterns(text, cues, _said_once(sentences, repeated))
    for loop in repeated:
        first = sentences[loop.start].start
        after = sentences[loop.stop].start if loop.stop < len(sentences) else len(text)
        chosen = {start: cut for start, cut in chosen.items() if not first <= start < after}
        chosen[first] = Candidate(first, cues[first].cue if first in cues else "", LOOP, True)
        chosen.setdefault(after, Candidate(after, "", AFTER_LOOP, True))
    content = len(text) - len(text.lstrip())
    cuts = [chosen[start] for start in sorted(chosen) if content < start < len(text)]
    starts = [0, *(cut.start for cut in cuts), len(text)]
    names = [("", OPENING), *((cut.cue, cut.kind) for cut in cuts)]
    return tuple(
        TextSegment(start, end, cue, kind)
        for start, end, (cue, kind) in zip(starts, starts[1:], names, strict=False)
        if end > start
    )


def patterns(
    text: str, cues: Mapping[int, Candidate], sentences: Sequence[Sentence]
) -> dict[int, Candidate]:
    """Where patterns open: the model's choice in Latin letters, that of the rules elsewhere."""
    chosen: dict[int, Candidate] = {}
    if _OTHER.search(text):
        ruled = by_rules(text, [cues[start] for start in sorted(cues)])
        chosen = {each.start: each for each in ruled if not _latin(text, each.start)}
    for opening in openings(sentences):
        start = sentences[opening.sentence].start
        if _latin(text, start):
            cue = cues[start].cue if start in cues else ""
            chosen[start] = Candidate(start, cue, opening.kind, True)
    return chosen


def _latin(text: str, position: int) -> bool:
    """Whether most letters around a position are Latin; one of another script counts as two."""
    around = text[max(0, position - _AROUND) : position + _AROUND]
    others = len(_OTHER.findall(around))
    return others == 0 or len(_LATIN.findall(around)) >= 2 * others


def loops(text: str, sentences: Sequence[Sentence]) -> list[range]:
    """Sentences, by index, that repeat those before them, `CYCLES` times and more in a row.

    A cycle has up to `LONGEST_CYCLE` sentences, which differ in white space and case at most. Its
    first time is not part of the range.
    """
    table: dict[str, int] = {}
    said = [" ".join(text[each.start : each.end].lower().split()) for each in sentences]
    keys = np.array([table.setdefault(each, len(table)) for each in said])
    found: list[range] = []
    for cycle in range(1, min(LONGEST_CYCLE, len(keys) // (CYCLES + 1)) + 1):
        same = np.concatenate(([False], keys[cycle:] == keys[:-cycle], [False]))
        for first, after in np.flatnonzero(np.diff(same)).reshape(-1, 2).tolist():
            new = range(first + cycle, after + cycle)
            apart = all(new.stop <= old.start or old.stop <= new.start for old in found)
            if len(new) >= CYCLES * cycle and apart:
                found.append(new)
    return sorted(found, key=lambda loop: loop.start)


def _said_once(sentences: Sequence[Sentence], repeated: Sequence[range]) -> list[Sentence]:
    """The sentences that are in no loop."""
    kept, after = list[Sentence](), 0
    for loop in repeated:
        kept += sentences[after : loop.start]
        after = loop.stop
    return kept + list(sentences[after:])


def by_rules(text: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, in order of `start`, that open a pattern, by rules.

    At the start of a paragraph a strong cue opens one, unless the open pattern is of the same kind
    and so far all lines of one sentence (a string of one-liners is one pattern). A weak cue does so
    when both the open pattern and its own paragraph have some length. Inside a paragraph only a
    strong verification or alternative opens one, with some length before it and after it.
    """
    paragraphs = _paragraph_starts(text)
    accepted: list[Candidate] = []
    start, kind = 0, OPENING
    liners, seen = True, 0  # whether text[start:seen] is all one-liners
    for candidate in candidates:
        here = candidate.start
        index = bisect_right(paragraphs, here)
        paragraph_end = paragraphs[index] if index < len(paragraphs) else len(text)
        if here != paragraphs[index - 1]:
            opens = (
                candidate.strong
                and candidate.kind in _INSIDE
                and _reaches(text, start, here, MIN_OPEN)
                and _reaches(text, here, paragraph_end, MIN_ROOM)
            )
        elif candidate.strong:
            liners, seen = liners and _one_liners(text[seen:here]), here
            opens = candidate.kind != kind or not liners
        else:
            opens = _reaches(text, start, here, MIN_OPEN_WEAK) and _reaches(
                text, here, paragraph_end, MIN_PARAGRAPH
            )
        if opens:
            accepted.append(candidate)
            start, kind = here, candidate.kind
            liners, seen = True, here
    return accepted


def _paragraph_starts(text: str) -> list[int]:
    """Where paragraphs begin; lines count as paragraphs in a text without blank lines."""
    starts = [match.end() for match in _BLANK_LINE.finditer(text)]
    if len(starts) == 1:
        starts = [match.end() for match in _NEWLINE.finditer(text)]
    return [0, *starts] if starts[0] else starts


def _reaches(text: str, start: int, end: int, size: int) -> bool:
    """Whether the span holds at least `size` bytes, white space at its end aside."""
    head = text[start : min(end, start + 2 * size)].rstrip()
    return len(head.encode("utf-8", "surrogatepass")) >= size


def _one_liners(text: str) -> bool:
    """Whether each line is a single sentence."""
    return all(_SENTENCE_END.search(line.rstrip()[:-1]) is None for line in text.splitlines())
