"""Can a chain's origin be told from its format? A classifier that sees format, and never length.

If it can, a judge may learn the format instead of what makes reasoning concise. Features are
presences and rates: headings, numbering, markup, mentions of questions, white space, and the first
and the last words. A second classifier sees the length alone: what a judge has to beat.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, log, nan

import numpy as np
import numpy.typing as npt

from dto import statistics
from dto.drqa.wording import BARE, Wording, wording
from dto.languages import DEFAULT, Languages
from dto.records import derive
from dto.statistics import Estimate

FOLDS = 5
ENDS = 3
"""Words at either end that the classifier sees."""
SEEN = 5
"""How often a word stands at its place before it is a feature."""
BOUND = 0.60
"""What the upper end of the interval may be: above it the format is said to tell the origin."""
_RIDGE = 1.0

_WORD = re.compile(r"[A-Za-z]+|\d+|[\u4e00-\u9fff]|[^\w\s]")
_FORMAT = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^[ \t]*#{1,6}\s",
        r"\*\*|__",
        r"^[ \t]*[-*•]\s",
        r"`",
        r"\\boxed|\\fbox",
        r"</?think>",
        r"\n",
        r"\n\s*\n",
        r"[^\S\n]{2,}|\t",
        r"^\s|\s\Z",
    )
)
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Probe:
    """How well something tells `positive` chains from `negative` ones: 0.5 is not at all.

    Scores are cross-fitted over problems: no chain is scored by a classifier that has seen a chain
    of its problem. The interval of 95 % is a bootstrap over problems; nan for fewer than two.
    """

    auc: float
    low: float
    high: float
    positive: int
    negative: int

    @property
    def tells(self) -> bool:
        """Whether the interval reaches above the bound."""
        return self.high > BOUND


def format_probe(
    texts: Sequence[str],
    positive: Sequence[bool],
    problems: Sequence[str],
    languages: Languages = DEFAULT,
) -> Probe:
    """Tells chains apart by their format, without their length."""
    return _probe(format_features(texts, languages), positive, problems)


def length_probe(
    lengths: Sequence[int], positive: Sequence[bool], problems: Sequence[str]
) -> Probe:
    """The same by length alone."""
    return _probe(_of_length(lengths), positive, problems)


def length_accuracy(
    lengths: Sequence[int], verdicts: Sequence[str], problems: Sequence[str]
) -> Estimate:
    """How often the length alone gives the right one of three verdicts: the judge's baseline."""
    features = _of_length(lengths)
    fold_N = _folds(problems)
    names = sorted(set(verdicts))
    scores_NV = np.stack(
        [_cross_fitted(features, np.array([v == name for v in verdicts], float), fold_N)
         for name in names],
        axis=1,
    )  # fmt: skip
    right = [names[best] == verdict
             for best, verdict in zip(scores_NV.argmax(1), verdicts, strict=True)]  # fmt: skip
    return statistics.proportion(right, problems)


def format_features(texts: Sequence[str], languages: Languages = DEFAULT) -> Matrix:
    """(N, F): for each pattern its presence and its rate per word, then the words at both ends."""
    words = [_WORD.findall(text) or [""] for text in texts]
    columns = []
    for counts in zip(*(_counts(text, wording(languages)) for text in texts), strict=True):
        count_N = np.array(counts, float)
        columns += [count_N > 0, count_N / [len(each) for each in words]]
    for place in (*range(ENDS), *range(-ENDS, 0)):
        at = [each[place] if -len(each) <= place < len(each) else "" for each in words]
        columns += [
            np.array([word == seen for word in at])
            for seen, count in sorted(Counter(at).items())
            if SEEN <= count < len(texts)
        ]
    return np.stack([np.asarray(column, float) for column in columns], axis=1)


def _counts(text: str, words: Wording) -> list[int]:
    return [
        *(len(pattern.findall(text)) for pattern in (*_FORMAT, words.titles, words.nouns, BARE)),
        sum(1 for _ in words.mentions(text)),
        sum(1 for _ in words.other_mentions(text)),
    ]


