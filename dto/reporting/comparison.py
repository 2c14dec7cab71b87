"""Accuracy against tokens for each task, model and exit, with intervals clustered by problem.

Rows graded `failed` leave the denominator; rows that an error kept out of the table count as
failed too. `truncated` rows stay in it, as not correct (the papers' convention).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isnan, nan
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
