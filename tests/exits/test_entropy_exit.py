from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from transformers import PreTrainedTokenizerFast

from dto.context import Context
from dto.exits import ExitedResponse, answer
from dto.grading import Grader
from dto.policies.settling import moving_variance
from dto.prompts import render
from dto.protocols import Completion, Sampling
from dto.recipe import ExitSettings, Recipe
from dto.records import Problem
from dto.trajectories import prompt_ids
from tests.engines.scripted import ScriptedEngine
from tests.exits.conftest import CLOSE, Embedded

PROBE = render("entropy_probe")
STEPS = 8
MAIN = "Step.\n\n" * STEPS + "Done.\n</think>\n\n\\boxed{2}"


@pytest.mark.parametrize(
    ("values", "smoothing", "expected"),
    [
        ([1.0, 1.0, 1.0], 0.5, 0.0),
        ([0.0, 1.0, 1.0], 0.5, (0.25 * 0.25 + 0.5 * 0.0625) / 0.75),  # means 0, 0.5, 0.75
        ([3.0, 1.0], 1.0, 0.0),  # the newest value alone
        ([1.0, 1.0], 0.5, math.inf),  # too few
        ([1.0] * 9, 0.0, math.inf),
        ([], 0.5, math.inf),
    ],
)
def test_moving_variance(values: list[float], smoothing: float, expected: float) -> None:
    assert moving_variance(values, smoothing) == pytest.approx(expected)


async def respond(
    likely: Sequence[float], tokenizer: PreTrainedTokenizerFast, problem: Problem, **exit: float
) -> ExitedResponse:
    """What follows `</think>` after step i has two outcomes, one with probability `likely[i]`."""

    def script(text: str, sampling: Sampling) -> list[str | Completion]:
        said = text.partition("<think>\n")[2]
        if said.endswith(CLOSE):
            return ["\\boxed{2}"]
        if said.endswith(PROBE):
            assert sampling == Sampling(1, 0.0, 1.0, logprobs=20)
            p = likely[said.count("Step.") - 1]
            top = {5: math.log(p)} | ({6: math.log(1 - p)} if p < 1 else {})
            return [
                Completion((5,), "x", "length", 0, logprobs=(math.log(p),), top_logprobs=(top,))
            ]
        return [MAIN[len(said) :]]

    engine = ScriptedEngine(script, tokenizer)
    ctx = Context(Recipe(name="test"), engine, Grader(workers=1))
    settings = ExitSettings.model_validate(
        {"name": "exit", "policy": "entropy", "monitor": "paragraph", "smoothing": 0.5, **exit}
    )
    prompt = prompt_ids(problem.question, tokenizer, ctx.recipe.model)
    return await answer(problem, prompt, settings, ctx, Sampling(1000, seed=1))


async def test_it_leaves_when_the_entropy_has_settled(
    tokenizer: PreTrainedTokenizerFast, problem: Problem
) -> None:
    response = await respond([0.5, 0.99, 0.5, 0.99, 1, 1, 1, 1], tokenizer, problem, variance=0.02)
    assert response.exit_reason == "policy"
    assert response.conclusion == "\\boxed{2}"
    assert 4 < len(response.trials) < STEPS
    assert response.trials[0].confidence == pytest.approx(0.5)  # exp(-log 2)
    assert response.trials[4].confidence == 1.0
    assert {(trial.answer, trial.grade, trial.tokens) for trial in response.trials} == {
        ("", "failed", 1)
    }
    calm = await respond([0.7] * STEPS, tokenizer, problem, variance=1e-6)
    assert len(calm.trials) == 3  # two differences are 1 / smoothing
    never = await respond([0.5, 1] * STEPS, tokenizer, problem, variance=0.02)
    assert (never.exit_reason, len(never.trials)) == ("closed", STEPS)


@pytest.mark.slow
async def test_the_embedded_model_leaves_at_the_same_place_every_time(embedded: Embedded) -> None:
    exit = {"policy": "entropy", "monitor": "tokens", "every": 12, "variance": 0.2}
    first, second = await embedded.responses(**exit), await embedded.responses(**exit)
    for one, two in zip(first, second, strict=True):
        assert (one.thinking_ids, one.answer_ids) == (two.thinking_ids, two.answer_ids)
        assert [trial.position for trial in one.trials] == [trial.position for trial in two.trials]
    left = [response for response in first if response.exit_reason == "policy"]
    assert left
    assert all(len(response.trials) > 5 for response in left)
