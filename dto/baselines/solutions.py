"""First-Correct Solutions (2412.21187): where a trajectory's text first gives the right answer.

The paper lets an LLM split a response into solutions and read their answers. Ours: a solution is a
thinking pattern whose end states an answer. Nothing is generated for it, unlike for DTO's
estimates, which ask the model what it would answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from dto.context import Context
from dto.records import (
    AnswerKind,
    Dropped,
    OptimizedTrajectory,
    Problem,
    Segment,
    Trajectory,
)
from dto.runs.reader import RunReader
from dto.runs.stage import Group, always
from dto.stages import optimize
from dto.stages.optimize import conclude

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


async def solution_exit(
    problem: Problem, trajectory: Trajectory, segments: Sequence[Segment], ctx: Context
) -> int | None:
    """The boundary after the n-th right solution, n by `optimize.exit`; None: there are fewer."""
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
            return segment.index
    return None


async def _work(
    problem: Problem, trajectory: Trajectory, segments: Sequence[Segment], ctx: Context
) -> OptimizedTrajectory | Dropped:
    boundary = await solution_exit(problem, trajectory, segments, ctx)
    if boundary is None:
        detail = f"{len(segments)} segments: too few state the gold answer"
        return Dropped(trajectory.id, "no_exit", detail)
    return await conclude(problem, trajectory, segments, boundary, ctx)


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    return (Group(row[1].id, row) for row in run.joined(("segment", Segment)) if row[2])


STAGE = replace(optimize.STAGE, reads=always("segment"), groups=_groups, work=_work)
"""`optimize` with `optimize.exit` first_solution or second_solution."""
