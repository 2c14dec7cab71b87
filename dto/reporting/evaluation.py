"""Accuracy against tokens for each task, model and exit, with intervals clustered by problem.

Rows graded `failed` leave the denominator; rows that an error kept out of the table count as
failed too. `truncated` rows stay in it, as not correct (the papers' convention).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isnan, nan, sqrt
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from dto import statistics
from dto.statistics import Estimate

MAX_FAILED = 0.01
"""Above this share of failed rows a comparison claims nothing."""
COLUMNS = (
    "id", "model", "exit", "problem_id", "sample", "grade", "exit_reason", "thinking_tokens",
    "answer_tokens", "trial_tokens", "tokens", "attention_flops", "model_flops",
)  # fmt: skip

Verdict = Literal["gain", "loss", "no difference shown", "too many failed"]


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One model under one exit, on one task.

    `samples` is per problem, `responses` all that have a grade; means are over those. `accuracy` is
    avg@samples, `pass_at_samples` the chance that one of a problem's samples is right, `pass_at_1`
    the mean over problems. `tokens_mean` includes trial tokens. `efficiency` is
    (accuracy / accuracy_base) / (tokens / tokens_base), so the base has 1. Intervals are 95 %.
    `accuracy_completed` is over the `completed` responses alone, those not truncated: which these
    are is the arm's own doing (the short and easy ones), so it compares no two arms.
    `truncated` and `failed` count responses. Seconds are of one response under the run's load.
    Figures that have no value are nan, null in JSON.
    """

    task: str
    model: str
    exit: str
    problems: int
    samples: int
    responses: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    completed: int
    accuracy_completed: float
    accuracy_completed_low: float
    accuracy_completed_high: float
    pass_at_1: float
    pass_at_samples: float
    tokens_mean: float
    tokens_low: float
    tokens_high: float
    thinking_tokens_mean: float
    answer_tokens_mean: float
    trial_tokens_mean: float
    efficiency: float
    efficiency_low: float
    efficiency_high: float
    attention_flops_mean: float
    model_flops_mean: float
    seconds_p50: float
    seconds_p95: float
    truncated: int
    failed: int
    exit_reasons: dict[str, int]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One model under one exit against the base model under none, on one task, paired by problem.

    `gain` is the difference of accuracies, `tokens_ratio` the quotient of tokens; intervals are
    95 %, over problems.
    """

    model: str
    exit: str
    gain: float
    gain_low: float
    gain_high: float
    tokens_ratio: float
    tokens_ratio_low: float
    tokens_ratio_high: float
    problems: int
    verdict: Verdict
    task: str = ""


class Arm:
    """The rows of one model under one exit on a task; `expected` responses were asked for."""

    def __init__(
        self, model: str, exit: str, rows: pl.DataFrame, expected: int, task: str = ""
    ) -> None:
        self.task = task
        self.model = model
        self.exit = exit
        self.all = rows
        self.graded = rows.filter(pl.col("grade") != "failed")
        self.expected = max(expected, len(rows))

    @property
    def failed(self) -> int:
        """Responses without a grade, those included that are not in the table."""
        return self.expected - len(self.graded)

    @cached_property
    def problems(self) -> list[str]:
        """The problem of each graded response."""
        return self.graded["problem_id"].to_list()

    @cached_property
    def correct(self) -> npt.NDArray[np.float64]:
        """Whether each is right."""
        return (self.graded["grade"] == "correct").to_numpy().astype(np.float64)

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """A numeric column of the graded responses."""
        return self.graded[name].cast(pl.Float64).to_numpy()

    def mean(self, name: str) -> float:
        """Its mean; nan where nothing was graded."""
        values = self.column(name)
        return float(values.mean()) if len(values) else nan


def arms(rows: pl.DataFrame, expected: Mapping[str, int]) -> list[Arm]:
    """Split an evaluation table (COLUMNS, `seconds` and `task`) by task, model and exit.

    `expected` responses were asked for by each arm of a task.
    """
    return [
        Arm(str(model), str(exit), part, expected.get(str(task), 0), str(task))
        for (task, model, exit), part in rows.group_by(
            ["task", "model", "exit"], maintain_order=True
        )
    ]


def base_arm(found: Iterable[Arm], base_exit: str, task: str) -> Arm | None:
    """What everything on a task is compared with: the base model that thinks to its own end."""
    asked = (task, "base", base_exit)
    return next((arm for arm in found if (arm.task, arm.model, arm.exit) == asked), None)


def report_row(arm: Arm, base: Arm | None) -> ReportRow:
    """The figures of one arm."""
    accuracy = statistics.proportion(arm.correct, arm.problems)
    ended = (arm.graded["grade"] != "truncated").to_numpy()
    completed = statistics.proportion(
        arm.correct[ended], [arm.problems[place] for place in np.flatnonzero(ended)]
    )
    tokens = statistics.mean(arm.column("tokens"), arm.problems)
    samples = int(arm.all.group_by("problem_id").len()["len"].max() or 0)  # type: ignore[arg-type]
    seconds = arm.graded["seconds"]
    reasons = arm.all["exit_reason"].value_counts().sort("exit_reason")
    efficiency = Estimate(nan, nan, nan, 0, 0)
    if base is arm:
        efficiency = Estimate(1.0, 1.0, 1.0, len(arm.problems), accuracy.problems)
    elif base is not None:
        efficiency = statistics.efficiency(
            arm.correct, arm.column("tokens"), arm.problems,
            base.correct, base.column("tokens"), base.problems,
        )  # fmt: skip
    return ReportRow(
        task=arm.task,
        model=arm.model,
        exit=arm.exit,
        problems=accuracy.problems,
        samples=samples,
        responses=len(arm.graded),
        accuracy=accuracy.value,
        accuracy_low=accuracy.low,
        accuracy_high=accuracy.high,
        completed=completed.samples,
        accuracy_completed=completed.value,
        accuracy_completed_low=completed.low,
        accuracy_completed_high=completed.high,
        pass_at_1=statistics.pass_at_k(arm.correct, arm.problems, 1).value,
        pass_at_samples=statistics.pass_at_k(arm.correct, arm.problems, max(1, samples)).value,
        tokens_mean=tokens.value,
        tokens_low=tokens.low,
        tokens_high=tokens.high,
        thinking_tokens_mean=arm.mean("thinking_tokens"),
        answer_tokens_mean=arm.mean("answer_tokens"),
        trial_tokens_mean=arm.mean("trial_tokens"),
        efficiency=efficiency.value,
        efficiency_low=efficiency.low,
        efficiency_high=efficiency.high,
        attention_flops_mean=arm.mean("attention_flops"),
        model_flops_mean=arm.mean("model_flops"),
        seconds_p50=_quantile(seconds, 0.5),
        seconds_p95=_quantile(seconds, 0.95),
        truncated=int((arm.graded["grade"] == "truncated").sum()),
        failed=arm.failed,
        exit_reasons=dict(reasons.iter_rows()),
    )


def compare(arm: Arm, base: Arm) -> Comparison:
    """Accuracy and tokens of one arm against the base's, by the problems that both answered."""
    gain = statistics.paired_difference(arm.correct, arm.problems, base.correct, base.problems)
    ratio = tokens_ratio(arm, base)
    verdict: Verdict = "no difference shown"
    if any(side.failed > MAX_FAILED * side.expected for side in (arm, base)):
        verdict = "too many failed"
    elif gain.low > 0:
        verdict = "gain"
    elif gain.high < 0:
        verdict = "loss"
    return Comparison(
        arm.model,
        arm.exit,
        gain.value,
        gain.low,
        gain.high,
        ratio.value,
        ratio.low,
        ratio.high,
        gain.problems,
        verdict,
        arm.task,
    )


