"""Decide which sentences open a thinking pattern.

2505.21765 (section 3) cuts at every cue. On real traces most cues are inside an open pattern: a
second "Wait" within a check, "So x = 3" within a derivation, a series of "Or maybe". One pattern in
ten opens without a cue. Departure from the paper: a model decides in text in Latin letters, and
rules that begin with paragraphs choose among the cues in other text.

The model is linear. The probability that a sentence opens a pattern is a logistic function of its
features (`dto.segmentation.features`), one of which is the distance to the last boundary. That
boundary is uncertain too, so the model sums over its places, and a boundary is where the total
probability is at least `threshold`. Each kind has a linear function, and the largest wins.
`benchmarks/patterns/learn.py` learned the weights in `weights.toml` by logistic regression on
sentences of real traces that readers marked: English ones, about word puzzles.

Sentences that a model repeats in a loop are one segment of the kind `loop`, in every granularity.
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
    BoundaryDistances,
    Place,
    Sentence,
    WeightedWords,
    Words,
    describe,
    since_place,
    since_words,
)

KINDS = (
    "understanding", "plan", "derivation", "verification", "alternative", "summary", "conclusion",
)  # fmt: skip
WINDOW = 10  # largest distance of the last boundary, in sentences
_NOTHING = repeat(0.0)
LEAST = 0.05  # smallest probability of a place of the last boundary that is followed


class Weights(NamedTuple):
    """`boundary[feature]`, `kinds[feature][kind]` in the order of `KINDS`, and the threshold."""

    threshold: float
    boundary: Mapping[str, float]
    kinds: Mapping[str, Sequence[float]]


class Opening(NamedTuple):
    """The index of a sentence that opens a pattern, the kind, and the probability."""

    sentence: int
    kind: str
    p: float


@cache
def _weighted_words() -> WeightedWords:
    """The words and pairs that have a shipped weight."""
    names = load().boundary.keys() | load().kinds.keys()
    words = frozenset(name[2:] for name in names if name.startswith("w="))
    pairs = (name[3:].split(" ") for name in names if name.startswith("ww="))
    return WeightedWords(words, frozenset((one, other) for one, other in pairs))


@cache
def load() -> Weights:
    """Read the shipped weights."""
    data = tomllib.loads(files(__package__).joinpath("weights.toml").read_text(encoding="utf-8"))
    boundary = {name: value / 100 for name, value in data["boundary"].items()}
    kinds = {name: [value / 100 for value in values] for name, values in data["kinds"].items()}
    return Weights(data["threshold"], boundary, kinds)


def openings(sentences: Sequence[Sentence], weights: Weights | None = None) -> list[Opening]:
    """Find the sentences that open a pattern; the first sentence is not one of them."""
    rows = describe(sentences, None if weights else _weighted_words())
    weights = weights or load()
    chance = chances(sentences, rows, weights.boundary)
    indices = [index for index, p in enumerate(chance) if p >= weights.threshold]
    opened: list[Opening] = []
    kind = OPENING
    for index, after in pairwise([*indices, len(sentences)]):
        rows_of_kind = [
            weights.kinds[name]
            for name in of_pattern(sentences, rows[index], index, after, kind)
            if name in weights.kinds
        ]
        scores = [sum(column) for column in zip(*rows_of_kind, strict=True)] or [1.0]
        kind = KINDS[scores.index(max(scores))]
        opened.append(Opening(index, kind, chance[index]))
    return opened


def chances(
    sentences: Sequence[Sentence], rows: Sequence[Sequence[str]], weights: Mapping[str, float]
) -> list[float]:
    """Compute for each sentence the probability that it opens a pattern; 0 for the first."""
    chance = [0.0] * len(sentences)
    weight = weights.get
    since = BoundaryDistances(sentences)
    places: dict[Place, float] = {}  # scores that recur
    words: dict[Words, float] = {}
    last = {0: 1.0}  # sentence that opened the open pattern: probability
    for index in range(1, len(sentences)):
        score = sum(map(weight, rows[index], _NOTHING))
        opens, stays = 0.0, {}
        for opened, p in last.items():
            place, begins = since(index, opened)
            if (far := places.get(place)) is None:
                far = places[place] = sum(map(weight, since_place(place), _NOTHING))
            if (begin := words.get(begins)) is None:
                begin = words[begins] = sum(map(weight, since_words(begins), _NOTHING))
            stay = p / (1 + exp(min(30.0, score + far + begin)))
            opens += p - stay
            stays[opened] = stay
        stays[index] = chance[index] = opens
        last = _followed(stays, index)
    return chance


def _followed(last: dict[int, float], index: int) -> dict[int, float]:
    """Drop places that are too far back or too unlikely; the next place gets their probability."""
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
    """List the features of the pattern of sentences `first` to `after`, which decide its kind.

    `row` has the features of its first sentence; `before` is the kind of the pattern before it.
    """
    role, count = sentences[first].role, after - first
    features = [
        *row, f"k={before}", f"k-role={role} {before}", f"k-count={min(count, 6)}",
        f"k-count={min(count, 3)}{role}", f"k-?={sentences[after - 1].text[-1:] == '?'}",
    ]  # fmt: skip
    for each in sentences[first + 1 : min(after, first + 3)]:
        features.append(f"k-next={each.role}")
        features += [f"k-t={topic}" for topic in each.topics]
    topics = frozenset[str]().union(*(each.topics for each in sentences[first:after]))
    return features + [f"k-any={topic}" for topic in topics]


Granularity = Literal["pattern", "cue"]

# Sizes are in UTF-8 bytes, since a Chinese character holds about as much as three Latin ones.
MIN_OPEN = 200  # inside a paragraph: smallest size of the open pattern
MIN_ROOM = 250  # inside a paragraph: smallest size of the rest of the paragraph
MIN_OPEN_WEAK = 150  # weak cue: smallest size of the open pattern
MIN_PARAGRAPH = 60  # weak cue: smallest size of its paragraph

AFTER_LOOP = "derivation"  # kind of the segment after a loop where no pattern opens
CYCLES = 4  # smallest number of repetitions in a loop
LONGEST_CYCLE = 64  # largest number of sentences that are repeated together

_AROUND = 100  # characters on each side by which the script is recognized
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
_OTHER = re.compile(r"[^\W\d_A-Za-z\u00aa-\u024f]")
_INSIDE = ("verification", "alternative")  # kinds that can open inside a paragraph
_BLANK_LINE = re.compile(r"\n[ \t]*\n\s*|\A\s*")
_NEWLINE = re.compile(r"\n\s*|\A\s*")
_SENTENCE_END = re.compile(r"[.!?…](?=[\s\"”’)*])|[。！？]")


class TextSegment(NamedTuple):
    """A half-open span of characters, its kind, and the cue that opened it, as in the text."""

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
        chosen = patterns(text, cues, _outside_loops(sentences, repeated))
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
    """Choose the sentences that open patterns: by the model in Latin letters, else by rules."""
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
    """Whether most letters around a position are Latin; a letter of another script counts twice."""
    around = text[max(0, position - _AROUND) : position + _AROUND]
    others = len(_OTHER.findall(around))
    return others == 0 or len(_LATIN.findall(around)) >= 2 * others


def loops(text: str, sentences: Sequence[Sentence]) -> list[range]:
    """Find the indices of sentences that repeat earlier ones at least `CYCLES` times in a row.

    Up to `LONGEST_CYCLE` sentences are repeated together; white space and case may differ. The
    first occurrence is not in the range.
    """
    table: dict[str, int] = {}
    normalized = [" ".join(text[each.start : each.end].lower().split()) for each in sentences]
    keys = np.array([table.setdefault(each, len(table)) for each in normalized])
    repeated: list[range] = []
    for cycle in range(1, min(LONGEST_CYCLE, len(keys) // (CYCLES + 1)) + 1):
        same = np.concatenate(([False], keys[cycle:] == keys[:-cycle], [False]))
        for first, after in np.flatnonzero(np.diff(same)).reshape(-1, 2).tolist():
            new = range(first + cycle, after + cycle)
            apart = all(new.stop <= old.start or old.stop <= new.start for old in repeated)
            if len(new) >= CYCLES * cycle and apart:
                repeated.append(new)
    return sorted(repeated, key=lambda loop: loop.start)


def _outside_loops(sentences: Sequence[Sentence], repeated: Sequence[range]) -> list[Sentence]:
    """Keep the sentences that are in no loop."""
    kept, after = list[Sentence](), 0
    for loop in repeated:
        kept += sentences[after : loop.start]
        after = loop.stop
    return kept + list(sentences[after:])


def by_rules(text: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Choose by rules the candidates, in order of `start`, that open a pattern.

    At the start of a paragraph a strong cue opens a pattern, unless the open pattern has the same
    kind and only lines of one sentence. A weak cue does so if the open pattern and the paragraph
    are long enough. Inside a paragraph only a strong verification or alternative does so, with
    enough text before and after it.
    """
    paragraphs = _paragraph_starts(text)
    accepted: list[Candidate] = []
    start, kind = 0, OPENING
    liners, seen = True, 0  # whether each line of text[start:seen] is a single sentence
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
            lines, seen = text[seen:here].splitlines(), here
            liners = liners and not any(_SENTENCE_END.search(line.rstrip()[:-1]) for line in lines)
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
    """Find the starts of paragraphs; in a text without blank lines each line is a paragraph."""
    starts = [match.end() for match in _BLANK_LINE.finditer(text)]
    if len(starts) == 1:
        starts = [match.end() for match in _NEWLINE.finditer(text)]
    return [0, *starts] if starts[0] else starts


def _reaches(text: str, start: int, end: int, size: int) -> bool:
    """Whether the span has at least `size` bytes without the white space at its end."""
    head = text[start : min(end, start + 2 * size)].rstrip()
    return len(head.encode("utf-8", "surrogatepass")) >= size
