"""Accuracy and tokens of every arm (a model under an exit): by task, over tasks, by difficulty.

Rows graded `failed` leave the denominator, and so do rows that an error kept out of the table.
`truncated` rows stay in it and count as not correct (the papers' convention). Intervals are 95 %,
clustered by problem.

Difficulty of a problem is the pass rate of the base model over n samples. The same samples must not
set the rate and be compared by it: problems on which the base was unlucky would count as hard, and
any other answers to them, even the base's own, would look like a gain (regression to the mean). So
each half of the samples is binned by the other half: odd samples by the rate of the even ones, and
the reverse. This holds for every arm, since sample j has the same seed in all arms. Without a true
difference the expected gain in every bin is 0. The price is resolution: the rate comes from half of
the samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isnan, nan, sqrt
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from dto import statistics
from dto.statistics import NOTHING, Estimate

MAX_FAILED = 0.01
"""Above this share of failed rows no comparison is reported."""
COLUMNS = (
    "id", "model", "exit", "problem_id", "sample", "grade", "exit_reason", "thinking_tokens",
    "answer_tokens", "trial_tokens", "tokens", "attention_flops", "model_flops",
)  # fmt: skip
PASS_RATES = ("0 %", "1–50 %", "51–99 %", "100 %")
"""Bins of the pass rate: 0, (0, 1/2], (1/2, 1) and 1."""

Verdict = Literal["", "base", "gain", "loss", "no difference shown", "too many failed"]


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one arm: a model under an exit, on a task, in a bin, or with k questions a prompt.

    `responses` counts graded responses, `truncated` those of them that ran out of tokens, `failed`
    the responses without a grade. `accuracy` is a share of samples, `tokens` the mean per response
    including trials. `gain` is the accuracy minus the base's, `ratio` the quotient of
    tokens, both paired by problem; None for the base and where no comparison is possible.
    `verdict` interprets the gain; "base" marks the reference arm.

    `more` holds figures that only some arms have. For an arm on a task: `samples` per problem;
    `completed`, the accuracy over responses that are not truncated (each arm completes other
    responses, mostly short and easy ones, so this does not compare arms); `pass_at_1`, the mean
    over problems; `pass_at_samples`, the probability that at least one sample of a problem is
    right; `efficiency` (:func:`dto.statistics.efficiency`; 1 for the base); means of
    `thinking_tokens`, `answer_tokens`, `trial_tokens`, `attention_flops` and `model_flops`;
    `seconds_p50` and `seconds_p95` per response under the load of the run; `exit_reasons`. Unknown
    figures are nan, null in JSON.
    """

    task: str
    model: str
    exit: str
    problems: int
    responses: int
    truncated: int
    failed: int
    accuracy: Estimate
    tokens: Estimate
    gain: Estimate | None = None
    ratio: Estimate | None = None
    verdict: Verdict = ""
    bin: str = ""
    k: int = 1
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arm(self) -> tuple[str, str]:
        """Model and exit."""
        return self.model, self.exit


class Arm:
    """Rows of one model under one exit on a task; `expected` counts the requested responses."""

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
        """Number of responses without a grade, including those missing from the table."""
        return self.expected - len(self.graded)

    @property
    def truncated(self) -> int:
        """Number of responses that ran out of tokens."""
        return int((self.graded["grade"] == "truncated").sum())

    @cached_property
    def problems(self) -> list[str]:
        """Problem id of each graded response."""
        return self.graded["problem_id"].to_list()

    @cached_property
    def correct(self) -> npt.NDArray[np.float64]:
        """1.0 for each graded response that is correct, else 0.0."""
        return (self.graded["grade"] == "correct").to_numpy().astype(np.float64)

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """Return a numeric column of the graded responses."""
        return self.graded[name].cast(pl.Float64).to_numpy()

    def figures(self, **comparison: Any) -> Figures:
        """Compute the figures of the arm itself; `comparison` sets further fields."""
        accuracy = statistics.proportion(self.correct, self.problems)
        return Figures(
            task=self.task,
            model=self.model,
            exit=self.exit,
            problems=accuracy.problems,
            responses=len(self.graded),
            truncated=self.truncated,
            failed=self.failed,
            accuracy=accuracy,
            tokens=statistics.mean(self.column("tokens"), self.problems),
            **comparison,
        )


