from __future__ import annotations

import pytest

from dto.context import Context
from dto.exits import answer
from dto.grading import Grader
from dto.policies.without_trials import NoThinking
from dto.prompts import render
from dto.protocols import Sampling
from dto.recipe import Recipe
from dto.records import Problem
from dto.trajectories import prompt_ids
from tests.byte_level import byte_level
from tests.engines.scripted import ScriptedEngine
from tests.exits.conftest import Embedded, Respond

TEXT = render("no_thinking")


async def test_the_thinking_is_closed_before_it_begins(respond: Respond) -> None:
    done = await respond("Never read.", {"policy": "no_thinking"})
    response = done.response
    assert done.text("inserted_ids") == TEXT
    assert done.text("answer_ids") == "\\boxed{2}<eos>"
    assert (response.thinking_ids, response.trial_tokens) == ((), 0)
    assert (response.exit_reason, response.complete) == ("policy", True)
    assert done.engine.generated == response.answer_tokens


@pytest.mark.parametrize(("opens", "inserted"), [(True, TEXT), (False, "<think>\n" + TEXT)])
async def test_the_tag_is_put_in_where_the_template_does_not_open_it(
    problem: Problem, opens: bool, inserted: str
) -> None:
    tokenizer = byte_level(opens=opens)
    engine = ScriptedEngine(lambda text, sampling: ["\\boxed{2}"], tokenizer)
    ctx = Context(Recipe(name="test"), engine, Grader(workers=1))
    prompt = prompt_ids(problem.question, tokenizer, ctx.recipe.model)
    settings = NoThinking(name="exit")
    response = await answer(problem, prompt, settings, ctx, Sampling(100))
    assert tokenizer.decode(response.inserted_ids) == inserted
    assert engine.requests[0][0] == (*prompt, *response.inserted_ids)


async def test_the_embedded_model_answers_without_thinking(embedded: Embedded) -> None:
    responses = await embedded.responses(policy="no_thinking")
    assert all(response.complete for response in responses)
    assert all(not response.thinking_ids for response in responses)
    assert all("\\boxed{" in response.conclusion for response in responses)
