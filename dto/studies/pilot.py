"""Cut sampled responses after fixed shares of their thinking (2504.15895 section 2, pilot study).

The policy `static` of `dto evaluate` does the same with new responses, but samples each of them in
full for every share. Here the responses come from the stage sample, and only the conclusions are
generated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import floor

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.exits.path import ResponsePath
from dto.records import Dropped, Grade, Problem, Trajectory
from dto.runs.reader import RunReader
from dto.runs.stage import SAMPLING, Card, Group, Stage, always
from dto.stages.evaluate import grade_response


@dataclass(frozen=True, slots=True)
class StaticExit:
    """A trajectory that is cut after `fraction` of its thinking.

    `position` counts the kept response tokens, `answer_tokens` the tokens generated after closing
    the thinking there.
    """

    id: str  # trajectory id / percent
    trajectory_id: str
    problem_id: str
    fraction: float
    position: int
    grade: Grade
    answer: str
    reason: str
    answer_tokens: int

    @staticmethod
    def make_id(trajectory_id: str, fraction: float) -> str:
        """Return `trajectory/fraction`, in units of 1/10,000, padded so that ids sort in order."""
        return f"{trajectory_id}/{round(10_000 * fraction):05d}"


async def pilot(
    problem: Problem, trajectory: Trajectory, ctx: Context
) -> list[StaticExit] | Dropped:
    """Generate a conclusion after each of `recipe.pilot.fractions` of a trajectory's thinking.

    The cut is rounded down to a token that ends a character; unclosed thinking is cut too. The
    conclusion can use the tokens left of `sample.max_tokens`. A trajectory without a response is
    dropped as `failed`, one without thinking as `empty_thinking`.
    """
    if trajectory.finish_reason == "failed":
        return Dropped(trajectory.id, "failed", trajectory.reason)
    start, length = trajectory.thinking_tokens.start, trajectory.thinking_tokens.length
    if length == 0:
        return Dropped(trajectory.id, "empty_thinking")
    sampling = ctx.sampling(ctx.recipe.sample.max_tokens, ctx.seed(trajectory.id, "pilot"))

    async def exit_at(fraction: float) -> StaticExit:
        cut = start + floor(fraction * length)
        path = ResponsePath(trajectory.prompt_ids, ctx, sampling)
        path.ids = list(trajectory.token_ids[:cut])
        response = await path.concluded(cut)
        graded = await grade_response(response, problem, ctx)
        return StaticExit(
            id=StaticExit.make_id(trajectory.id, fraction),
            trajectory_id=trajectory.id,
            problem_id=problem.id,
            fraction=fraction,
            position=cut,
            grade=graded.grade,
            answer=graded.answer,
            reason=graded.reason,
            answer_tokens=len(response.answer_ids),
        )

    fractions = sorted(set(ctx.recipe.pilot.fractions))
    return await gather_bounded(map(exit_at, fractions), limit=len(fractions) or 1)


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    return (Group(row[1].id, row) for row in run.joined())


STAGE = Stage(
    name="pilot",
    about="Cut each sampled response after fixed shares of its thinking.",
    amount=lambda recipe: f"{len(recipe.pilot.fractions)} conclusions per response",
    record=StaticExit,
    reads=always("sample"),
    settings=always("pilot.", *SAMPLING, "sample.max_tokens"),
    groups=_groups,
    work=pilot,
    total=lambda run: run.count("sample"),
    spends=False,
    step=False,
    card=Card(13, "static_exits", "train", "responses cut after fixed shares of their thinking"),
)
