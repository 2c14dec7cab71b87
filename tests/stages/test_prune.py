import math
from dataclasses import replace

import pytest

from dto.stages import prune as module
from dto.stages.optimize import optimize
from dto.stages.prune import JOIN_TOKENS, prune
from tests.stages.script import EXIT, FAIL
from tests.stages.test_optimize import FINALIZE, estimates

PATTERNS = [
    "A start. ",
    "B idle. ",
    "C needed. ",
    "D idle. ",
    "E wrong. ",
    "F exit. ",
    "G late" + 200 * ".",
]
EXIT_AT = 5


class World:
    """The policy answers right when the thinking that it sees satisfies `good`."""

    def __init__(self, good, conclusion="\\boxed{2}"):
        self.good = good
        self.conclusion = conclusion
        self.asked = []
        self.number = 0

    def __call__(self, text, number, j):
        self.number = number
        if EXIT not in text:
            return self.conclusion
        seen = "".join(word[0] for word in text.split("<think>\n")[1].split(EXIT)[0].split(". "))
        if j == 0:
            self.asked.append(seen)
        good = self.good(seen)
        if not isinstance(good, bool):
            good = j < good * 8
        return "2}" if good else "3}"


@pytest.fixture
def setting(context, problem, build):
    async def make(good, **kwargs):
        trajectory, segments = await build(PATTERNS)
        rows = estimates(segments, *["below"] * EXIT_AT, "above")
        ctx = context(World(lambda seen: True))
        optimized = await optimize(problem, trajectory, segments, rows, ctx)
        assert optimized.exit == EXIT_AT
        settings = kwargs.pop("settings", {})
        ctx = context(World(good, **kwargs), prune={"rollouts": 8, **settings})
        return (problem, trajectory, segments, optimized, ctx)

    return make


async def test_removes_what_is_not_needed(setting):
    args = await setting(lambda seen: "C" in seen)
    result = await prune(*args)
    assert result.kept == (0, 2, 5)
    assert result.text == "A start. C needed. F exit." + FINALIZE + "\\boxed{2}"
    assert (result.exit, result.verified_p, result.outcome) == (5, 1.0, "shortened")
    assert result.verified_rollouts == 16
    verdicts = {row.segment: (row.verdict, row.pruned) for row in result.verdicts}
    assert verdicts == {
        1: ("redundant", True),
        2: ("keep", False),
        3: ("redundant", True),
        4: ("redundant", True),
    }
    assert result.tokens_after < args[3].tokens_after


async def test_verified_p_is_of_rollouts_after_the_test(setting):
    """The test sees right answers alone; the rollouts after it are right half of the time."""
    args = await setting(lambda seen: "C" in seen and (not confirming() or 0.5))

    def confirming():
        calls = args[4].engine.calls
        return any(EXIT not in text for text, *_ in calls)  # the version has been finalized

    result = await prune(*args)
    assert (result.verified_p, result.verified_rollouts) == (0.25, 16)
    args = await setting(lambda seen: "C" in seen, settings={"confirmations": 0})
    result = await prune(*args)
    assert result.kept == (0, 2, 5)
    assert math.isnan(result.verified_p) and result.verified_rollouts == 0


async def test_harmful_ranks_first_and_reason_shows_both_rates(setting):
    args = await setting(lambda seen: 0.5 if "E" in seen else "C" in seen)
    result = await prune(*args)
    verdict = {row.segment: row for row in result.verdicts}
    assert verdict[4].verdict == "harmful" and verdict[4].score == pytest.approx(0.5)
    assert verdict[4].reason == "p 0.50 with it, 1.00 without"


