"""Learn where thinking patterns open, and write `dto/segmentation/weights.toml`.

    python -m benchmarks.patterns.learn [--check]

Reads the traces and the two readers' labels in ../shared/data (`traces-en.jsonl`,
`patterns-dev.jsonl`), and `labels.jsonl` beside this file: passages of 82 other traces of the same
collection, marked by a language model after the same guide (CC0; offsets alone, no text). `row`,
`start` and `end` say which characters of which trace were read; the first sentence of a passage is
not marked.

Logistic regression with an L2 penalty, on features of sentences that occur often enough; a sentence
that two readers marked counts once for each, one of `labels.jsonl` half as much. The last boundary
that the features look back to is the reader's own. The weights are rounded to hundredths.
"""

from __future__ import annotations

import argparse
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations_with_replacement, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dto.segmentation.features import (
    BoundaryDistances,
    Sentence,
    describe,
    since_place,
    since_words,
    split,
)
from dto.segmentation.patterns import KINDS, Weights, chances, of_pattern

SHARED = Path(__file__).parents[2] / "../shared/data"
LABELS = Path(__file__).with_name("labels.jsonl")
WEIGHTS = Path(__file__).parents[2] / "dto/segmentation/weights.toml"

LEAST, KIND_LEAST = 25, 15  # marked sentences, counted once a reader, that have a feature
PENALTY, KIND_PENALTY = 80.0, 15.0
SMALL = 3  # hundredths: a feature whose weights are all smaller is left out
READER_C = "reader c"  # how densely it marks is its own
OWN_WEIGHT = 0.5  # of a sentence of labels.jsonl
OF_KIND = frozenset([  # templates of features
    "bias", "1", "2", "core", "par", "?", "role", "t", "t-role", "-t", "+t", "-role", "end",
    "end-conclude", "ask", "w", "last", "k", "k-role", "k-count", "k-?", "k-next", "k-t", "k-any",
])  # fmt: skip
THRESHOLDS = tuple(round(0.22 + 0.01 * step, 2) for step in range(20))
NAMES = dict(zip(
    ("understand", "plan", "derive", "verify", "alternative", "summary", "conclude"), KINDS,
    strict=True,
))  # fmt: skip


class Marked(NamedTuple):
    """A trace, or a passage of one: sentences `low` to `high` were marked.

    `readers[name]` maps sentences that open a pattern to kinds; `low` itself opens the passage.
    """

    row: int
    question: str
    text: str
    sentences: list[Sentence]
    features: list[list[str]]
    readers: dict[str, dict[int, str]]
    low: int
    high: int

    @property
    def both(self) -> bool:
        """Whether it is one of the traces that two readers marked: only these are scored."""
        return len(self.readers) == 2


@cache
def marked() -> tuple[Marked, ...]:
    """All that was marked. Raises OSError where the shared data are not there."""
    rows = (SHARED / "traces-en.jsonl").read_text(encoding="utf-8").split("\n")
    traces = [json.loads(row) for row in rows if row]
    found = []
    for path, readers in ((SHARED / "patterns-dev.jsonl", "ab"), (LABELS, "c")):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                label = json.loads(line)
                found.append(_marked(traces[label["row"]], label, readers))
    return tuple(found)


def _marked(trace: dict[str, Any], label: dict[str, Any], readers: str) -> Marked:
    text = trace["thinking"]
    if len(text) != label["length"] or trace["prompt_id"] != label["prompt_id"]:
        raise ValueError(f"row {label['row']} of traces-en.jsonl is not the trace that was marked")
    sentences = split(text)
    starts = [each.start for each in sentences]
    low, high = (bisect_left(starts, label.get(end, at)) for end, at in
                 (("start", 0), ("end", len(text))))  # fmt: skip
    kinds = {
        reader: {bisect_left(starts, at): NAMES[kind] for at, kind, _ in label[reader]}
        for reader in readers
    }
    return Marked(
        label["row"], label["prompt_id"], text, sentences, describe(sentences), kinds, low, high
    )


class Examples(NamedTuple):
    """Features by index in `names`, one example after another; of each its class and weight."""

    names: list[str]
    ids: np.ndarray
    example: np.ndarray  # of each entry of `ids`
    classes: np.ndarray
    weights: np.ndarray
    questions: np.ndarray


def _examples(rows: Iterator[tuple[list[str], int, float, str]]) -> Examples:
    table: dict[str, int] = {}
    ids, example, rest = [], [], []
    for number, (features, *others) in enumerate(rows):
        own = [table.setdefault(name, len(table)) for name in dict.fromkeys(features)]
        ids += own
        example += [number] * len(own)
        rest.append(others)
    classes, weights, questions = (np.array(column) for column in zip(*rest, strict=True))
    return Examples(list(table), np.array(ids), np.array(example), classes, weights, questions)


