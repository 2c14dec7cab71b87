"""Leave sampled responses after fixed shares of their thinking (2504.15895 section 2, pilot study).

The policy `static` of `dto evaluate` does the same to new responses, each of which it has to sample
in full for every share. Here the responses are those of the stage sample, and only the conclusions
are generated.
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
    """A trajectory that was left after `fraction` of its thinking.

    `position` counts the response tokens that are kept, `answer_tokens` those that were generated
    after the thinking was closed there.
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
        """`trajectory/fraction`, in units of 1/10,000, padded so that ids sort in order."""
        return f"{trajectory_id}/{round(10_000 * fraction):05d}"


async def pilot(
    problem: Problem, trajectory: Trajectory, ctx: Context
) -> list[StaticExit] | Dropped:
    """Conclusions after each of `recipe.pilot.fractions` of a trajectory's thinking.

    The cut is rounded down to a token that ends a character; thinking that never closed is cut too.
    A conclusion may be as long as `sample.max_tokens` leaves. Dropped as `failed` without a
    response and as `empty_thinking` without thinking.
    """
    if trajectory.finish_reason == "failed":
        return Dropped(trajectory.id, "failed", trajectory.reason)
    start, length = trajectory.thinking_tokens.start, trajectory.thinking_tokens.length
    if length == 0:
        return Dropped(trajectory.id, "empty_thinking")
    sampling = ctx.sampling(ctx.recipe.sample.max_tokens, ctx.seed(trajectory.id, "pilot"))

    async def left(fraction: float) -> StaticExit:
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
    return await gather_bounded((left(each) for each in fractions), limit=len(fractions) or 1)


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    return (Group(row[1].id, row) for row in run.joined())


STAGE = Stage(
    name="pilot",
    about="Leave each sampled response after fixed shares of its thinking.",
    amount=lambda recipe: f"{len(recipe.pilot.fractions)} conclusions of each response",
    record=StaticExit,
    reads=always("sample"),
    settings=always("pilot.", *SAMPLING, "sample.max_tokens"),
    groups=_groups,
    work=pilot,
    total=lambda run: run.count("sample"),
    spends=False,
    step=False,
    card=Card(13, "static_exits", "train", "responses cut at shares of their thinking"),
)
