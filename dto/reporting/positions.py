"""Where exits lie in the thinking, and whether the confidence of trial answers can be trusted.

Exits are those that optimizing chose and those that policies took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import nan

import numpy as np
import numpy.typing as npt
import polars as pl

from dto import statistics
from dto.runs.reader import RunReader
from dto.statistics import Estimate

CONFIDENCE_BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Trials whose confidence lies in one bin: its mean there, and the share of right answers.

    The interval is 95 %, clustered by problem.
    """

    trials: int
    confidence: float
    accuracy: Estimate


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
    binned: list[list[tuple[float, bool, str]]] = [[] for _ in range(CONFIDENCE_BINS)]
    for trial in trials:
        binned[min(CONFIDENCE_BINS - 1, int(trial[0] * CONFIDENCE_BINS))].append(trial)
    bins = []
    for part in filter(None, binned):
        sure, right, problems = zip(*part, strict=True)
        accuracy = statistics.proportion(right, problems)
        bins.append(Bin(len(part), sum(sure) / len(part), accuracy))
    count = len(trials)
    gap = sum(bin.trials * abs(bin.accuracy.value - bin.confidence) for bin in bins)
    return Reliability(
        monitor=monitor,
        inducer=inducer,
        confidence=confidence,
        trials=count,
        accuracy=sum(right for _, right, _ in trials) / count if count else float("nan"),
        ece=gap / count if count else float("nan"),
        bins=tuple(bins),
    )


BINS = 20
"""Twentieths of the thinking."""
GIVEN = ("static", "no_thinking")
"""Policies whose exits lie where their settings say."""


@dataclass(frozen=True, slots=True)
class ExitPositions:
    """The exits of one kind, counted by the share of the thinking that comes before them.

    `stage` is optimize or evaluate. There, `group` is the outcome of an optimized trajectory; here
    an exit policy, with its `model`. `counts` has a number for each twentieth of the thinking (an
    exit on a border belongs to the earlier one), `median` is a share (nan without exits), and
    `without` counts the trajectories or responses that did not leave.
    """

    stage: str
    model: str
    group: str
    exits: int
    without: int
    median: float
    counts: tuple[int, ...]


def exit_positions(run: RunReader) -> tuple[ExitPositions, ...]:
    """All of a run; empty where it has neither optimized trajectories nor early exits."""
    return (*_optimized(run), *_left_early(run))


def _optimized(run: RunReader) -> list[ExitPositions]:
    """The boundary that each optimized trajectory was cut at, in its original's thinking."""
    last = next((stage for stage in ("prune", "optimize") if run.table(stage).is_file()), None)
    if last is None or not (run.table("sample").is_file() and run.table("segment").is_file()):
        return []
    thinking = pl.col("thinking_tokens").struct
    start, end = (thinking.field(name).cast(pl.Int64) for name in ("start", "end"))
    cuts = run.frame("segment").select("trajectory_id", exit="index", cut="exit")
    lengths = run.frame("sample").select(trajectory_id="id", start=start, length=end - start)
    rows = (
        run.frame(last, "trajectory_id", "exit", "outcome")
        .join(cuts, on=["trajectory_id", "exit"])
        .join(lengths, on="trajectory_id")
        .select("outcome", position=(pl.col("cut") - pl.col("start")) / pl.col("length"))
        .collect(engine="streaming")
    )
    without = run.count("sample") - len(rows)
    return [
        _counted("optimize", "", str(outcome), part["position"], without)
        for (outcome,), part in sorted(rows.group_by(["outcome"]), key=lambda pair: pair[0])
    ]


def _left_early(run: RunReader) -> list[ExitPositions]:
    """Thinking until a policy left, by the thinking of the same model and sample without one.

    All exits answer a sample with the same seed, so that it is the same path up to the exit, but
    on engines that do not keep to a seed when a path is interrupted.
    """
    settings = run.recipe.evaluate
    plain = next((exit.name for exit in settings.exits if exit.policy == "none"), None)
    if not run.table("evaluate").is_file() or plain is None:
        return []
    names = ("model", "exit", "problem_id", "sample", "thinking_tokens", "exit_reason", "grade")
    rows = run.frame("evaluate", *names).filter(pl.col("grade") != "failed")
    whole = rows.filter(exit=plain).select(
        "model", "problem_id", "sample", length="thinking_tokens"
    )
    paired = (
        rows.filter(pl.col("exit") != plain)
        .join(whole, on=["model", "problem_id", "sample"])
        .select(
            "model",
            "exit",
            left=pl.col("exit_reason").is_in(["policy", "budget"]),
            position=(pl.col("thinking_tokens") / pl.col("length")).clip(0.0, 1.0),
        )
        .collect(engine="streaming")
    )
    exits = []
    for model, exit in product(settings.models, settings.exits):
        part = paired.filter(model=model, exit=exit.name)
        left = part.filter("left")["position"]
        if exit.policy not in GIVEN and len(left):
            exits.append(_counted("evaluate", model, exit.name, left, len(part) - len(left)))
    return exits


def _counted(
    stage: str, model: str, group: str, positions: pl.Series, without: int
) -> ExitPositions:
    known = positions.to_numpy()[positions.is_finite().fill_null(False).to_numpy()]
    median = float(np.median(known)) if len(known) else nan
    return ExitPositions(stage, model, group, len(known), without, median, histogram(known))


def histogram(shares: npt.ArrayLike) -> tuple[int, ...]:
    """How many shares lie in each bin; what stands on a border belongs to the bin before it."""
    places = np.clip(np.ceil(np.asarray(shares) * BINS) - 1, 0, BINS - 1)
    return tuple(np.bincount(places.astype(np.intp), minlength=BINS).tolist())


@dataclass(frozen=True, slots=True)
class TrialReliability:
    """The trials of one model under one exit.

    Unless the exit is in `shadow` mode a path that is left makes no further trials, so that early
    trials, and doubtful ones, are more than their share of a whole path would be.
    """

    model: str
    exit: str
    reliability: Reliability


def trial_reliability(run: RunReader) -> tuple[TrialReliability, ...]:
    """By model and exit, over all tasks; without the exits that made no graded trials."""
    if not run.table("evaluate").is_file():
        return ()
    trials = (
        run.frame("evaluate", "model", "exit", "problem_id", "trials")
        .filter(pl.col("trials").list.len() > 0)
        .explode("trials")
        .select(
            "model",
            "exit",
            "problem_id",
            confidence=pl.col("trials").struct.field("confidence"),
            grade=pl.col("trials").struct.field("grade"),
        )
        .filter((pl.col("grade") != "failed") & pl.col("confidence").is_between(0.0, 1.0))
        .with_columns(right=pl.col("grade") == "correct")
        .collect(engine="streaming")
    )
    reliabilities = []
    for model, exit in product(run.recipe.evaluate.models, run.recipe.evaluate.exits):
        part = trials.filter(model=model, exit=exit.name).sort("problem_id")
        if len(part):
            rows = part.select("confidence", "right", "problem_id").rows()
            settings = exit.model_dump()  # a policy may lack some of these
            monitor, inducer, confidence = (
                str(settings.get(key, "")) for key in ("monitor", "inducer", "confidence")
            )
            reliable = reliability(monitor, inducer, confidence, rows)
            reliabilities.append(TrialReliability(model, exit.name, reliable))
    return tuple(reliabilities)
