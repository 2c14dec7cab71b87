"""Leave one pattern out and see whether the answer suffers: a judge that needs no other model.

2505.21765 (section 3) asks an auxiliary LLM which patterns are redundant, meaningless or harmful.
Here the policy's own success rate at the exit says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.records import Problem, Segment, Trajectory, Verdict, VerdictKind
from dto.rollouts import kept_ids, roll_out


async def judge(
    problem: Problem, trajectory: Trajectory, segments: Sequence[Segment], ctx: Context
) -> list[Verdict]:
    """A verdict on each segment between the first and the last, scored p without it - p with it.

    The opening stays, because nothing else reads like the start of a response, and the exit stays,
    because its success rate is what the version was chosen for. Of longer versions only the last
    `prune.max_segments` are judged. Both rates come from `prune.rollouts` rollouts of their own. A
    segment is worth keeping when the rate falls by more than `prune.harm` without it; else it is
    `harmful` where the rate rises by more than the estimate's margin, and `redundant` where not.
    """
    settings = ctx.recipe.prune
    exit_segment = segments[-1]
    judged = segments[1:-1][-settings.max_segments :]
    if not judged:
        return []

    async def rate_without(left_out: Segment | None) -> float:
        kept = [segment for segment in segments if segment is not left_out]
        ids = kept_ids(trajectory, kept)
        prefix, count = trajectory.prompt_ids + ids, settings.rollouts
        row = exit_segment.id if left_out is None else left_out.id
        seed = ctx.seed(row, "judge")
        return (await roll_out(prefix, problem, ctx, seed, count, written=len(ids))).p

    rate, *rates = await gather_bounded(rate_without(segment) for segment in (None, *judged))
    return [
        _verdict(segment, rate, without, ctx)
        for segment, without in zip(judged, rates, strict=True)
    ]


def _verdict(segment: Segment, rate: float, without: float, ctx: Context) -> Verdict:
    score = without - rate
    if isnan(score):
        return Verdict(segment.index, "unjudged", 0.0, False, "all rollouts failed")
    reason = f"p {rate:.2f} with it, {without:.2f} without"
    if score < -ctx.recipe.prune.harm:
        return Verdict(segment.index, "keep", score, False, reason)
    kind: VerdictKind = "harmful" if score > ctx.recipe.estimate.margin else "redundant"
    return Verdict(segment.index, kind, score, False, reason)
