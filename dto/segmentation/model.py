"""A linear model of where thinking patterns open, and of their kinds, for text in Latin letters.

The probability that a sentence opens a pattern is a logistic function of its features
(`dto.segmentation.features`), which include how far back the last boundary lies. That one is itself
uncertain, so the probabilities of all places for it go along from sentence to sentence; a boundary
is where the total is at least `threshold`. The kind is the best of one linear function a kind.

The weights in `weights.toml` are those that `benchmarks/patterns/learn.py` writes: logistic
regression on sentences of real traces that readers marked. No other language than English was read,
and no other questions than puzzles in words.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise, repeat
from math import exp
from typing import NamedTuple

from dto.segmentation import OPENING
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