@cache
def boundary_examples() -> Examples:
    """One for each marked sentence and reader: does it open a pattern?"""

    def rows() -> Iterator[tuple[list[str], int, float, str]]:
        for one in marked():
            since = BoundaryDistances(one.sentences)
            for reader, opens in one.readers.items():
                last = one.low
                for index in range(one.low + 1, one.high):
                    place, words = since(index, last)
                    features = [*one.features[index], *since_place(place), *since_words(words)]
                    features += [READER_C] if reader == "c" else []
                    weight = OWN_WEIGHT if reader == "c" else 1.0
                    yield features, int(index in opens), weight, one.question
                    last = index if index in opens else last

    return _examples(rows())


def fit_boundary(*without: str) -> dict[str, float]:
    """The weights of a boundary, without some questions."""
    weights = fit(boundary_examples(), without, PENALTY, LEAST)
    return {name: value for name, (value,) in weights.items() if name != READER_C}


@cache
def kind_examples() -> Examples:
    """One for each boundary and reader: of which kind is it?"""

    def rows() -> Iterator[tuple[list[str], int, float, str]]:
        for one in marked():
            for reader, opens in one.readers.items():
                before = "opening"
                for index, after in pairwise([*sorted(opens), one.high]):
                    features = of_pattern(one.sentences, one.features[index], index, after, before)
                    kept = [name for name in features if name.partition("=")[0] in OF_KIND]
                    weight = OWN_WEIGHT if reader == "c" else 1.0
                    yield kept, KINDS.index(opens[index]), weight, one.question
                    before = opens[index]

    return _examples(rows())


def fit(
    examples: Examples, without: Sequence[str], penalty: float, least: int
) -> dict[str, list[float]]:
    """For each feature a weight, or one a class, without the examples of some questions."""
    kept = ~np.isin(examples.questions, list(without))
    entries = kept[examples.example]
    often = np.bincount(examples.ids[entries], minlength=len(examples.names)) >= least
    entries &= often[examples.ids]
    column = np.cumsum(often) - 1
    row = np.cumsum(kept) - 1
    ids, example = column[examples.ids[entries]], row[examples.example[entries]]
    many, wide = int(kept.sum()), int(often.sum())
    classes, weights = examples.classes[kept], examples.weights[kept]
    targets = [1] if set(examples.classes) <= {0, 1} else sorted(set(examples.classes))
    # Each kind against the rest: the best of them is taken, so they need no common scale.
    columns = [
        _logistic_regression(ids, example, many, wide, classes == target, weights, penalty)
        for target in targets
    ]
    names = [name for name, common in zip(examples.names, often, strict=True) if common]
    hundredths = [[round(100 * value) for value in each.tolist()] for each in columns]
    rows = {
        name: values
        for name, *values in zip(names, *hundredths, strict=True)
        if max(map(abs, values)) >= SMALL
    }
    return {name: [value / 100 for value in values] for name, values in rows.items()}


