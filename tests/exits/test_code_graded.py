"""HumanEval-style problems under the code exit: trials and conclusions are graded by running."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from dto.context import Context
from dto.grading import Grader
from dto.grading.sandbox import Limits
from dto.prompts import render
from dto.protocols import Completion, Sampling
from dto.recipe import EvaluateSettings, ExitSettings, Recipe
from dto.records import EvaluationRow, Problem
from dto.stages.evaluate import evaluate
from tests.engines.scripted import ScriptedEngine
from tests.exits.conftest import CLOSE

PROMPT = 'def count_even(values):\n    """How many of the values are even?"""\n'
TEST = (
    "def check(candidate):\n    assert candidate([1, 2, 4]) == 2\n    assert candidate([]) == 0\n"
)
GOLD = json.dumps({"prompt": PROMPT, "test": TEST, "entry_point": "count_even"})
RIGHT = "def count_even(v):\n    return sum(x % 2 == 0 for x in v)\n"
WRONG = "def count_even(v):\n    return len(v)\n"
HANGS = "def count_even(v):\n    while True: pass\n"
INDUCER = render("trial_code_inside")


async def row(
    tokenizer: PreTrainedTokenizerFast,
    problem: Problem,
    trial: str,
    conclusion: str,
    sure: float = 0.9,
    *,
    allowed: bool = True,
    **exit: object,
) -> EvaluationRow:
    """What becomes of a trial program, and of the program that the model concludes with."""
    main = f"Plan.\n\nMore thinking.\n</think>\n\n```python\n{conclusion}```"

    def script(text: str, sampling: Sampling) -> list[str | Completion]:
        said = text.partition("<think>\n")[2]
        if said.endswith(INDUCER):
            ids = tokenizer.encode(trial + "```", add_special_tokens=False)[: sampling.max_tokens]
            whole = len(ids) > len(trial)
            finish = "stop" if whole else "length"
            said = (trial + "```")[: len(ids)]
            return [Completion(tuple(ids), said, finish, 0, logprobs=(math.log(sure),) * len(ids))]
        if said.endswith(CLOSE):
            return [f"```python\n{conclusion}```"]
        return [main[len(said) :]]

    recipe = Recipe(name="test", evaluate=EvaluateSettings(samples=1, max_tokens=1000))
    settings = {"name": "code", "policy": "code", "monitor": "paragraph", "trial_tokens": 200}
    async with Grader(
        workers=1,
        allow_code_execution=allowed,
        code_limits=Limits(cpu_seconds=1.0 if HANGS in (trial, conclusion) else 10.0),
    ) as grader:
        ctx = Context(recipe, ScriptedEngine(script, tokenizer, context=4096), grader)
        asked = replace(problem, answer=GOLD, rule="code", question=PROMPT)
        policy = ExitSettings.model_validate(settings | {"threshold": 0.75} | exit)
        [(found, _, _)] = await evaluate(asked, policy, ctx)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trial", "conclusion", "sure", "exit_reason", "trial_grade", "grade"),
    [
        (RIGHT, RIGHT, 0.9, "policy", "correct", "correct"),
        (RIGHT, WRONG, 0.5, "closed", "correct", "wrong"),  # not sure enough to leave
        (RIGHT, RIGHT, 0.01, "closed", "failed", "correct"),  # aborted, and so has no grade
        (WRONG, WRONG, 0.9, "policy", "wrong", "wrong"),
        (WRONG, RIGHT, 0.9, "policy", "wrong", "correct"),
        (HANGS, RIGHT, 0.9, "policy", "wrong", "correct"),
        (RIGHT, HANGS, 0.9, "policy", "correct", "wrong"),
    ],
)
async def test_the_tests_decide(
    tokenizer: PreTrainedTokenizerFast,
    problem: Problem,
    trial: str,
    conclusion: str,
    sure: float,
    exit_reason: str,
    trial_grade: str,
    grade: str,
) -> None:
    found = await row(tokenizer, problem, trial, conclusion, sure)
    [made] = found.trials
    assert (found.exit_reason, made.grade, found.grade) == (exit_reason, trial_grade, grade)
    if conclusion == HANGS:
        assert found.reason.startswith("time_limit")


async def test_a_beginning_of_a_program_has_no_grade(
    tokenizer: PreTrainedTokenizerFast, problem: Problem
) -> None:
    found = await row(tokenizer, problem, RIGHT, RIGHT, trial_tokens=10)
    assert [trial.grade for trial in found.trials] == ["failed"]
    assert found.grade == "correct"


async def test_without_permission_nothing_is_run(
    tokenizer: PreTrainedTokenizerFast, problem: Problem
) -> None:
    found = await row(tokenizer, problem, RIGHT, RIGHT, allowed=False)
    assert [trial.grade for trial in found.trials] == ["failed"]
    assert (found.grade, found.reason) == ("failed", "no_code_execution")
