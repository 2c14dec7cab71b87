"""Leave at the first good boundary and conclude (2505.21765 section 3: threshold to finalize).

The exits of First-Correct Solutions are those of `dto.baselines`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from dto.context import Context
from dto.protocols import Graded
from dto.records import (
    Dropped,
    ExitEstimate,
    OptimizedTrajectory,
    Outcome,
    Problem,
    Segment,
    Trajectory,
)
from dto.rollouts import kept_ids
from dto.runs.reader import RunReader
from dto.runs.stage import SAMPLING, Card, Group, Stage, always
from dto.trajectories import Reading, read_and_grade
from dto.usage import attention_flops


async def optimize(
    problem: Problem,
    trajectory: Trajectory,
    segments: Sequence[Segment],
    estimates: Sequence[ExitEstimate],
    ctx: Context,
) -> OptimizedTrajectory | Dropped:
    """Truncate the trajectory at its first boundary decided `above`, and finalize it.

    Dropped with reason `no_exit` if no boundary passed, or with the reasons of `finalize`.
    Departure from the paper: we keep an exact token prefix of the model's own sample, except for
    punctuation that merges with the inserted text into one token (:mod:`dto.text`).
    """
    passed = [row.boundary for row in estimates if row.decision == "above"]
    if not passed:
        detail = f"none of {len(estimates)} boundaries is above {ctx.recipe.estimate.threshold}"
        return Dropped(trajectory.id, "no_exit", detail)
    return await conclude(problem, trajectory, segments, min(passed), ctx)


async def conclude(
    problem: Problem,
    trajectory: Trajectory,
    segments: Sequence[Segment],
    boundary: int,
    ctx: Context,
) -> OptimizedTrajectory | Dropped:
    """Truncate the trajectory after segment `boundary`, and finalize it."""
    seed = ctx.seed(trajectory.id, "finalize")
    return await finalize(problem, trajectory, segments[: boundary + 1], ctx, seed)


async def finalize(
    problem: Problem, trajectory: Trajectory, kept: Sequence[Segment], ctx: Context, seed: int
) -> OptimizedTrajectory | Dropped:
    """Append d_finalize to the `kept` segments, sample K completions, keep the shortest right one.

    `pass_rate` is the share of right completions. Failed requests leave the denominator; truncated
    completions do not. Dropped as `no_room` (the context is full), `failed` (all K requests failed)
    or `no_correct_finalization`.
    """
    settings = ctx.recipe.optimize
    start = len(trajectory.prompt_ids)
    prefix = trajectory.prompt_ids + kept_ids(trajectory, kept)
    joined = ctx.join(prefix, ctx.text("finalize"), fixed=start)
    prompt = prefix[: joined.kept] + joined.inserted
    head = prompt[start:]
    room = ctx.engine.context - len(prompt)
    if room < 1:
        detail = f"the prompt has {len(prompt):,} tokens, the context is {ctx.engine.context:,}"
        return Dropped(trajectory.id, "no_room", detail)
    sampling = ctx.sampling(min(settings.max_tokens, room), seed, written=len(head))
    completions = await ctx.engine.complete(prompt, sampling, settings.finalizations)
    counted = 0
    correct: list[tuple[tuple[int, ...], Reading, Graded]] = []
    for completion in completions:
        response = replace(completion, token_ids=head + completion.token_ids)
        reading, graded = await read_and_grade(
            problem, trajectory.prompt_ids, response, ctx.tokenizer, ctx.grader, ctx.tags
        )
        counted += graded.grade != "failed"
        if graded.grade == "correct":
            correct.append((response.token_ids, reading, graded))
    if not counted:
        return Dropped(trajectory.id, "failed", graded.reason)
    if not correct:
        detail = f"none of {counted} completions after boundary {kept[-1].index} is right"
        return Dropped(trajectory.id, "no_correct_finalization", detail)
    token_ids, reading, graded = min(correct, key=lambda result: len(result[0]))
    before, after = len(trajectory.token_ids), len(token_ids)
    same = token_ids == trajectory.token_ids
    outcome: Outcome = "unchanged" if same else "shortened" if after < before else "not_shorter"
    if trajectory.grade != "correct":
        outcome = "repaired"
    return OptimizedTrajectory(
        id=trajectory.id,
        trajectory_id=trajectory.id,
        problem_id=problem.id,
        exit=kept[-1].index,
        kept=tuple(segment.index for segment in kept),
        token_ids=token_ids,
        text=reading.text,
        thinking=reading.thinking,
        thinking_tokens=reading.thinking_tokens,
        answer=graded.answer,
        pass_rate=len(correct) / counted,
        tokens_before=before,
        tokens_after=after,
        attention_flops_before=attention_flops(ctx.engine.shape, 0, start + before),
        attention_flops_after=attention_flops(ctx.engine.shape, 0, start + after),
        outcome=outcome,
    )


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    rows = run.joined(("segment", Segment), ("estimate", ExitEstimate))
    return (Group(row[1].id, row) for row in rows if row[3])


STAGE = Stage(
    name="optimize",
    about="Leave at the first good exit; finalize the answer.",
    amount=lambda recipe: f"{recipe.optimize.finalizations} completions per good exit",
    record=OptimizedTrajectory,
    reads=always("estimate"),
    settings=always("optimize.", *SAMPLING),
    groups=_groups,
    work=optimize,
    total=lambda run: run.count("sample"),
    card=Card(5, "finalized", "train", "trajectories truncated at their exit and finalized"),
    paper="2505.21765",
    width=lambda recipe: recipe.optimize.finalizations,
    of_method=True,
)