def evaluate(arm: Arm, base: Arm | None) -> Figures:
    """Compute the figures of one arm, compared with the base on the problems both answered."""
    completed = (arm.graded["grade"] != "truncated").to_numpy()
    samples = int(arm.all.group_by("problem_id").len()["len"].max() or 0)  # type: ignore[arg-type]
    right = (arm.correct, arm.problems)
    efficiency, gain, ratio, verdict = NOTHING, None, None, ""
    if base is arm:
        efficiency, verdict = (
            Estimate(1.0, 1.0, 1.0, len(arm.problems), len({*arm.problems})),
            "base",
        )
    elif base is not None:
        efficiency = statistics.efficiency(
            arm.correct, arm.column("tokens"), arm.problems,
            base.correct, base.column("tokens"), base.problems,
        )  # fmt: skip
        gain = statistics.paired_difference(*right, base.correct, base.problems)
        ratio = tokens_ratio(arm, base)
        verdict = "gain" if gain.low > 0 else "loss" if gain.high < 0 else "no difference shown"
        if too_many_failed(arm, base):
            verdict = "too many failed"
    means = ("thinking_tokens", "answer_tokens", "trial_tokens", "attention_flops", "model_flops")
    return arm.figures(
        gain=gain,
        ratio=ratio,
        verdict=verdict,
        more={
            "samples": samples,
            "completed": statistics.proportion(
                arm.correct[completed], [arm.problems[row] for row in np.flatnonzero(completed)]
            ),
            "pass_at_1": statistics.pass_at_k(*right, 1).value,
            "pass_at_samples": statistics.pass_at_k(*right, max(1, samples)).value,
            "efficiency": efficiency,
            **{name: statistics.mean(arm.column(name), arm.problems).value for name in means},
            "seconds_p50": _quantile(arm.graded["seconds"], 0.5),
            "seconds_p95": _quantile(arm.graded["seconds"], 0.95),
            "exit_reasons": dict(arm.all["exit_reason"].value_counts().sort("exit_reason").rows()),
        },
    )


def too_many_failed(*arms: Arm) -> bool:
    """Return whether more than `MAX_FAILED` of the responses of any arm failed."""
    return any(arm.failed > MAX_FAILED * arm.expected for arm in arms)


def tokens_ratio(arm: Arm, base: Arm) -> Estimate:
    """Divide the mean tokens of an arm by the base's; bootstrap over their shared problems."""
    means = [
        side.graded.group_by("problem_id").agg(pl.col("tokens").mean().alias(name))
        for side, name in ((arm, "arm"), (base, "base"))
    ]
    shared = means[0].join(means[1], on="problem_id").sort("problem_id")
    samples = len(arm.graded) + len(base.graded)
    return statistics.ratio(shared.select("arm", "base").to_numpy(), samples)


def _quantile(seconds: pl.Series, share: float) -> float:
    value = seconds.quantile(share, interpolation="linear") if len(seconds) else None
    return nan if value is None or isnan(value) else float(value)