def tokens_ratio(arm: Arm, base: Arm) -> Estimate:
    """Mean tokens of an arm over those of the base, with a bootstrap over the shared problems."""
    means = [
        side.graded.group_by("problem_id").agg(pl.col("tokens").mean().alias(name))
        for side, name in ((arm, "arm"), (base, "base"))
    ]
    shared = means[0].join(means[1], on="problem_id").sort("problem_id")
    if shared.is_empty():
        return Estimate(nan, nan, nan, 0, 0)
    sums_PX = shared.select("arm", "base").to_numpy()
    low, high = statistics.bootstrap(sums_PX, lambda totals: totals[:, 0] / totals[:, 1])
    total, total_base = sums_PX.sum(0)
    value = float(total / total_base) if total_base else nan
    return Estimate(value, low, high, len(arm.graded) + len(base.graded), len(shared))


def _quantile(seconds: pl.Series, share: float) -> float:
    value = seconds.quantile(share, interpolation="linear") if len(seconds) else None
    return nan if value is None or isnan(value) else float(value)


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


ALL_TASKS = "all tasks"
PASS_RATES = ("0 %", "1–50 %", "51–99 %", "100 %")
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
    for bin in PASS_RATES:
        part = bins.filter(bin=bin)
        if part.is_empty():
            continue
        held = _within(base, part)
        if held.graded.is_empty():
            continue
        for arm in arms:
            own = held if arm is base else _within(arm, part)
            rows.append(_difficulty_row(bin, own, held))
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
            bin=pl.when(rate == 0).then(pl.lit(PASS_RATES[0]))
            .when(rate <= 0.5).then(pl.lit(PASS_RATES[1]))
            .when(rate < 1).then(pl.lit(PASS_RATES[2]))
            .otherwise(pl.lit(PASS_RATES[3]))
        )
    )  # fmt: skip


def _within(arm: Arm, part: pl.DataFrame) -> Arm:
    """The arm's rows whose problem and half are in `part`."""
    rows = arm.all.with_columns(half=pl.col("sample") % 2)
    rows = rows.join(part, on=["problem_id", "half"], how="semi")
    missing = arm.expected - len(arm.all)  # rows that are not in the table are in no bin
    share = len(rows) / max(1, len(arm.all))
    return Arm(arm.model, arm.exit, rows, len(rows) + round(missing * share), arm.task)


def _difficulty_row(bin: str, arm: Arm, base: Arm) -> DifficultyRow:
    accuracy = statistics.proportion(arm.correct, arm.problems)
    gain = ratio = Estimate(nan, nan, nan, 0, 0)
    if arm is not base:
        units = _units(arm).join(_units(base), on=["problem_id", "half"], suffix="_base")
        units = units.sort("problem_id", "half")
        ratio = _tokens_ratio(units)
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


def _tokens_ratio(units: pl.DataFrame) -> Estimate:
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
