"""Where does an arm gain: on the problems that the base finds easy, or on the hard ones?

A problem is as hard as the base model's pass rate says, over n samples. The same samples must not
set the rate and be compared by it: problems on which the base was unlucky would land among the hard
ones, and any other answers to them, the base's own included, would look like a gain (regression to
the mean). So each half of the samples is binned by the other: odd samples by the rate of the even
ones, and the other way round, for every arm alike, since sample j of all arms has the same seed.
With no true difference the expected gain in every bin is 0. What it costs is sharpness: the rate
comes from half of the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan, nan

import polars as pl

from dto import statistics
from dto.reporting.comparison import MAX_FAILED, Arm
from dto.statistics import Estimate

ALL_TASKS = "all tasks"
BINS = ("0 %", "1–50 %", "51–99 %", "100 %")
"""Pass rates of 0, in (0, 1/2], in (1/2, 1), and of 1."""


@dataclass(frozen=True, slots=True)
class DifficultyRow:
    """One model under one exit on the problems of one bin.

    A problem stands in two bins where its halves disagree; intervals are clustered by problem all
    the same. Gain and ratio are against the base on the same samples; nan for the base itself.
    """

    task: str
    bin: str
    model: str
    exit: str
    problems: int
    responses: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    gain: float
    gain_low: float
    gain_high: float
    tokens_mean: float
    tokens_ratio: float
    tokens_ratio_low: float
    tokens_ratio_high: float


def by_difficulty(arms: Sequence[Arm], base: Arm) -> list[DifficultyRow]:
    """The figures of all arms of a task, bin by bin; none where the base has one sample each."""
    bins = _bins(base)
    rows = []
    for bin in BINS:
        part = bins.filter(bin=bin)
        if part.is_empty():
            continue
        held = _within(base, part)
        if held.graded.is_empty():
            continue
        for arm in arms:
            own = held if arm is base else _within(arm, part)
            rows.append(_row(bin, own, held))
    return rows


def over_tasks(arms: Sequence[Arm], bases: Sequence[Arm]) -> list[DifficultyRow]:
    """The same over the problems of all tasks together; none where there is one task."""
    if len(bases) < 2:
        return []
    base = _together(bases)
    names = dict.fromkeys((arm.model, arm.exit) for arm in arms)
    joined = [
        base
        if (base.model, base.exit) == name
        else _together([arm for arm in arms if (arm.model, arm.exit) == name])
        for name in names
    ]
    return by_difficulty(joined, base)


def _together(parts: Sequence[Arm]) -> Arm:
    rows = pl.concat([part.all for part in parts])
    expected = sum(part.expected for part in parts)
    return Arm(parts[0].model, parts[0].exit, rows, expected, ALL_TASKS)


def _bins(base: Arm) -> pl.DataFrame:
    """`problem_id`, the `half` of its samples that is looked at, the `bin` the other half gives."""
    rate = pl.col("rate")
    return (
        base.graded.group_by("problem_id", half=1 - pl.col("sample") % 2)
        .agg(rate=(pl.col("grade") == "correct").mean())
        .with_columns(
            bin=pl.when(rate == 0).then(pl.lit(BINS[0]))
            .when(rate <= 0.5).then(pl.lit(BINS[1]))
            .when(rate < 1).then(pl.lit(BINS[2]))
            .otherwise(pl.lit(BINS[3]))
        )
    )  # fmt: skip


def _within(arm: Arm, part: pl.DataFrame) -> Arm:
    """The arm's rows whose problem and half are in `part`."""
    rows = arm.all.with_columns(half=pl.col("sample") % 2)
    rows = rows.join(part, on=["problem_id", "half"], how="semi")
    missing = arm.expected - len(arm.all)  # rows that are not in the table are in no bin
    share = len(rows) / max(1, len(arm.all))
    return Arm(arm.model, arm.exit, rows, len(rows) + round(missing * share), arm.task)


def _row(bin: str, arm: Arm, base: Arm) -> DifficultyRow:
    accuracy = statistics.proportion(arm.correct, arm.problems)
    gain = ratio = Estimate(nan, nan, nan, 0, 0)
    if arm is not base:
        units = _units(arm).join(_units(base), on=["problem_id", "half"], suffix="_base")
        units = units.sort("problem_id", "half")
        ratio = _ratio(units)
        if not any(side.failed > MAX_FAILED * side.expected for side in (arm, base)):
            differences = (units["right"] - units["right_base"]).to_numpy()
            gain = statistics.mean(differences, units["problem_id"].to_list())
            if not isnan(gain.low):  # few problems give more than there can be
                gain = replace(gain, low=max(-1.0, gain.low), high=min(1.0, gain.high))
    return DifficultyRow(
        arm.task, bin, arm.model, arm.exit, accuracy.problems, len(arm.graded),
        accuracy.value, accuracy.low, accuracy.high, gain.value, gain.low, gain.high,
        arm.mean("tokens"), ratio.value, ratio.low, ratio.high,
    )  # fmt: skip


def _units(arm: Arm) -> pl.DataFrame:
    """What is compared: the mean of each half of each problem's samples.

    Halves count alike, not problems: one whose halves are both in the bin would else count less
    than two halves of others, and which those are depends on the answers that are looked at.
    """
    return arm.graded.group_by("problem_id", "half").agg(
        right=(pl.col("grade") == "correct").mean(), tokens=pl.col("tokens").mean()
    )


def _ratio(units: pl.DataFrame) -> Estimate:
    """Tokens over the base's, with a bootstrap over problems."""
    if units.is_empty():
        return Estimate(nan, nan, nan, 0, 0)
    sums = units.group_by("problem_id", maintain_order=True).agg(
        pl.col("tokens").sum(), pl.col("tokens_base").sum()
    )
    sums_PX = sums.select("tokens", "tokens_base").to_numpy()
    low, high = statistics.bootstrap(sums_PX, lambda totals: totals[:, 0] / totals[:, 1])
    total, total_base = sums_PX.sum(0)
    return Estimate(float(total / total_base) if total_base else nan, low, high, 0, len(sums))
