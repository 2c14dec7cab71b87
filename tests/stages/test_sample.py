import pytest

from dto.errors import DtoError
from dto.recipe import ModelSettings
from dto.records import Dropped, Trajectory, derive
from dto.stages.sample import sample
from dto.trajectories import opens_thinking, prompt_ids
from tests.stages.script import CUT, FAIL

REPLIES = [
    "one and one\n</think>\n\n\\boxed{2}",
    "hm</think>\\boxed{3}",
    "still thinking" + CUT,
    "ends without closing",
    "closed</think> and then it" + CUT,
    FAIL,
]


async def test_every_fate_is_a_row(context, problem, tokenizer):
    ctx = context(lambda text, number, j: REPLIES[j], sample={"samples": len(REPLIES)})
    rows = await sample(problem, ctx)
    assert all(isinstance(row, Trajectory) for row in rows)
    assert [row.grade for row in rows] == [
        "correct", "wrong", "truncated", "truncated", "truncated", "failed",
    ]  # fmt: skip
    assert rows[5].reason == "engine on fire" and rows[5].token_ids == ()
    assert [row.id for row in rows] == [f"{problem.id}/{j:03d}" for j in range(6)]
    first = derive(7, problem.id, "sample")
    assert [row.seed for row in rows] == [first + j for j in range(6)]
    ((_, sampling, n),) = ctx.engine.calls
    assert (sampling.seed, n) == (first, 6)


async def test_spans(context, problem, tokenizer):
    ctx = context(lambda text, number, j: REPLIES[0], sample={"samples": 1})
    (row,) = await sample(problem, ctx)
    assert row.text[slice(*row.thinking)] == "one and one\n"
    assert row.text[slice(*row.conclusion)] == "\n\n\\boxed{2}"
    assert tokenizer.decode(row.token_ids[slice(*row.thinking_tokens)]) == "one and one\n"
    assert row.token_ids[-1] == tokenizer.eos_token_id and row.answer == "2"


async def test_unclosed_thinking_has_no_conclusion(context, problem):
    ctx = context(lambda text, number, j: "never closed \\boxed{2}", sample={"samples": 1})
    (row,) = await sample(problem, ctx)
    assert (row.grade, row.conclusion.length) == ("truncated", 0)


async def test_prompt_longer_than_context(context, problem):
    ctx = context(lambda *_: "", engine={"context": 10})
    (row,) = await sample(problem, ctx)
    assert isinstance(row, Dropped) and row.reason == "prompt_too_long"
    assert not ctx.engine.calls


def test_prompt_has_one_bos_and_the_system_message(tokenizer):
    ids = prompt_ids(
        "1 + 1?", tokenizer, ModelSettings(name="x", family="nano", system="Be brief.")
    )
    assert ids.count(tokenizer.bos_token_id) == 1
    text = tokenizer.decode(list(ids))
    assert text == "<bos><system>Be brief.<user>1 + 1?<assistant><think>\n"
    assert opens_thinking(tokenizer, ids)
    assert not opens_thinking(tokenizer, (*ids, *tokenizer.encode("</think>")))


def test_no_chat_template(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(DtoError, match="'bare' has no chat template"):
        prompt_ids("?", tokenizer, ModelSettings(name="bare"))
