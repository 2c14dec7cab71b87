import pytest

from dto.protocols import Sampling
from dto.records import Problem
from dto.rollouts import answer_end, complete_answers
from tests.stages.script import CUT, EXIT, FAIL


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("\\boxed{6}", 9),
        ("\\boxed{6} and {7}", 9),
        ("\\boxed{\\frac{1}{2}}.", 19),
        ("\\boxed{\\frac{1}{2}", None),
        ("\\boxed{a\\}b}", 12),
        ("\\boxed", None),
    ],
)
def test_answer_end(text, end):
    assert answer_end(text) == end


async def ask(ctx, replies, gold="2", inducer=EXIT, max_tokens=50, n=1):
    question = Problem("p", "toy", "train", "?", gold)
    return await complete_answers((5, 6), inducer, question, ctx, Sampling(max_tokens, seed=9), n)


async def test_one_request_for_answers_without_inner_braces(context):
    replies = ["2}, surely", "3}", "2" + CUT, "2 I am done", FAIL]
    ctx = context(lambda text, number, j: replies[j])
    answers = await ask(ctx, replies, n=5)
    assert [answer.grade for answer in answers] == [
        "correct", "wrong", "truncated", "truncated", "failed",
    ]  # fmt: skip
    assert [answer.finish_reason for answer in answers] == [
        "stop", "stop", "length", "stop", "failed",
    ]  # fmt: skip
    assert answers[0].text == "\\boxed{2}" and len(answers[0].token_ids) == 2
    assert answers[4].reason == "engine on fire"
    assert len(ctx.engine.calls) == 1
    assert ctx.engine.calls[0][0].endswith(EXIT)


@pytest.mark.parametrize("resumable", [True, False])
async def test_goes_on_while_braces_are_open(context, resumable):
    whole = "\\frac{1}{2}} so it is {done}"

    def script(text, number, j):
        return whole[len(text.split(EXIT)[1]) :]

    ctx = context(script, engine={"resumable": resumable})
    (answer,) = await ask(ctx, None, gold="0.5")
    assert (answer.text, answer.grade) == ("\\boxed{\\frac{1}{2}}", "correct")
    limits = [sampling.max_tokens for _, sampling, _ in ctx.engine.calls]
    assert limits == [50, 50 - len("\\frac{1}"), 50 - len("\\frac{1}{2}")]
    seeds = [sampling.seed for _, sampling, _ in ctx.engine.calls]
    assert seeds[0] == 9 and len(set(seeds)) == (1 if resumable else 3)


async def test_limit_holds_over_all_requests(context):
    ctx = context(lambda *_: "{1}")
    (answer,) = await ask(ctx, None, max_tokens=7)
    assert (len(answer.token_ids), answer.grade) == (7, "truncated")
    assert answer.finish_reason == "length"


async def test_failure_of_a_later_request(context):
    ctx = context(lambda text, number, j: "\\frac{1}" if number == 0 else FAIL)
    (answer,) = await ask(ctx, None)
    assert (answer.grade, len(answer.token_ids)) == ("failed", 8)


async def test_box_whose_brace_the_model_writes(context):
    ctx = context(lambda *_: "{2}")
    (answer,) = await ask(ctx, None, inducer="\n**Final Answer**\n\\boxed")
    assert (answer.text, answer.grade) == ("\\boxed{2}", "correct")


async def test_no_room_in_the_context(context):
    ctx = context(lambda *_: "2}", engine={"context": len(EXIT)})
    answers = await ask(ctx, None, n=2)
    assert [answer.grade for answer in answers] == ["truncated"] * 2
    assert not ctx.engine.calls
