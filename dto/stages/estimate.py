"""How likely is a right answer at each boundary? (2505.21765 section 3: exit probe, Monte Carlo).

tau_i = d_1 … d_i + d_exit; p_i is the share of M sampled completions that reach the gold answer.
Two estimators: `fixed`, the paper's, and `sequential`, a test that stops as soon as its stated
error allows (:class:`dto.sequential.SequentialTest`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from threading import Lock

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.recipe import EstimateSettings, Recipe
from dto.records import Decision, Dropped, ExitEstimate, Problem, Segment, Trajectory
from dto.rollouts import (
    Tally,
    roll_out,
    roll_out_until_decided,
)
from dto.runs.reader import RunReader
from dto.runs.stage import SAMPLING, Card, Group, Stage, always
from dto.sequential import MOST_BOUNDARIES, SequentialTest, clopper_pearson, share

_COMPUTING = Lock()


async def estimate(
    problem: Problem, trajectory: Trajectory, segments: Sequence[Segment], ctx: Context
) -> list[ExitEstimate] | Dropped:
    """Estimates at the boundaries of one trajectory, from the first on; its end is the last one.

    With `first_pass_only` the scan stops at the first boundary whose decision is `above`: the exit
    needs no later one. Each boundary is a test of its own with error `estimate.error`; with
    `estimate.error_scan` each gets a share of that, so that a trajectory whose boundaries all have
    p <= T - margin passes anywhere with at most that chance (`dto.sequential.share`). Boundaries
    after the 512th are then `undecided` without a rollout. `fixed` decides `above` when p exceeds
    the threshold, as the paper does, else `below`; it states no error. Departure from the paper: an
    answer counts by equivalence with the gold answer, not by containing it, and a truncated rollout
    is a failure to answer.
    """
    if trajectory.grade == "failed":
        return Dropped(trajectory.id, "failed", trajectory.reason)
    settings = ctx.recipe.estimate
    test = await asyncio.to_thread(_test, settings, len(segments))
    if not settings.first_pass_only:
        jobs = (_at_boundary(problem, trajectory, segment, ctx, test) for segment in segments)
        return await gather_bounded(jobs)
    estimates: list[ExitEstimate] = []
    for segment in segments:
        estimates.append(await _at_boundary(problem, trajectory, segment, ctx, test))
        if estimates[-1].decision == "above":
            break
    return estimates


def _test(settings: EstimateSettings, boundaries: int) -> SequentialTest:
    """The test at each of a trajectory's boundaries. Computed once for each error: takes a while.

    One thread at a time computes, since the others most likely want the same.
    """
    error = settings.error
    if settings.error_scan is not None:
        error = min(error, share(settings.error_scan, boundaries))
    with _COMPUTING:
        return SequentialTest(
            settings.threshold, settings.margin, settings.error, settings.cap, error
        )


async def _at_boundary(
    problem: Problem,
    trajectory: Trajectory,
    segment: Segment,
    ctx: Context,
    test: SequentialTest,
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
    return f"at most {rollouts} rollouts at a boundary"


def _width(recipe: Recipe) -> int:
    settings = recipe.estimate
    if settings.method == "fixed":
        return settings.rollouts
    test = SequentialTest(settings.threshold, settings.margin, settings.error, settings.cap)
    return test.rounds_to_decision(0, 0)


STAGE = Stage(
    name="estimate",
    about="Estimate p(correct) when leaving at each boundary.",
    amount=_amount,
    record=ExitEstimate,
    reads=always("segment"),
    settings=always("estimate.", *SAMPLING),
    groups=_groups,
    work=estimate,
    total=lambda run: run.count("sample"),
    card=Card(4, "exits", "train", "how likely an answer given there is right, with interval"),
    paper="2505.21765",
    width=_width,
)
