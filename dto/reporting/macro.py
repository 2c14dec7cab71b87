"""The mean over tasks, in which each task counts once, as the papers give it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

from dto.reporting.comparison import Comparison, ReportRow
from dto.statistics import Estimate


@dataclass(frozen=True, slots=True)
class AverageRow:
    """One model under one exit: means of the figures that `ReportRow` and `Comparison` have.

    `tokens_ratio` is the mean of the tasks' quotients, as 2504.15895 (table 1) averages its
    compression rates: a task with long responses has no more say than another. The base has gain 0
    and ratio 1; nan where a task has no figure. Intervals are 95 %, for these tasks, not for
    others like them.
    """

    model: str
    exit: str
    tasks: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    accuracy_completed: float
    gain: float
    gain_low: float
    gain_high: float
    tokens_mean: float
    tokens_ratio: float
    tokens_ratio_low: float
    tokens_ratio_high: float
    attention_flops_mean: float
    model_flops_mean: float


def is_base(row: ReportRow | AverageRow, plain: str) -> bool:
    """Whether all others are compared with this row: the base under the exit `plain`."""
    return (row.model, row.exit) == ("base", plain)


def averages(
    rows: Sequence[ReportRow], comparisons: Sequence[Comparison], base_exit: str
) -> tuple[AverageRow, ...]:
    """The mean of each model under each exit; none where there is one task.

    `base_exit` is the exit under which the model `base` is what all are compared with.

    An arm that lacks a task has no mean: it would be over other tasks than the others'.
    """
    tasks = list(dict.fromkeys(row.task for row in rows))
    if len(tasks) < 2:
        return ()
    compared = {(each.model, each.exit, each.task): each for each in comparisons}
    found = []
    for model, exit in dict.fromkeys((row.model, row.exit) for row in rows):
        own = [row for row in rows if (row.model, row.exit) == (model, exit)]
        if len(own) < len(tasks):
            continue
        against = [compared.get((model, exit, row.task)) for row in own]
        accuracy = average([_estimate(row, "accuracy") for row in own])
        base = is_base(own[0], base_exit)
        gain, ratio = (
            average([_against(each, name, itself if base else nan) for each in against])
            for name, itself in (("gain", 0.0), ("tokens_ratio", 1.0))
        )
        found.append(
            AverageRow(
                model, exit, len(tasks),
                accuracy.value, accuracy.low, accuracy.high,
                _mean(own, "accuracy_completed"),
                gain.value, gain.low, gain.high,
                _mean(own, "tokens_mean"),
                ratio.value, ratio.low, ratio.high,
                _mean(own, "attention_flops_mean"),
                _mean(own, "model_flops_mean"),
            )
        )  # fmt: skip
    return tuple(found)


def _against(comparison: Comparison | None, name: str, otherwise: float) -> Estimate:
    """What is compared with nothing is the base itself, or has no base."""
    if comparison is None:
        return Estimate(otherwise, otherwise, otherwise, 0, 0)
    if comparison.verdict == "too many failed":
        return Estimate(nan, nan, nan, 0, 0)
    return _estimate(comparison, name)


def _estimate(row: ReportRow | Comparison, name: str) -> Estimate:
    value, low, high = (getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
    return Estimate(value, low, high, 0, row.problems)


def _mean(rows: Sequence[ReportRow], name: str) -> float:
    return float(sum(getattr(row, name) for row in rows)) / len(rows)


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent figures, each counting once: that of several tasks.

    Each end of the interval lies as far from the mean as the ends of the parts, their distances
    added in quadrature (Zou & Donner 2008): so lopsided intervals may be averaged too. nan where a
    part has no value or no interval, and without parts.
    """
    count = len(estimates)
    if not count:
        return Estimate(nan, nan, nan, 0, 0)
    value = sum(each.value for each in estimates) / count
    below = sqrt(sum((each.value - each.low) ** 2 for each in estimates)) / count
    above = sqrt(sum((each.high - each.value) ** 2 for each in estimates)) / count
    samples, problems = (
        sum(getattr(e, name) for e in estimates) for name in ("samples", "problems")
    )
    return Estimate(value, value - below, value + above, samples, problems)