def _of_length(lengths: Sequence[int]) -> Matrix:
    logs = np.array([log(max(1, length)) for length in lengths])
    return np.stack([logs, logs**2], axis=1)


def _probe(features_NF: Matrix, positive: Sequence[bool], problems: Sequence[str]) -> Probe:
    label_N = np.array(positive, float)
    count = int(label_N.sum())
    if not 0 < count < len(label_N):
        return Probe(nan, nan, nan, count, len(label_N) - count)
    fold_N = _folds(problems)
    score_N = _cross_fitted(features_NF, label_N, fold_N)
    clusters = {problem: i for i, problem in enumerate(dict.fromkeys(problems))}
    cluster_N = np.array([clusters[problem] for problem in problems])

    def auc(draws_RP: Matrix) -> Matrix:
        return _auc(score_N, label_N, fold_N, draws_RP[:, cluster_N])

    each_once = np.eye(len(clusters))
    (value,) = auc(each_once.sum(0)[None])
    low, high = statistics.bootstrap(each_once, auc) if len(clusters) > 1 else (nan, nan)
    return Probe(float(value), low, high, count, len(label_N) - count)


def _folds(problems: Sequence[str]) -> npt.NDArray[np.intp]:
    """A fold for each row, the same for all of a problem."""
    return np.array([derive(0, problem, "probe") % FOLDS for problem in problems], np.intp)


def _cross_fitted(features_NF: Matrix, label_N: Matrix, fold_N: npt.NDArray[np.intp]) -> Matrix:
    """The log odds of each row, by a logistic regression on the other folds."""
    score_N = np.zeros(len(label_N))
    for fold in range(FOLDS):
        held = fold_N == fold
        if not held.any() or held.all():
            continue
        centre, spread = features_NF[~held].mean(0), features_NF[~held].std(0)
        scaled = (features_NF - centre) / np.where(spread > 0, spread, 1.0)
        weights = _logistic(scaled[~held], label_N[~held])
        score_N[held] = weights[0] + scaled[held] @ weights[1:]
    return score_N


def _logistic(features_NF: Matrix, label_N: Matrix) -> Matrix:
    """Weights (1 + F), intercept first, of a logistic regression with a ridge: Newton's steps."""
    design = np.concatenate([np.ones((len(label_N), 1)), features_NF], axis=1)
    ridge = np.full(design.shape[1], _RIDGE)
    ridge[0] = 1e-6
    weights: Matrix = np.zeros(design.shape[1])
    for _ in range(50):
        p_N = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (label_N - p_N) - ridge * weights
        curvature = (design * (p_N * (1 - p_N))[:, None]).T @ design + np.diag(ridge)
        step: Matrix = np.linalg.solve(curvature, gradient)
        weights = weights + step
        if np.abs(step).max() < 1e-8:
            break
    return weights


def _auc(
    score_N: Matrix, label_N: Matrix, fold_N: npt.NDArray[np.intp], weight_RN: Matrix
) -> Matrix:
    """(R,): the chance that a positive row scores above a negative one of the same fold.

    Ties count half. Scores of different folds come from different classifiers: to compare them
    would bias the figure downwards.
    """
    above_R = np.zeros(len(weight_RN))
    pairs_R = np.zeros(len(weight_RN))
    for fold in range(FOLDS):
        first, second = (np.flatnonzero((fold_N == fold) & (label_N == kind)) for kind in (1, 0))
        rounded_N = np.round(score_N, 12)
        gap_PN = np.sign(rounded_N[first, None] - rounded_N[None, second])
        first_R, second_RN = weight_RN[:, first], weight_RN[:, second]
        above_R += ((first_R @ ((gap_PN + 1) / 2)) * second_RN).sum(1)
        pairs_R += first_R.sum(1) * second_RN.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        auc: Matrix = above_R / pairs_R
    return auc


def told(probe: Probe) -> str:
    """The figure with its interval."""
    if isnan(probe.auc):
        return "–"
    return f"{probe.auc:.3f} ({probe.low:.3f}–{probe.high:.3f})"
