"""How far a confidence can be taken for the chance that the trial answer is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dto import statistics

BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Trials whose confidence lies in one bin: its mean there, and the share of right answers.

    The interval is 95 %, clustered by problem.
    """

    trials: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """The confidence of all trials of one monitor and inducer against their correctness.

    `ece` is the expected calibration error (1706.04599, section 2): |accuracy - confidence| over
    ten bins of equal width, weighted with their trials; nan without trials. Empty bins are left
    out. `accuracy` is that of all trials.
    """

    monitor: str
    inducer: str
    confidence: str
    trials: int
    accuracy: float
    ece: float
    bins: tuple[Bin, ...]


def reliability(
    monitor: str, inducer: str, confidence: str, trials: Sequence[tuple[float, bool, str]]
) -> Reliability:
    """From (confidence, right, problem) of each trial; a confidence of 1 is in the last bin."""
    binned: list[list[tuple[float, bool, str]]] = [[] for _ in range(BINS)]
    for trial in trials:
        binned[min(BINS - 1, int(trial[0] * BINS))].append(trial)
    bins = []
    for found in filter(None, binned):
        sure, right, problems = zip(*found, strict=True)
        accuracy = statistics.proportion(right, problems)
        bins.append(
            Bin(
                trials=len(found),
                confidence=sum(sure) / len(found),
                accuracy=accuracy.value,
                accuracy_low=accuracy.low,
                accuracy_high=accuracy.high,
            )
        )
    count = len(trials)
    gap = sum(each.trials * abs(each.accuracy - each.confidence) for each in bins)
    return Reliability(
        monitor=monitor,
        inducer=inducer,
        confidence=confidence,
        trials=count,
        accuracy=sum(right for _, right, _ in trials) / count if count else float("nan"),
        ece=gap / count if count else float("nan"),
        bins=tuple(bins),
    )


def least_off(found: Sequence[Reliability]) -> Reliability | None:
    """The one with the smallest calibration error; None where there are no trials."""
    return min((each for each in found if each.trials), key=lambda each: each.ece, default=None)