async def test_restored_in_reverse_rank_on_fresh_rollouts(setting):
    """B and D each stand in for the other, so both look redundant and one has to come back."""

    def good(seen):
        if "C" not in seen or not {"B", "D"} & {*seen}:
            return False
        return 0.5 if "E" in seen else True

    args = await setting(good)
    result = await prune(*args)
    verdict = {row.segment: row for row in result.verdicts}
    assert result.kept == (0, 2, 3, 5)
    assert not verdict[3].pruned
    assert verdict[3].reason.endswith("; restored: the test failed without it")
    assert verdict[1].pruned and verdict[4].pruned
    seeds = [sampling.seed + j for text, sampling, n in args[4].engine.calls for j in range(n)]
    assert len(seeds) == len(set(seeds))


@pytest.mark.parametrize(
    ("bound", "tested"), [(4, ["AF", "AEF", "ADEF", "ACDEF"]), (2, ["AF", "AEF"])]
)
async def test_all_restored_after_the_last_test(setting, monkeypatch, bound, tested):
    monkeypatch.setattr(module, "MAX_VERIFICATIONS", bound)
    args = await setting(lambda seen: world.number < 5)  # right for the judge, wrong for the tests
    world = args[4].engine.script
    result = await prune(*args)
    assert repr(replace(result, verdicts=())) == repr(args[3])  # nan equals nan
    assert [row.verdict for row in result.verdicts] == ["redundant"] * 4
    assert not any(row.pruned for row in result.verdicts)
    assert list(dict.fromkeys(world.asked[5:])) == tested


async def test_each_test_has_its_share_of_the_error(setting, monkeypatch):
    errors = []
    real = module.SequentialTest

    def spy(threshold, margin, error, cap):
        errors.append(error)
        return real(threshold, margin, error, cap)

    monkeypatch.setattr(module, "SequentialTest", spy)
    await prune(*await setting(lambda seen: "C" in seen))
    assert errors == [pytest.approx(0.05 / 3)]


def test_small_cap_allows_fewer_tests():
    settings = module.EstimateSettings(cap=9)
    assert len(module._tests(3, settings)) == 2


@pytest.mark.parametrize("conclusion", ["\\boxed{3}", "\\boxed{2}" + " " * 100])
async def test_undone_where_the_conclusion_is_no_better(setting, conclusion):
    args = await setting(lambda seen: "C" in seen, conclusion=conclusion)
    result = await prune(*args)
    assert result.kept == args[3].kept and result.token_ids == args[3].token_ids
    proposed = [row for row in result.verdicts if row.verdict != "keep"]
    assert len(proposed) == 3
    assert all(not row.pruned and "restored" in row.reason for row in proposed)


async def test_join_perplexity_scores_what_follows_each_join(setting):
    args = await setting(lambda seen: "C" in seen)
    result = await prune(*args)
    assert result.join_perplexity == pytest.approx(math.e)
    scored = args[4].engine.scored
    assert [(text.split("<think>\n")[1], n) for text, n in scored] == [
        ("A start. ", JOIN_TOKENS),
        ("A start. C needed. ", len("F exit.")),
    ]


async def test_nothing_in_between_costs_nothing(context, problem, build):
    trajectory, segments = await build(PATTERNS)
    ctx = context(World(lambda seen: True))
    optimized = await optimize(
        problem, trajectory, segments, estimates(segments, "below", "above"), ctx
    )
    before = len(ctx.engine.calls)
    assert await prune(problem, trajectory, segments, optimized, ctx) == optimized
    assert len(ctx.engine.calls) == before


async def test_judge_none(setting):
    args = await setting(lambda seen: True, settings={"judge": "none"})
    assert await prune(*args) is args[3]
    assert not args[4].engine.calls


async def test_only_the_last_segments_are_judged(setting):
    result = await prune(*await setting(lambda seen: True, settings={"max_segments": 2}))
    assert [row.segment for row in result.verdicts] == [3, 4]


async def test_failing_engine_keeps_everything(setting):
    args = await setting(lambda seen: True)
    args[4].engine.script = lambda *_: FAIL
    result = await prune(*args)
    assert result.kept == args[3].kept
    assert {row.verdict for row in result.verdicts} == {"unjudged"}