def _logistic_regression(
    ids: np.ndarray,
    example: np.ndarray,
    many: int,
    wide: int,
    classes: np.ndarray,
    weights: np.ndarray,
    penalty: float,
) -> np.ndarray:
    """L-BFGS with ten pairs and halved steps."""
    target = classes.astype(float)

    def value(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = np.bincount(example, w[ids], many)
        loss = weights * (np.logaddexp(0, z) - target * z)
        slope = weights * (1 / (1 + np.exp(-z)) - target)
        gradient = np.bincount(ids, slope[example], wide) + penalty * w
        return float(loss.sum() + penalty / 2 * (w * w).sum()), gradient

    w = np.zeros(wide)
    loss, gradient = value(w)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(300):
        direction = gradient.copy()
        shares = []
        for step, change in reversed(steps):
            share = (step * direction).sum() / (step * change).sum()
            shares.append(share)
            direction -= share * change
        if steps:
            step, change = steps[-1]
            direction *= (step * change).sum() / (change * change).sum()
        else:
            direction /= max(1.0, float(np.sqrt((direction * direction).sum())))
        for (step, change), share in zip(steps, reversed(shares), strict=True):
            direction += step * (share - (change * direction).sum() / (step * change).sum())
        size = 1.0
        for _ in range(30):
            new_loss, new_gradient = value(w - size * direction)
            if new_loss <= loss - 1e-4 * size * (gradient * direction).sum():
                break
            size /= 2
        steps = [*steps[-9:], (-size * direction, new_gradient - gradient)]
        gain = loss - new_loss
        w, loss, gradient = w - size * direction, new_loss, new_gradient
        if gain < 1e-8 * abs(loss):
            break
    return w


class Score(NamedTuple):
    """Precision, recall and their harmonic mean."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """2 P R / (P + R)."""
        return 2 * self.precision * self.recall / max(1e-9, self.precision + self.recall)


def pairs(found: Sequence[int], read: Sequence[int], within: int) -> list[tuple[int, int]]:
    """Offsets that lie within so many characters of each other, one to one, from left to right."""
    matched, i, j = [], 0, 0
    while i < len(found) and j < len(read):
        if abs(found[i] - read[j]) <= within:
            matched.append((found[i], read[j]))
            i, j = i + 1, j + 1
        elif found[i] < read[j]:
            i += 1
        else:
            j += 1
    return matched


def score(cases: Sequence[tuple[Sequence[int], Sequence[int]]], within: int = 12) -> Score:
    """Of (found, read) offsets of several traces taken together."""
    matched = sum(len(pairs(found, read, within)) for found, read in cases)
    return Score(
        matched / max(1, sum(len(found) for found, _ in cases)),
        matched / max(1, sum(len(read) for _, read in cases)),
    )


def offsets(one: Marked, reader: str) -> list[int]:
    """Where a reader sees patterns open, in characters of the trace."""
    return [one.sentences[index].start for index in sorted(one.readers[reader])]


def best_threshold(cases: Sequence[tuple[Marked, Sequence[float]]]) -> float:
    """The threshold with the best mean F1 against the two readers, smoothed over its neighbours."""
    means = []
    for threshold in THRESHOLDS:
        found = [
            [s.start for s, p in zip(one.sentences, chance, strict=True) if p >= threshold]
            for one, chance in cases
        ]
        means.append(np.mean([
            score([(f, offsets(one, reader)) for f, (one, _) in zip(found, cases, strict=True)]).f1
            for reader in "ab"
        ]))  # fmt: skip
    smooth = [np.mean(means[max(0, at - 1) : at + 2]) for at in range(len(means))]
    return THRESHOLDS[int(np.argmax(smooth))]


def cross_validated() -> dict[int, tuple[Weights, Marked]]:
    """For each trace of two readers the weights learned without its question.

    The threshold too: it is the best one for the other questions' traces, each under weights that
    were learned without its question and without this one.
    """
    scored = [one for one in marked() if one.both]
    questions = sorted({one.question for one in scored})
    chance: dict[tuple[str, int], list[float]] = {}  # (question left out as well, row)
    boundary: dict[str, Mapping[str, float]] = {}
    for one, other in combinations_with_replacement(questions, 2):
        weights = fit_boundary(one, other)
        if one == other:
            boundary[one] = weights
        for left_out, question in {(one, other), (other, one)}:
            for each in scored:
                if each.question == question:
                    found = chances(each.sentences, each.features, weights)
                    chance[left_out, each.row] = found
    result = {}
    for question in questions:
        others = [(one, chance[question, one.row]) for one in scored if one.question != question]
        kinds = fit(kind_examples(), (question,), KIND_PENALTY, KIND_LEAST)
        weights = Weights(best_threshold(others), boundary[question], kinds)
        result |= {one.row: (weights, one) for one in scored if one.question == question}
    return result


def learn() -> str:
    """The weights from all that was marked, as the text of `weights.toml`."""
    scored = [one for one in marked() if one.both]
    cases = []
    for question in sorted({one.question for one in scored}):
        weights = fit_boundary(question)
        cases += [
            (one, chances(one.sentences, one.features, weights))
            for one in scored
            if one.question == question
        ]
    boundary = fit_boundary()
    kinds = fit(kind_examples(), (), KIND_PENALTY, KIND_LEAST)
    lines = [
        "# Written by `python -m benchmarks.patterns.learn`; in hundredths.",
        f"threshold = {best_threshold(cases)}",
        "",
        "[boundary]",
    ]
    lines += [f"{json.dumps(name)} = {value * 100:.0f}" for name, value in sorted(boundary.items())]
    lines += ["", "[kinds] # " + ", ".join(KINDS)]
    lines += [
        f"{json.dumps(name)} = [{', '.join(f'{value * 100:.0f}' for value in values)}]"
        for name, values in sorted(kinds.items())
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the weights, or say whether they are those that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    options = parser.parse_args()
    text = learn()
    if not options.check:
        WEIGHTS.write_text(text, encoding="utf-8")
    elif text != WEIGHTS.read_text(encoding="utf-8"):
        raise SystemExit(f"{WEIGHTS} is not what these labels give")
    print(f"{len(text):,} characters")


if __name__ == "__main__":
    main()
