from __future__ import annotations

import re
from copy import deepcopy

import pytest

from dto.context import Context
from dto.exits import answer
from dto.grading import Grader
from dto.policies.without_trials import KEYWORDS, NoWait, keyword_ids
from dto.protocols import Sampling
from dto.recipe import Recipe
from dto.records import Problem
from dto.trajectories import prompt_ids
from tests.byte_level import byte_level
from tests.engines.scripted import ScriptedEngine
from tests.exits.conftest import Embedded

KEYWORD = re.compile(rf"\b(?:{'|'.join(KEYWORDS)})\b", re.IGNORECASE)


def test_keywords_are_tokens_of_their_own_in_any_case() -> None:
    tokenizer = deepcopy(byte_level())
    tokenizer.add_tokens(
        ["**Wait", " WAIT,", ".\n\nHmm", "Ohio", "Await", "a wait", "double-check"]
    )
    banned = {tokenizer.decode([token]) for token in keyword_ids(tokenizer)}
    assert {"**Wait", " WAIT,", ".\n\nHmm", "double-check"} <= banned
    assert not {"Ohio", "Await", "a wait"} & banned
    assert {" check", " again"} <= banned
    assert all(KEYWORD.search(text) for text in banned)


async def test_only_the_thinking_is_restricted(problem: Problem) -> None:
    tokenizer = byte_level()

    def script(text: str, sampling: Sampling) -> list[str]:
        return ["But wait.\\boxed{2}" if "</think>" in text else "One.</think>"]

    engine = ScriptedEngine(script, tokenizer)
    ctx = Context(Recipe(name="test"), engine, Grader(workers=1))
    prompt = prompt_ids(problem.question, tokenizer, ctx.recipe.model)
    settings = NoWait(name="exit")
    response = await answer(problem, prompt, settings, ctx, Sampling(100))
    assert tokenizer.decode(response.thinking_ids) == "One."
    assert response.conclusion == "But wait.\\boxed{2}"
    assert (response.exit_reason, response.complete) == ("closed", True)
    (_, thinking, _), (_, concluding, _) = engine.requests
    assert thinking.banned == keyword_ids(tokenizer)
    assert (thinking.stop, concluding.banned, concluding.stop) == (("</think>",), (), ())


@pytest.mark.slow
async def test_the_embedded_model_never_reconsiders_in_so_many_words(embedded: Embedded) -> None:
    tokenizer = embedded.ctx.tokenizer
    banned = set(keyword_ids(tokenizer))
    plain = await embedded.responses()
    assert any(banned & set(response.thinking_ids) for response in plain)
    responses = await embedded.responses(policy="nowait")
    for response in responses:
        assert not banned & set(response.thinking_ids)
        assert not KEYWORD.search(tokenizer.decode(response.thinking_ids))
    lengths = [sum(len(each.thinking_ids) for each in group) for group in (responses, plain)]
    assert lengths[0] < lengths[1]
    assert any(response.complete for response in responses)
