from dataclasses import replace

import pytest

from dto.records import Dropped, ExitEstimate
from dto.rollouts import kept_ids
from dto.stages.optimize import optimize
from dto.usage import attention_flops
from tests.stages.script import CUT, FAIL

PATTERNS = ["one and one. ", "Wait, check. ", "So two.\n"]
FINALIZE = "\n\nMy reasoning so far is sufficient to answer the question.\n</think>\n\n"


def estimates(segments, *decisions):
    return [
        ExitEstimate(segment.id, "t", segment.index, 16, 0, 0, 0, 0.5, 0.0, 1.0, decision, 0)
        for segment, decision in zip(segments, decisions, strict=False)
    ]


async def test_keeps_the_shortest_correct(context, problem, build, tokenizer):
    trajectory, segments = await build(PATTERNS, conclusion="so " * 100 + "\\boxed{2}")
    replies = ["It is plain that \\boxed{2}", "\\boxed{3}", "Thus \\boxed{2}", FAIL]
    ctx = context(lambda text, number, j: replies[j])
    rows = estimates(segments, "below", "above", "above")
    result = await optimize(problem, trajectory, segments, rows, ctx)
    assert result.text == "one and one. Wait, check." + FINALIZE + "Thus \\boxed{2}"
    assert result.token_ids[:25] == trajectory.token_ids[:25]
    assert result.token_ids[-1] == tokenizer.eos_token_id
    assert result.pass_rate == pytest.approx(2 / 3)
    assert (result.exit, result.kept, result.outcome) == (1, (0, 1), "shortened")
    assert result.text[slice(*result.thinking)] == "one and one. Wait, check." + FINALIZE[:-10]
    start, end = result.thinking_tokens
    assert tokenizer.decode(list(result.token_ids[start:end])) == result.text[start:end]
    assert result.tokens_before == len(trajectory.token_ids)
    assert result.tokens_after == len(result.token_ids)
    whole = len(trajectory.prompt_ids) + result.tokens_after
    assert result.attention_flops_after == attention_flops(ctx.engine.shape, 0, whole)
    assert ctx.engine.calls[0][0].endswith("Wait, check." + FINALIZE)


@pytest.mark.parametrize(
    ("grade", "reply", "outcome"),
    [
        ("correct", "\\boxed{2}" + " " * 200, "not_shorter"),
        ("wrong", "\\boxed{2}" + " " * 200, "repaired"),
        ("truncated", "\\boxed{2}", "repaired"),
    ],
)
async def test_outcome(context, problem, build, grade, reply, outcome):
    trajectory, segments = await build(PATTERNS, grade=grade)
    ctx = context(lambda *_: reply)
    result = await optimize(problem, trajectory, segments, estimates(segments, "above"), ctx)
    assert result.outcome == outcome


@pytest.mark.parametrize(
    ("decisions", "reply", "reason"),
    [
        (["below", "undecided", "below"], "\\boxed{2}", "no_exit"),
        ([], "\\boxed{2}", "no_exit"),
        (["above"], "\\boxed{3}", "no_correct_finalization"),
        (["above"], "\\boxed{2}" + CUT, "no_correct_finalization"),
        (["above"], FAIL, "failed"),
    ],
)
async def test_drops(context, problem, build, decisions, reply, reason):
    trajectory, segments = await build(PATTERNS)
    ctx = context(lambda *_: reply)
    rows = estimates(segments, *decisions)
    result = await optimize(problem, trajectory, segments, rows, ctx)
    assert isinstance(result, Dropped) and result.reason == reason and result.detail


async def test_no_room(context, problem, build):
    trajectory, segments = await build(PATTERNS)
    ctx = context(lambda *_: "", engine={"context": 60})
    result = await optimize(problem, trajectory, segments, estimates(segments, "above"), ctx)
    assert result.reason == "no_room"


async def test_kept_ids_with_a_tag_of_the_models_own(build):
    trajectory, segments = await build(["<think>", "a b ", "c d ", "e f "])
    inner = replace(trajectory, thinking_tokens=segments[1].tokens)
    kept = kept_ids(inner, [segments[1], segments[3]])
    expected = trajectory.token_ids[:11] + trajectory.token_ids[15:18]
    assert kept == expected
