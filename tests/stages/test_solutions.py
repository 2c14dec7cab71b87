"""First-Correct Solutions: the exit is where the text first, or again, gives the right answer."""

import pytest

from dto.baselines import SOLUTIONS
from dto.records import Dropped

PATTERNS = [
    "1 plus 1 is 3. So it is 3.\n\n",
    "Wait. So it is 2.\n\n",
    "Hmm, let me see.\n\n",
    "Again it is 2.\n\n",
    "Or it is 4.\n\n",
]


@pytest.mark.parametrize(("exit", "boundary"), [("first_solution", 1), ("second_solution", 3)])
async def test_exit_after_a_right_solution(build, problem, context, exit, boundary):
    trajectory, segments = await build(PATTERNS)
    settings = {"exit": exit, "finalizations": 1}
    ctx = context(lambda text, number, j: "\\boxed{2}", optimize=settings)
    made = await SOLUTIONS.work(problem, trajectory, segments, ctx)
    assert made.exit == boundary and made.kept == tuple(range(boundary + 1))
    end = segments[boundary].exit
    assert made.token_ids[:end] == trajectory.token_ids[:end]
    assert len(ctx.engine.calls) == 1  # finding the solution costs nothing


async def test_without_a_right_solution_there_is_no_exit(build, problem, context):
    trajectory, segments = await build(PATTERNS[:3])
    ctx = context(lambda text, number, j: "\\boxed{2}", optimize={"exit": "second_solution"})
    made = await SOLUTIONS.work(problem, trajectory, segments, ctx)
    assert isinstance(made, Dropped) and made.reason == "no_exit"
