import math

import pytest

from dto.records import Dropped, derive
from dto.rollouts import roll_out
from dto.sequential import SequentialTest
from dto.stages.estimate import estimate
from tests.stages.script import CUT, EXIT, FAIL

PATTERNS = ["one and one. ", "Wait, check. ", "So two.\n"]


def boundary(text):
    """Which boundary a rollout was asked at."""
    thinking = text.split("<think>\n")[1].split(EXIT)[0]
    return [pattern.rstrip() in thinking for pattern in PATTERNS].count(True) - 1


def replies(*table):
    """A script: one list of replies per boundary, repeated over its rollouts in order."""
    seen = [0] * len(table)

    def script(text, number, j):
        at = boundary(text)
        seen[at] += 1
        return table[at][(seen[at] - 1) % len(table[at])]

    return script


FIXED = {"method": "fixed", "rollouts": 4}


async def test_fixed_stops_at_the_first_pass(context, problem, build):
    trajectory, segments = await build(PATTERNS)
    ctx = context(replies(["2}", "3}"], ["2}"], ["2}"]), estimate=FIXED)
    rows = await estimate(problem, trajectory, segments, ctx)
    assert [(row.boundary, row.decision, row.p) for row in rows] == [
        (0, "below", 0.5),
        (1, "above", 1.0),
    ]
    assert [row.id for row in rows] == [segment.id for segment in segments[:2]]
    first, second = ctx.engine.calls
    assert first[0].endswith("one and one." + EXIT)
    assert second[0].endswith("Wait, check." + EXIT)
    assert first[1].seed == derive(7, segments[0].id, "estimate")
    assert rows[0].tokens == 8 and rows[0].p_low < 0.5 < rows[0].p_high


async def test_fixed_at_every_boundary(context, problem, build):
    trajectory, segments = await build(PATTERNS)
    settings = {**FIXED, "first_pass_only": False}
    ctx = context(replies(["2}"], ["3}"], ["2}"]), estimate=settings)
    rows = await estimate(problem, trajectory, segments, ctx)
    assert [row.decision for row in rows] == ["above", "below", "above"]


async def test_p_at_the_threshold_does_not_pass(context, problem, build):
    trajectory, segments = await build(PATTERNS[:1])
    ctx = context(replies(["2}", "2}", "2}", "3}"]), estimate=FIXED)
    (row,) = await estimate(problem, trajectory, segments, ctx)
    assert (row.p, row.decision) == (0.75, "below")


async def test_truncated_is_no_success_and_failed_leaves_the_denominator(context, problem, build):
    trajectory, segments = await build(PATTERNS[:1])
    ctx = context(replies(["2}", "2" + CUT, FAIL, "2}"]), estimate=FIXED)
    (row,) = await estimate(problem, trajectory, segments, ctx)
    assert (row.rollouts, row.successes, row.truncated, row.failed) == (4, 2, 1, 1)
    assert row.p == pytest.approx(2 / 3) and row.reason == "engine on fire"


@pytest.mark.parametrize("method", ["fixed", "sequential"])
async def test_all_failed_is_undecided_and_says_why(context, problem, build, method):
    trajectory, segments = await build(PATTERNS[:1])
    ctx = context(replies([FAIL]), estimate={"method": method})
    (row,) = await estimate(problem, trajectory, segments, ctx)
    assert (row.decision, row.reason) == ("undecided", "engine on fire")
    assert math.isnan(row.p) and (row.p_low, row.p_high) == (0.0, 1.0)


async def test_sequential_samples_no_rollout_in_vain(context, problem, build):
    trajectory, segments = await build(PATTERNS)
    ctx = context(replies(["3}"], ["2}", "2}", "3}", "2}"], ["2}"]))
    rows = await estimate(problem, trajectory, segments, ctx)
    settings = ctx.recipe.estimate
    test = SequentialTest(settings.threshold, settings.margin, settings.error, settings.cap)
    assert rows[-1].decision == "above" and rows[0].decision == "below"
    for row, outcomes in zip(rows, ["0", "1101", "1"], strict=False):
        successes = [int(outcomes[i % len(outcomes)]) for i in range(row.rollouts)]
        assert row.successes == sum(successes)
        decisions = [test.decide(sum(successes[:n]), n) for n in range(row.rollouts + 1)]
        assert decisions[-1] == row.decision
        assert decisions[:-1] == [None] * row.rollouts


async def test_sequential_seeds_count_on_over_the_rounds(context, problem, build):
    trajectory, segments = await build(PATTERNS[:1])
    ctx = context(replies(["2}"]))
    (row,) = await estimate(problem, trajectory, segments, ctx)
    used = [sampling.seed + j for _, sampling, n in ctx.engine.calls for j in range(n)]
    first = derive(7, segments[0].id, "estimate")
    assert used == [first + i for i in range(row.rollouts)]


async def test_failed_rollouts_are_replaced_up_to_a_bound(context, problem, build):
    trajectory, segments = await build(PATTERNS[:1])
    ctx = context(replies([FAIL, "2}"]))
    (row,) = await estimate(problem, trajectory, segments, ctx)
    assert row.decision == "above" and row.failed and row.p == 1.0
    ctx = context(replies([FAIL, FAIL, "2}"]), estimate={"cap": 12})
    (row,) = await estimate(problem, trajectory, segments, ctx)
    assert row.decision == "undecided" and row.failed <= 24


async def test_result_does_not_depend_on_the_number_of_calls(context, problem, build):
    trajectory, _ = await build(PATTERNS)
    outcomes = "2332232"

    def script(text, number, j):
        seed = ctx.engine.calls[number][1].seed + j
        return outcomes[seed % 7] + "}"

    ctx = context(script)
    prefix = trajectory.prompt_ids
    at_once = await roll_out(prefix, problem, ctx, 70, 12)
    parts = None
    for count in (5, 4, 3):
        more = () if parts is None else (parts,)
        parts = await roll_out(prefix, problem, ctx, 70, count, *more)
    assert parts == at_once


async def test_failed_trajectory_is_dropped(context, problem, build):
    trajectory, segments = await build(PATTERNS, grade="failed", reason="engine on fire")
    dropped = await estimate(problem, trajectory, segments, context(replies()))
    assert dropped == Dropped(trajectory.id, "failed", "engine on fire")


async def test_no_segments_no_estimates(context, problem, build):
    trajectory, _ = await build(PATTERNS)
    assert await estimate(problem, trajectory, [], context(replies())) == []
