"""A linear model of where thinking patterns open, and of their kinds, for text in Latin letters.

The probability that a sentence opens a pattern is a logistic function of its features
(`dto.segmentation.features`), which include how far back the last boundary lies. That one is itself
uncertain, so the probabilities of all places for it go along from sentence to sentence; a boundary
is where the total is at least `threshold`. The kind is the best of one linear function a kind.

The weights in `weights.toml` are those that `benchmarks/patterns.py` writes: logistic regression
on sentences of real traces that readers marked. No other language than English was read, and no
other questions than puzzles in words.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import repeat
from math import exp
from typing import NamedTuple

from dto.segmentation.features import Sentence, describe, since

KINDS = (
    "understanding", "plan", "derivation", "verification", "alternative", "summary", "conclusion",
)  # fmt: skip
WINDOW = 10  # sentences back that the last boundary can lie
_NOTHING = repeat(0.0)
LEAST = 0.02  # probability of a place for it that is still followed


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
def load() -> Weights:
    """The weights that are shipped."""
    data = tomllib.loads(files(__package__).joinpath("weights.toml").read_text(encoding="utf-8"))
    boundary = {name: value / 100 for name, value in data["boundary"].items()}
    kinds = {name: [value / 100 for value in values] for name, values in data["kinds"].items()}
    return Weights(data["threshold"], boundary, kinds)


def openings(sentences: Sequence[Sentence], weights: Weights | None = None) -> list[Opening]:
    """The sentences that open a pattern, without the first."""
    weights = weights or load()
    rows = describe(sentences)
    found: list[Opening] = []
    kind = "opening"
    for index, p in enumerate(chances(sentences, rows, weights.boundary)):
        if p >= weights.threshold:
            kind = kind_of(rows[index], kind, weights.kinds)
            found.append(Opening(index, kind, p))
    return found


def chances(
    sentences: Sequence[Sentence], rows: Sequence[Sequence[str]], weights: Mapping[str, float]
) -> list[float]:
    """For each sentence the probability that it opens a pattern; 0 for the first."""
    found = [0.0] * len(sentences)
    weight = weights.get
    last = {0: 1.0}  # sentence that opened the open pattern: probability
    for index in range(1, len(sentences)):
        score = sum(map(weight, rows[index], _NOTHING))
        opens, stays = 0.0, {}
        for opened, p in last.items():
            extra = sum(map(weight, since(sentences, index, opened), _NOTHING))
            chance = _logistic(score + extra)
            opens += p * chance
            stays[opened] = p * (1 - chance)
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


def kind_features(row: Sequence[str], before: str) -> list[str]:
    """What the kind of a pattern depends on: the sentence that opens it, and the kind before."""
    role = next(name for name in row if name.startswith("role="))
    return [*row, f"k={before}", f"k-{role}{before}"]


def kind_of(row: Sequence[str], before: str, weights: Mapping[str, Sequence[float]]) -> str:
    """The kind of the pattern that a sentence with these features opens."""
    known = [weights[name] for name in kind_features(row, before) if name in weights]
    scores = [sum(column) for column in zip(*known, strict=True)] or [1.0]
    return KINDS[scores.index(max(scores))]


def _logistic(score: float) -> float:
    return 1 / (1 + exp(-max(-30.0, min(30.0, score))))