def averages(rows: Sequence[Figures]) -> tuple[Figures, ...]:
    """Average each model under each exit over tasks; empty with a single task.

    Each task counts once, as in the papers: `ratio` is the mean of the tasks' quotients, as
    2504.15895 (table 1) averages its compression rates. Intervals hold for these tasks, not for
    other tasks like them. An arm that misses a task has no mean, since it would not be comparable
    with the other arms. `more` has the number of `tasks`.
    """
    tasks = list(dict.fromkeys(row.task for row in rows))
    if len(tasks) < 2:
        return ()
    means = []
    for model, exit in dict.fromkeys(row.arm for row in rows):
        parts = [row for row in rows if row.arm == (model, exit)]
        if len(parts) < len(tasks):
            continue
        base = all(row.verdict == "base" for row in parts)
        gain, ratio = (
            average([
                getattr(row, name) if row.verdict not in ("", "too many failed") else NOTHING
                for row in parts
            ])
            for name in ("gain", "ratio")
        ) if not base else (None, None)  # fmt: skip
        means.append(
            Figures(
                "mean", model, exit,
                problems=sum(row.problems for row in parts),
                responses=sum(row.responses for row in parts),
                truncated=sum(row.truncated for row in parts),
                failed=sum(row.failed for row in parts),
                accuracy=average([row.accuracy for row in parts]),
                tokens=average([row.tokens for row in parts]),
                gain=gain,
                ratio=ratio,
                verdict="base" if base else "",
                more={"tasks": len(tasks)},
            )
        )  # fmt: skip
    return tuple(means)


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Average independent estimates, each with weight 1, such as those of several tasks.

    The distances from value to interval end are added in quadrature, for each end separately
    (Zou & Donner 2008), so asymmetric intervals can be averaged too. nan without estimates and
    where one has no value or no interval.
    """
    count = len(estimates)
    if not count:
        return NOTHING
    value = sum(part.value for part in estimates) / count
    below = sqrt(sum((part.value - part.low) ** 2 for part in estimates)) / count
    above = sqrt(sum((part.high - part.value) ** 2 for part in estimates)) / count
    samples = sum(part.samples for part in estimates)
    problems = sum(part.problems for part in estimates)
    return Estimate(value, value - below, value + above, samples, problems)


def minus(whole: float, part: Estimate) -> Estimate:
    """Subtract an estimate from an exact value; the ends of its interval swap."""
    value, low, high = whole - part.value, whole - part.high, whole - part.low
    return replace(part, value=value, low=low, high=high)


def by_difficulty(arms: Sequence[Arm], base: Arm) -> list[Figures]:
    """Compute the figures of all arms of a task by bin; empty if the base has one sample a problem.

    A problem whose halves disagree is in two bins; intervals are still clustered by problem. Gain
    and ratio are against the base on the same samples.
    """
    bins = _bins(base)
    rows = []
    for bin in PASS_RATES:
        part = bins.filter(bin=bin)
        if part.is_empty():
            continue
        base_part = _within(base, part)
        if base_part.graded.is_empty():
            continue
        for arm in arms:
            rows.append(_in_bin(bin, base_part if arm is base else _within(arm, part), base_part))
    return rows


def difficulty(arms: Sequence[Arm], base: tuple[str, str]) -> list[Figures]:
    """Compute figures by difficulty over the problems of all tasks; `base` is (model, exit)."""
    names = dict.fromkeys((arm.model, arm.exit) for arm in arms)
    joined = {
        name: _together([arm for arm in arms if (arm.model, arm.exit) == name]) for name in names
    }
    return by_difficulty([*joined.values()], joined[base]) if base in joined else []


def _together(parts: Sequence[Arm]) -> Arm:
    rows = pl.concat([part.all for part in parts])
    expected = sum(part.expected for part in parts)
    task = parts[0].task if len(parts) == 1 else "all tasks"
    return Arm(parts[0].model, parts[0].exit, rows, expected, task)


def _bins(base: Arm) -> pl.DataFrame:
    """Return `problem_id`, `half` of its samples, and its `bin` by the rate of the other half."""
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
    """Keep the rows of the arm whose problem and half are in `part`."""
    rows = arm.all.with_columns(half=pl.col("sample") % 2)
    rows = rows.join(part, on=["problem_id", "half"], how="semi")
    missing = arm.expected - len(arm.all)  # rows that are not in the table are in no bin
    share = len(rows) / max(1, len(arm.all))
    return Arm(arm.model, arm.exit, rows, len(rows) + round(missing * share), arm.task)


def _in_bin(bin: str, arm: Arm, base: Arm) -> Figures:
    gain = ratio = None
    if arm is not base:
        units = _units(arm).join(_units(base), on=["problem_id", "half"], suffix="_base")
        units = units.sort("problem_id", "half")
        sums = units.group_by("problem_id", maintain_order=True).agg(
            pl.col("tokens").sum(), pl.col("tokens_base").sum()
        )
        if len(sums):
            ratio = statistics.ratio(sums.select("tokens", "tokens_base").to_numpy())
        if not too_many_failed(arm, base):
            differences = (units["right"] - units["right_base"]).to_numpy()
            gain = statistics.mean(differences, units["problem_id"].to_list())
            if not isnan(gain.low):  # with few problems the interval can exceed the range of a gain
                gain = replace(gain, low=max(-1.0, gain.low), high=min(1.0, gain.high))
    return arm.figures(gain=gain, ratio=ratio, verdict="base" if arm is base else "", bin=bin)


def _units(arm: Arm) -> pl.DataFrame:
    """Average each half of each problem's samples: the unit of comparison.

    Halves have equal weight, not problems. Otherwise a problem with both halves in the bin would
    weigh less per half than others, and which problems those are depends on the compared answers.
    """
    return arm.graded.group_by("problem_id", "half").agg(
        right=(pl.col("grade") == "correct").mean(), tokens=pl.col("tokens").mean()
    )
