"""Judges of thinking patterns (2505.21765, section 3): one function each, of one signature.

    async def judge(problem, trajectory, segments, ctx) -> list[Verdict]

`segments` are those that an optimized trajectory keeps. The first and the last, the exit, are not
judged. A judge scores segments and prunes nothing: `redundant`, `meaningless` and `harmful` propose
a removal, the highest score first; `keep` and `unjudged` propose none. `dto.stages.prune` verifies
the removals and restores segments when a test fails.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from math import isfinite, isnan
from typing import get_args

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.errors import DtoError
from dto.records import Problem, Segment, Trajectory, Verdict, VerdictKind
from dto.rollouts import kept_ids, roll_out

Judge = Callable[[Problem, Trajectory, Sequence[Segment], Context], Awaitable[list[Verdict]]]
BUILT_IN = {"counterfactual": "dto.judges:counterfactual", "llm": "dto.llm_judge:llm"}


def check(verdicts: list[Verdict], segments: Sequence[Segment], judge: str) -> None:
    """Refuse what is not a list with at most one Verdict for each segment but the first and last.

    `judge` is the name in the recipe. Raises DtoError, which names the first that is wrong.
    """
    judged = {segment.index for segment in segments[1:-1]}
    for verdict in verdicts if isinstance(verdicts, list) else [verdicts]:
        is_verdict = isinstance(verdict, Verdict) and verdict.verdict in get_args(VerdictKind)
        if not is_verdict or not isfinite(verdict.score) or verdict.segment not in judged:
            raise DtoError(
                f"prune.judge {judge!r} returned {verdict!r}: it returns a list with at most one "
                "dto.Verdict for each of segments[1:-1]"
            )
        judged.remove(verdict.segment)


async def counterfactual(
    problem: Problem, trajectory: Trajectory, segments: Sequence[Segment], ctx: Context
) -> list[Verdict]:
    """Score each segment by the success rate at the exit: p without the segment - p with it.

    Departure from the paper: 2505.21765 asks an auxiliary LLM; this judge needs the policy alone.

    The first segment stays because nothing else reads like the start of a response. The exit stays
    because the version was chosen for its success rate. The last `prune.max_segments` of the others
    are judged. Each rate comes from `prune.rollouts` rollouts. A segment is `keep` when the rate
    without it is lower by more than `prune.harm`, `harmful` when that rate is higher by more than
    `estimate.margin`, and `redundant` otherwise.
    """
    settings = ctx.recipe.prune
    exit_segment = segments[-1]
    judged = segments[1:-1][-settings.max_segments :]
    if not judged:
        return []

    async def rate_without(omitted: Segment | None) -> float:
        ids = kept_ids(trajectory, [segment for segment in segments if segment is not omitted])
        seed = ctx.seed((omitted or exit_segment).id, "judge")
        prefix, count = trajectory.prompt_ids + ids, settings.rollouts
        return (await roll_out(prefix, problem, ctx, seed, count, written=len(ids))).p

    rate, *rates = await gather_bounded(rate_without(segment) for segment in (None, *judged))
    return [
        _verdict(segment, rate, without, ctx)
        for segment, without in zip(judged, rates, strict=True)
    ]


def _verdict(segment: Segment, rate: float, without: float, ctx: Context) -> Verdict:
    score = without - rate
    if isnan(score):
        return Verdict(segment.index, "unjudged", 0.0, reason="all rollouts failed")
    reason = f"p {rate:.2f} with it, {without:.2f} without"
    if score < -ctx.recipe.prune.harm:
        return Verdict(segment.index, "keep", score, reason=reason)
    kind: VerdictKind = "harmful" if score > ctx.recipe.estimate.margin else "redundant"
    return Verdict(segment.index, kind, score, reason=reason)
