"""Leave at the first good boundary and conclude (2505.21765 section 3: threshold to finalize).

The exits `first_solution` and `second_solution` are those of First-Correct Solutions (2412.21187):
where a trajectory's text first gives the right answer. That paper lets an LLM split a response into
solutions and read their answers. Ours: a solution is a thinking pattern whose end states an answer.
Nothing is generated for it, unlike for DTO's estimates, which ask the model what it would answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from dto.context import Context
from dto.protocols import Graded
from dto.recipe import Recipe
from dto.records import (
    AnswerKind,
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

_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_STATED = re.compile(r"(?:\bis\b|\bbe\b|=|是|为|為)\s*[:：]?\s*([^=是为為]+)$")
_END = ".。!！ \t"
MAX_STATED = 100
"""Characters: what is longer is a sentence, not an answer."""


def stated(
    text: str, final_answer: Callable[[str, AnswerKind], str | None], kind: AnswerKind = "math"
) -> str | None:
    """The answer that a pattern ends with, or None.

    What `final_answer`, the grader's, finds anywhere in it; else what follows the last "is", "be",
    "=", "是" or "为" of its last sentence. A rule of thumb: what counts is only whether it equals
    the gold one.
    """
    answer = final_answer(text, kind)
    if answer is not None:
        return answer
    sentences = [part for part in _SENTENCE.split(text.strip()) if part.strip()]
    if not sentences:
        return None
    found = _STATED.search(sentences[-1].rstrip(_END))
    answer = found.group(1).strip(" *$") if found else ""
    return answer if 0 < len(answer) <= MAX_STATED else None


async def solution_exits(
    problem: Problem, trajectory: Trajectory, segments: Sequence[Segment], ctx: Context
) -> list[int]:
    """The boundary after the n-th right solution, n by `optimize.exit`; empty: there are fewer."""
    wanted = {"first_solution": 1, "second_solution": 2}[ctx.recipe.optimize.exit]
    for segment in segments:
        text = trajectory.text[slice(*segment.chars)]
        answer = stated(text, ctx.grader.final_answer, problem.answer_kind)
        if answer is None:
            continue
        boxed = f"\\boxed{{{answer}}}"
        graded = await ctx.grader.grade_conclusion(
            boxed, problem.answer, problem.answer_kind, problem.question
        )
        wanted -= graded.grade == "correct"
        if not wanted:
            return [segment.index]
    return []


async def optimize(
    problem: Problem,
    trajectory: Trajectory,
    segments: Sequence[Segment],
    estimates: Sequence[ExitEstimate],
    ctx: Context,
) -> OptimizedTrajectory | Dropped:
    """The trajectory up to its first boundary decided `above`, finalized by the policy.

    Dropped with reason `no_exit` when no boundary passed, or as `finalize` says. Departure from
    the paper: what is kept is a token prefix of the model's own sample, exact but for punctuation
    that is one token with the text put after it (:mod:`dto.joins`). With
    `optimize.exit` first_solution or second_solution the exit is the end of that right solution
    (`dto.stages.optimize`), and `estimates` is not looked at.
    """
    if ctx.recipe.optimize.exit == "estimate":
        passed = [row.boundary for row in estimates if row.decision == "above"]
        detail = f"none of {len(estimates)} boundaries is above {ctx.recipe.estimate.threshold}"
    else:
        passed = await solution_exits(problem, trajectory, segments, ctx)
        detail = f"{len(segments)} segments: too few state the gold answer"
    if not passed:
        return Dropped(trajectory.id, "no_exit", detail)
    kept = segments[: min(passed) + 1]
    return await finalize(problem, trajectory, kept, ctx, ctx.seed(trajectory.id, "finalize"))


async def finalize(
    problem: Problem, trajectory: Trajectory, kept: Sequence[Segment], ctx: Context, seed: int
) -> OptimizedTrajectory | Dropped:
    """Put d_finalize after `kept`, sample K completions, and keep the shortest correct one.

    `pass_rate` is the share of the completions that were correct, failed ones left out; one that
    ran out of tokens is not correct. Dropped as `no_room` (the context is full), `failed` (all K
    requests failed) or `no_correct_finalization`.
    """
    settings = ctx.recipe.optimize
    start, tags = len(trajectory.prompt_ids), ctx.tags
    prefix = trajectory.prompt_ids + kept_ids(trajectory, kept)
    joined = ctx.join(prefix, ctx.text("finalize"), fixed=start)
    prompt = prefix[: joined.kept] + joined.inserted
    head = prompt[start:]
    room = ctx.engine.context - len(prompt)
    if room < 1:
        detail = f"{len(prompt):,} tokens to finalize, context is {ctx.engine.context:,}"
        return Dropped(trajectory.id, "no_room", detail)
    sampling = ctx.sampling(min(settings.max_tokens, room), seed, written=len(head))
    completions = await ctx.engine.complete(prompt, sampling, settings.finalizations)
    counted = 0
    correct: list[tuple[tuple[int, ...], Reading, Graded]] = []
    for completion in completions:
        response = head + completion.token_ids
        reading, graded = await read_and_grade(
            problem,
            trajectory.prompt_ids,
            response,
            completion.finish_reason,
            completion.error,
            ctx.tokenizer,
            ctx.grader,
            tags,
        )
        counted += graded.grade != "failed"
        if graded.grade == "correct":
            correct.append((response, reading, graded))
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
    segments = ("segment", Segment)
    if ctx.recipe.optimize.exit == "estimate":
        rows = (row for row in run.joined(segments, ("estimate", ExitEstimate)) if row[3])
    else:
        rows = ((*row, []) for row in run.joined(segments) if row[2])
    return (Group(row[1].id, row) for row in rows)


def _reads(recipe: Recipe) -> tuple[str, ...]:
    return ("estimate",) if recipe.optimize.exit == "estimate" else ("segment",)


STAGE = Stage(
    name="optimize",
    about="Leave at the first good exit; finalize the answer.",
    amount=lambda recipe: f"{recipe.optimize.finalizations} completions of each good exit",
    record=OptimizedTrajectory,
    reads=_reads,
    settings=always("optimize.", *SAMPLING),
    groups=_groups,
    work=optimize,
    total=lambda run: run.count("sample"),
    card=Card(5, "finalized", "train", "trajectories truncated at their exit, concluded"),
)
