"""The llm judge on a scripted engine: what it is asked, what is pruned, who pays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dto import llm_judge
from dto.context import Context
from dto.protocols import Capabilities
from dto.recipe import ModelSettings, Recipe
from dto.stages.optimize import optimize
from dto.stages.prune import prune
from dto.usage import metered
from tests.judges.server import numbers_of, verdicts
from tests.stages.script import CUT, EXIT, FAIL, Scripted
from tests.stages.test_optimize import estimates

PATTERNS = ["A start. ", "B idle. ", "C needed. ", "D idle. ", "E wrong. ", "F exit. ", "G late."]
EXIT_AT = 5
KINDS = {2: "redundant", 3: "keep", 4: "meaningless", 5: "harmful"}

Judge = Callable[[str, list[int]], str]


def as_kinds(question: str, numbers: list[int]) -> str:
    entries = (verdicts([number], KINDS[number])[1:-1] for number in numbers)
    return "{" + ", ".join(entries) + "}"


@pytest.fixture
def setting(context, problem, build, tokenizer):
    """Arguments of `prune`: the policy is right where `good` says so of the patterns it sees."""

    async def make(good, judge: Judge = as_kinds, engine=None, **settings):
        def policy(text, number, j):
            if "<pattern " in text:
                return judge(text, numbers_of(text))
            if EXIT not in text:
                return "\\boxed{2}"
            thinking = text.split("<think>\n")[1].split(EXIT)[0]
            return "2}" if good("".join(part[0] for part in thinking.split(". "))) else "3}"

        trajectory, segments = await build(PATTERNS)
        rows = estimates(segments, *["below"] * EXIT_AT, "above")
        ctx = context(policy, prune={"judge": "llm", **settings})
        optimized = await optimize(problem, trajectory, segments, rows, ctx)
        if engine is not None:
            ctx = replace(ctx, judge=Scripted(tokenizer, policy, **engine))
        ctx.engine.requests.clear()
        return problem, trajectory, segments, optimized, ctx

    return make


def asked(ctx: Context) -> list[str]:
    calls = (ctx.judge or ctx.engine).calls
    return [text for text, _, _ in calls if "<pattern " in text]


def kinds(result):
    return {row.segment: (row.verdict, row.pruned) for row in result.verdicts}


@pytest.mark.parametrize("engine", [None, {}], ids=["the policy judges", "another model judges"])
async def test_one_request_judges_all_and_what_passes_the_test_is_pruned(setting, engine):
    args = await setting(lambda seen: "C" in seen, engine=engine)
    ctx = args[4]
    result = await prune(*args)
    assert len(asked(ctx)) == 1
    assert kinds(result) == {
        1: ("redundant", True),
        2: ("keep", False),
        3: ("meaningless", True),
        4: ("harmful", True),
    }
    assert result.kept == (0, 2, 5) and result.verified_p == 1.0
    assert [row.reason for row in result.verdicts] == [f"as {number} is" for number in KINDS]
    verifying = [text for text, _, _ in ctx.engine.calls if EXIT in text]
    assert verifying and all("B idle" not in text for text in verifying)


async def test_a_prune_that_fails_its_test_is_undone_and_the_mildest_verdict_first(setting):
    args = await setting(lambda seen: "B" in seen)
    result = await prune(*args)
    assert kinds(result) == {
        1: ("redundant", False),
        2: ("keep", False),
        3: ("meaningless", True),
        4: ("harmful", True),
    }
    assert result.verdicts[0].reason == "as 2 is; restored: the test failed without it"
    args = await setting(lambda seen: False)
    result = await prune(*args)
    assert result.kept == args[3].kept and result.token_ids == args[3].token_ids
    assert not any(row.pruned for row in result.verdicts)


async def test_a_judge_that_would_prune_everything_is_not_believed(setting):
    def all_harmful(question, numbers):
        return verdicts(numbers, "harmful")

    result = await prune(*await setting(lambda seen: seen in ("ACDEF", "ABCDEF"), all_harmful))
    assert result.kept == (0, 2, 3, 4, 5)  # restored from the back, the fourth test is the last


async def test_the_question_shows_all_patterns_and_not_the_gold_answer(setting):
    args = await setting(lambda seen: True)
    await prune(*args)
    (text,) = asked(args[4])
    for number, pattern in enumerate(PATTERNS[: EXIT_AT + 1], start=1):
        assert f"<pattern {number}>\n{pattern.strip()}\n</pattern {number}>" in text
    assert "G late" not in text and "1 + 1?" in text
    assert "Judge patterns 2 to 5," in text and '{"2": {"reason"' in text
    assert "correct_answer" not in text
    args = await setting(lambda seen: True, gold=True)
    await prune(*args)
    assert "<correct_answer>\n2\n</correct_answer>" in asked(args[4])[0]


async def test_how_the_judge_is_sampled(setting):
    args = await setting(lambda seen: True, engine={}, max_tokens=900, temperature=0.5)
    ctx = args[4]
    await prune(*args)
    ((_, sampling, n),) = ctx.judge.calls
    assert (n, sampling.max_tokens, sampling.temperature, sampling.top_p) == (1, 900, 0.5, 1.0)
    assert sampling.seed == ctx.seed(args[1].id, "judge") and sampling.json_schema is None
    ctx.judge.capabilities = Capabilities(json_schema=True)
    await prune(*args)
    assert ctx.judge.calls[-1][1].json_schema == llm_judge.schema([2, 3, 4, 5])


async def test_a_system_message_is_the_judges_own(setting):
    args = await setting(lambda seen: True)
    recipe = args[4].recipe
    judge = Recipe.model_validate({"name": "x", "judge": {"name": "j", "system": "Be strict."}})
    own = recipe.model_copy(update={"judge": judge.judge})
    policys = recipe.model_copy(update={"model": ModelSettings(system="Solve.")})
    for changed, shown in ((own, True), (policys, False)):
        ctx = replace(args[4], recipe=changed)
        await prune(*args[:4], ctx)
        assert ("<system>" in asked(ctx)[-1]) is shown
    assert "<system>Be strict.<user>" in asked(args[4])[0]


BROKEN = {
    "garbage": (lambda question, numbers: "Pattern 4 is wrong.", "not a JSON object"),
    "failure": (lambda question, numbers: FAIL, "engine on fire"),
    "truncated": (
        lambda question, numbers: verdicts(numbers)[:100] + CUT,
        "does not end within 4,096 tokens",
    ),
    "wrong indices": (
        lambda question, numbers: verdicts([number - 2 for number in numbers]),
        "has '0', which is not a number in the request",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_no_verdict_leaves_the_pattern_and_is_flagged(setting, name):
    judge, reason = BROKEN[name]
    args = await setting(lambda seen: True, judge)
    result = await prune(*args)
    assert kinds(result) == dict.fromkeys((1, 2, 3, 4), ("unjudged", False))
    assert all(reason in row.reason for row in result.verdicts)
    assert result.token_ids == args[3].token_ids
    assert len(args[4].engine.calls) == 1  # asked once, and nothing to verify


async def test_half_of_the_verdicts_hold(setting):
    args = await setting(lambda seen: True, lambda question, numbers: verdicts(numbers[::2]))
    assert kinds(await prune(*args)) == {
        1: ("redundant", True),
        2: ("unjudged", False),
        3: ("redundant", True),
        4: ("unjudged", False),
    }


async def test_a_reply_that_is_whole_at_its_limit_holds(setting):
    args = await setting(lambda seen: True, lambda question, numbers: verdicts(numbers) + CUT)
    assert {row.verdict for row in (await prune(*args)).verdicts} == {"redundant"}


async def test_a_long_trajectory_is_cut_to_the_judges_context(setting):
    args = await setting(lambda seen: True, engine={})
    await prune(*args)
    whole = len(args[4].judge.requests[0][0])  # tokens are bytes
    for less, first in ((0, 1), (1, 2), (60, 3), (120, 5)):
        room = {"context": whole - less + 300}
        args = await setting(lambda seen: True, engine=room, max_tokens=300)
        result = await prune(*args)
        (text,) = asked(args[4])
        assert len(args[4].judge.requests[0][0]) + 300 <= room["context"]
        assert [n for n in range(1, 7) if f"<pattern {n}>" in text] == list(range(first, 7))
        unjudged = [row for row in result.verdicts if row.verdict == "unjudged"]
        assert [row.segment for row in unjudged] == list(range(1, first - 1))
        assert all("no room in the judge's context of" in row.reason for row in unjudged)
        judged = [row for row in result.verdicts if row not in unjudged]
        assert [row.verdict for row in judged] == [KINDS[n] for n in KINDS if n >= first]
        assert all(row.pruned == (row.verdict != "keep") for row in judged)


async def test_a_judge_without_room_for_one_pattern_is_not_asked(setting):
    args = await setting(lambda seen: True, engine={"context": 700})
    result = await prune(*args)
    assert kinds(result) == dict.fromkeys((1, 2, 3, 4), ("unjudged", False))
    assert not args[4].judge.calls


async def test_without_the_judges_tokenizer_the_length_is_an_estimate(setting):
    args = await setting(lambda seen: True, engine={})
    await prune(*args)
    whole = len(args[4].judge.requests[0][0])
    for context, judged in ((2 * whole, 4), (whole + 300, 0)):
        args = await setting(lambda seen: True, engine={"context": context}, max_tokens=300)
        messages_only = replace(args[4].judge.capabilities, messages_only=True)
        args[4].judge.tokenizer, args[4].judge.capabilities = None, messages_only
        result = await prune(*args)
        assert sum(row.verdict != "unjudged" for row in result.verdicts) == judged


async def test_only_the_last_patterns_are_judged(setting):
    args = await setting(lambda seen: True, max_segments=2)
    result = await prune(*args)
    assert [row.verdict for row in result.verdicts] == [*["unjudged"] * 2, "meaningless", "harmful"]
    assert "Judge patterns 4 to 5," in asked(args[4])[0]
    assert result.verdicts[0].reason == "not among the last 2 patterns"


async def test_nothing_in_between_costs_nothing(setting, context, problem, build):
    *_, ctx = await setting(lambda seen: True)
    trajectory, segments = await build(PATTERNS)
    rows = estimates(segments, "below", "above")
    optimized = await optimize(problem, trajectory, segments, rows, ctx)
    ctx.engine.requests.clear()
    assert await prune(problem, trajectory, segments, optimized, ctx) == optimized
    assert not ctx.engine.calls


@pytest.mark.parametrize("engine", [None, {}], ids=["the policy judges", "another model judges"])
async def test_the_judges_tokens_are_counted_apart(setting, engine):
    args = await setting(lambda seen: "C" in seen, engine=engine)
    ctx = args[4]
    with metered() as usage, metered("judge") as judge:
        await prune(*args)
    engines = [ctx.engine, *([ctx.judge] if ctx.judge else [])]
    calls = [call for each in engines for call in each.calls]
    reply = as_kinds("", [2, 3, 4, 5])
    ((question, _, _),) = [call for call in calls if "<pattern " in call[0]]
    assert (judge.requests, judge.prompt, judge.generated) == (
        1, len(args[4].tokenizer.encode(question, add_special_tokens=False)), len(reply) + 1,
    )  # fmt: skip
    assert usage.requests == sum(n for *_, n in calls) - 1


class TestAgreement:
    """The counterfactual judge beside the llm one, on the same patterns."""

    async def test_both_verdicts_are_kept_and_only_the_llms_prune(self, setting):
        args = await setting(lambda seen: "C" in seen, agreement=1.0)
        result = await prune(*args)
        assert [(row.segment, row.verdict) for row in result.counterfactual] == [
            (1, "redundant"), (2, "keep"), (3, "redundant"), (4, "redundant"),
        ]  # fmt: skip
        assert not any(row.pruned for row in result.counterfactual)
        alone = await prune(*await setting(lambda seen: "C" in seen))
        assert replace(result, counterfactual=()) == alone

    async def test_none_is_made_where_nothing_was_judged_or_asked_for(self, setting):
        args = await setting(lambda seen: True, lambda *_: "?", agreement=1.0)
        assert (await prune(*args)).counterfactual == ()
        assert len(args[4].engine.calls) == 1
        assert (await prune(*await setting(lambda seen: True))).counterfactual == ()

    @pytest.mark.slow
    async def test_a_share_is_drawn_by_the_trajectory(self, setting):
        problem, trajectory, segments, optimized, ctx = await setting(
            lambda seen: True, agreement=0.3
        )
        compared = 0
        for sample in range(200):
            other = replace(trajectory, id=f"{trajectory.id}{sample}")
            result = await prune(problem, other, segments, optimized, ctx)
            compared += bool(result.counterfactual)
        assert 40 <= compared <= 80
