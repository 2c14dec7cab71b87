"""Estimate p(right answer) at each boundary (2505.21765 section 3: exit probe, Monte Carlo).

tau_i = d_1 … d_i + d_exit; p_i is the share of M sampled completions that reach the gold answer.
There are two estimators: `fixed` is the paper's; `sequential` is a test that stops as soon as its
stated error allows (:class:`dto.sequential.SequentialTest`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.recipe import EstimateSettings, Recipe
from dto.records import Decision, Dropped, ExitEstimate, Problem, Segment, Trajectory
from dto.rollouts import Tally, roll_out, roll_out_until_decided
from dto.runs.reader import RunReader
from dto.runs.stage import SAMPLING, Card, Group, Stage, always
from dto.sequential import MOST_BOUNDARIES, SequentialTest, clopper_pearson, share

_COMPUTING = Lock()
_TESTS: dict[tuple[float, ...], SequentialTest] = {}


async def estimate(
    problem: Problem, trajectory: Trajectory, segments: Sequence[Segment], ctx: Context
) -> list[ExitEstimate] | Dropped:
    """Estimate p at the boundaries of one trajectory, in order; its end is the last boundary.

    With `first_pass_only` the scan stops at the first boundary that is decided `above`, since the
    exit needs no later one. Each boundary has its own test with error `estimate.error`. With
    `estimate.error_scan`, the tests share that error: a trajectory whose boundaries all have
    p <= T - margin passes somewhere with at most this probability (`dto.sequential.share`).
    Boundaries after the 512th are then `undecided` without rollouts. `fixed` decides `above` if p
    exceeds the threshold, as in the paper, else `below`; it states no error. Departure from the
    paper: an answer is right if it is equivalent to the gold answer, not if it contains it, and a
    truncated rollout counts as a failure.
    """
    if trajectory.grade == "failed":
        return Dropped(trajectory.id, "failed", trajectory.reason)
    settings = ctx.recipe.estimate
    test = await _test(settings, len(segments))
    if not settings.first_pass_only:
        jobs = (_at_boundary(problem, trajectory, segment, ctx, test) for segment in segments)
        return await gather_bounded(jobs)
    estimates: list[ExitEstimate] = []
    for segment in segments:
        estimates.append(await _at_boundary(problem, trajectory, segment, ctx, test))
        if estimates[-1].decision == "above":
            break
    return estimates


async def _test(settings: EstimateSettings, boundaries: int) -> SequentialTest:
    """The sequential test for each boundary of a trajectory, computed once for each error.

    Computing takes a while. One thread computes at a time, since others mostly need the same test.
    """
    error = settings.error
    if settings.error_scan is not None:
        error = min(error, share(settings.error_scan, boundaries))
    key = settings.threshold, settings.margin, settings.error, settings.cap, error
    if key not in _TESTS:
        _TESTS[key] = await asyncio.to_thread(_computed, *key)
    return _TESTS[key]


def _computed(*key: Any) -> SequentialTest:
    with _COMPUTING:
        return SequentialTest(*key)


async def _at_boundary(
    problem: Problem, trajectory: Trajectory, segment: Segment, ctx: Context, test: SequentialTest
) -> ExitEstimate:
    settings = ctx.recipe.estimate
    prefix = trajectory.prompt_ids + trajectory.token_ids[: segment.exit]
    seed = ctx.seed(segment.id, "estimate")
    decision: Decision
    if settings.error_scan is not None and segment.index >= MOST_BOUNDARIES:
        reason = f"estimate.error_scan tests {MOST_BOUNDARIES} boundaries of a trajectory"
        tally, decision = Tally(reason=reason), "undecided"
    elif settings.method == "sequential":
        tally, decision = await roll_out_until_decided(
            prefix, problem, ctx, seed, test, segment.exit
        )
    else:
        tally = await roll_out(prefix, problem, ctx, seed, settings.rollouts, written=segment.exit)
        decision = "above" if tally.p > settings.threshold else "below"
        if not tally.trials:
            decision = "undecided"
    low, high = clopper_pearson(tally.successes, tally.trials)
    return ExitEstimate(
        id=segment.id,
        trajectory_id=trajectory.id,
        boundary=segment.index,
        rollouts=tally.rollouts,
        successes=tally.successes,
        truncated=tally.truncated,
        failed=tally.failed,
        p=tally.p,
        p_low=low,
        p_high=high,
        decision=decision,
        tokens=tally.tokens,
        reason=tally.reason,
    )


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    rows = run.joined(("segment", Segment))
    return (Group(row[1].id, row) for row in rows if row[2])


def _amount(recipe: Recipe) -> str:
    sequential = recipe.estimate.method == "sequential"
    rollouts = recipe.estimate.cap if sequential else recipe.estimate.rollouts
    return f"at most {rollouts} rollouts per boundary"


def _width(recipe: Recipe) -> int:
    settings = recipe.estimate
    if settings.method == "fixed":
        return settings.rollouts
    test = SequentialTest(settings.threshold, settings.margin, settings.error, settings.cap)
    return test.rounds_to_decision(0, 0)


STAGE = Stage(
    name="estimate",
    about="Estimate p(correct) of an exit at each boundary.",
    amount=_amount,
    essential="trajectories",
    record=ExitEstimate,
    reads=always("segment"),
    settings=always("estimate.", *SAMPLING),
    groups=_groups,
    work=estimate,
    total=lambda run: run.count("sample"),
    card=Card(4, "exits", "train", "p(right answer) at each boundary, with its interval"),
    paper="2505.21765",
    width=_width,
)
