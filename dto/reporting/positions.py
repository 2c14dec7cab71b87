"""Positions of exits in the thinking, and calibration of the confidence of trial answers.

Exits are those chosen by optimizing and those taken by exit policies.
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
    """Trials in one bin of confidence: their mean confidence and their accuracy.

    The interval of the accuracy is 95 %, clustered by problem.
    """

    trials: int
    confidence: float
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class Reliability:
    """Confidence against accuracy, over the trials of one monitor and inducer.

    `ece` is the expected calibration error (1706.04599, section 2): the mean of |accuracy -
    confidence| over ten bins of equal width, weighted by their trials; nan without trials. `bins`
    has no empty ones. `accuracy` is that of all trials.
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
    """Bin trials, given as (confidence, right, problem); a confidence of 1 is in the last bin."""
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
"""Bins of the position: each is a twentieth of the thinking."""
GIVEN = ("static", "no_thinking")
"""Policies whose settings fix the position of the exit."""


@dataclass(frozen=True, slots=True)
class ExitPositions:
    """Exits of one group, counted by position: the share of the thinking before them.

    `stage` is optimize or evaluate. For optimize, `group` is the outcome of the trajectories; for
    evaluate, it is the exit policy of `model`. `counts` has a number per twentieth of the thinking
    (an exit on a border counts in the earlier bin). `median` is a share, nan without exits.
    `without` counts trajectories or responses without an exit.
    """

    stage: str
    model: str
    group: str
    exits: int
    without: int
    median: float
    counts: tuple[int, ...]


def exit_positions(run: RunReader) -> tuple[ExitPositions, ...]:
    """Count the exits of a run; empty without optimized trajectories and early exits."""
    return (*_optimized(run), *_policy_exits(run))


def _optimized(run: RunReader) -> list[ExitPositions]:
    """Find the position of each optimized trajectory's exit in the thinking of its original."""
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


def _policy_exits(run: RunReader) -> list[ExitPositions]:
    """Divide the thinking before a policy's exit by that of the same sample without a policy.

    All exits use the same seed for a sample, so the paths agree up to the exit, except on engines
    where an interruption changes the sampled tokens.
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
    shares = positions.to_numpy()[positions.is_finite().fill_null(False).to_numpy()]
    median = float(np.median(shares)) if len(shares) else nan
    return ExitPositions(stage, model, group, len(shares), without, median, histogram(shares))


def histogram(shares: npt.ArrayLike) -> tuple[int, ...]:
    """Count shares by bin; a share on a border counts in the earlier bin."""
    places = np.clip(np.ceil(np.asarray(shares) * BINS) - 1, 0, BINS - 1)
    return tuple(np.bincount(places.astype(np.intp), minlength=BINS).tolist())


@dataclass(frozen=True, slots=True)
class TrialReliability:
    """Reliability of the trials of one model under one exit.

    Unless the exit is in `shadow` mode, a path makes no further trials after its exit. So early and
    unsure trials are overrepresented.
    """

    model: str
    exit: str
    reliability: Reliability


def trial_reliability(run: RunReader) -> tuple[TrialReliability, ...]:
    """Compute reliability by model and exit over all tasks; skip exits without graded trials."""
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
