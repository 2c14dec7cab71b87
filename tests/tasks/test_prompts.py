"""A problem is asked with its own prompt, by every stage that asks it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dto.context import Context
from dto.grading import Grader
from dto.prompts import render
from dto.recipe import Recipe
from dto.settings import ExitPolicy
from dto.stages.evaluate import evaluate
from dto.stages.sample import sample
from dto.studies.trace import trace
from dto.tasks import TASKS
from tests.byte_level import byte_level
from tests.engines.scripted import ScriptedEngine
from tests.tasks.hub import ROWS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gsm8k", "gpqa", "humaneval"])
@pytest.mark.parametrize("stage", ["sample", "evaluate", "trace"])
async def test_every_stage_asks_with_the_problems_prompt(name: str, stage: str) -> None:
    problem = replace(TASKS[name].read(ROWS[name]), split="test")
    tokenizer = byte_level(opens=True)
    engine = ScriptedEngine(lambda text, sampling: ["Hm.\n</think>\n\n\\boxed{C}"], tokenizer)
    settings = {"samples": 1, "max_tokens": 60}
    recipe = Recipe.model_validate({"name": "test", "sample": settings, "evaluate": settings})
    async with Grader(workers=1) as grader:
        ctx = Context(recipe, engine, grader)
        if stage == "sample":
            await sample(problem, ctx)
        elif stage == "evaluate":
            await evaluate(problem, ExitPolicy(name="none"), ctx)
        else:
            await trace(problem, ctx)
    asked = render(problem.prompt, "nano", question=problem.question)
    first = engine.requests[0][0]
    assert isinstance(first, tuple)
    assert asked in tokenizer.decode(list(first))
    others = {"solve", "solve_choice", "solve_code"} - {problem.prompt}
    assert not any(
        render(other, question=problem.question) in tokenizer.decode(list(first))
        for other in others
    )
