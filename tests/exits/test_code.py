from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dto.context import Context
from dto.exits import ExitedResponse, answer
from dto.grading import Grader
from dto.prompts import render
from dto.protocols import Chunk, Completion, Prompt, Sampling
from dto.recipe import Recipe
from dto.records import Problem, Trial
from dto.settings import open_policy
from dto.trajectories import prompt_ids
from dto.usage import Usage, metered
from tests.engines.scripted import ScriptedEngine
from tests.exits.conftest import CLOSE, Embedded

INDUCERS = {kind: render(f"trial_code_{kind}") for kind in ("inside", "closed")}
MAIN = "Plan.\n\nMore.\n</think>\n\n```python\nx\n```"
BASE = {"name": "exit", "policy": "code", "monitor": "paragraph", "trial_tokens": 5}
BASE |= {"threshold": 0.75}


class Coder(ScriptedEngine):
    """Streams a few tokens at a time."""

    together = 1

    async def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk]:
        held: list[Chunk] = []
        async with aclosing(super().stream(prompt, sampling)) as pieces:
            async for piece in pieces:
                held.append(piece)
                if len(held) == self.together or piece.finish_reason:
                    tokens = tuple(token for each in held for token in each.token_ids)
                    logprobs = tuple(value for each in held for value in each.logprobs or ())
                    text = "".join(each.text for each in held)
                    held.clear()
                    yield replace(piece, token_ids=tokens, text=text, logprobs=logprobs)


async def respond(
    tokenizer: PreTrainedTokenizerFast,
    problem: Problem,
    program: str,
    probabilities: list[float],
    together: int = 1,
    **exit: Any,
) -> tuple[ExitedResponse, Usage]:
    """Trials say `program`, token by token with these probabilities."""

    def script(text: str, sampling: Sampling) -> list[str | Completion]:
        said = text.partition("<think>\n")[2]
        if said.endswith(tuple(INDUCERS.values())):
            assert (sampling.temperature, sampling.stop, sampling.logprobs) == (0.0, ("```",), 0)
            ids = tokenizer.encode(program, add_special_tokens=False)[: sampling.max_tokens]
            logprobs = tuple(math.log(p) for p in probabilities[: len(ids)])
            finish: Any = (
                "stop" if program.endswith("```") and len(ids) == len(program) else "length"
            )
            return [Completion(tuple(ids), program[: len(ids)], finish, 0, logprobs=logprobs)]
        return ["x\n```"] if said.endswith(CLOSE) else [MAIN[len(said) :]]

    engine = Coder(script, tokenizer)
    engine.together = together
    ctx = Context(Recipe(name="test"), engine, Grader(workers=1))
    prompt = prompt_ids(problem.question, tokenizer, ctx.recipe.model)
    with metered() as usage:
        response = await answer(
            replace(problem, rule="code"),
            prompt,
            open_policy(BASE | exit),
            ctx,
            Sampling(1000, seed=1),
        )
    return response, usage


@pytest.mark.parametrize(
    ("program", "probabilities", "trial"),
    [
        ("ab = 1\n", [1.0, 1.0, 0.5, 1.0, 0.75], (0.85, "ab = ", "failed", 5)),
        ("ab = 1\n", [0.5, 0.25, 1.0, 1.0, 1.0], (0.375, "ab", "failed", 2)),  # 3.75 at best
        ("ab = 1\n", [1.0, 0.0625, 0.5, 1.0, 1.0], (0.521, "ab ", "failed", 3)),
        ("a```", [0.9, 0.9, 1.0, 1.0], (0.95, "a", "failed", 4)),  # graded: no code is executed
        ("```", [1.0, 1.0, 1.0], (0.0, "", "failed", 3)),
        (" \n```", [1.0] * 5, (0.0, " \n", "failed", 5)),
    ],
)
@pytest.mark.parametrize("inducer", INDUCERS)
@pytest.mark.parametrize("together", [1, 3])
async def test_a_trial_is_the_beginning_of_a_program(
    tokenizer: PreTrainedTokenizerFast,
    problem: Problem,
    program: str,
    probabilities: list[float],
    trial: tuple[float, str, str, int],
    inducer: str,
    together: int,
) -> None:
    response, usage = await respond(
        tokenizer, problem, program, probabilities, together, inducer=inducer
    )
    [made] = response.trials
    confidence, block, grade, tokens = trial
    sure: float = pytest.approx(confidence, abs=1e-3)  # type: ignore[assignment]
    ids = made.token_ids
    assert made == Trial(len("Plan."), sure, block, grade, tokens, ids, block)
    assert len(ids) == tokens and str(tokenizer.decode(ids)).startswith(block)
    assert (response.exit_reason == "policy") == (confidence > 0.75)
    made_of_it = len(response.thinking_ids) + response.answer_tokens + response.trial_tokens
    assert usage.generated - usage.wasted == made_of_it
    assert response.inducer_tokens == len(INDUCERS[inducer])


@given(
    probabilities=st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5),
    threshold=st.floats(0.0, 1.0),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_aborting_changes_no_decision_and_chunks_change_no_row(
    tokenizer: PreTrainedTokenizerFast,
    problem: Problem,
    probabilities: list[float],
    threshold: float,
) -> None:
    made = [
        (
            await respond(
                tokenizer, problem, "ab = 1\n", probabilities, together, threshold=threshold
            )
        )[0]
        for together in (1, 2, 5)
    ]
    assert made[0] == made[1] == made[2]
    whole = (
        await respond(
            tokenizer, problem, "ab = 1\n", probabilities, threshold=threshold, shadow=True
        )
    )[0].trials[0]
    assert whole.tokens == 5
    assert whole.confidence == pytest.approx(sum(probabilities) / 5)
    assert (made[0].exit_reason == "policy") == (whole.confidence > threshold)
    assert made[0].trials[0].tokens <= 5


async def test_trials_take_no_more_than_their_share(
    tokenizer: PreTrainedTokenizerFast, problem: Problem
) -> None:
    exit = {"threshold": 1.0, "monitor": "tokens", "every": 2, "shadow": True}
    free, _ = await respond(tokenizer, problem, "ab = 1\n", [0.9] * 5, **exit)
    capped, _ = await respond(tokenizer, problem, "ab = 1\n", [0.9] * 5, **exit, trial_share=0.5)
    assert len(free.trials) > len(capped.trials) > 1
    for count, trial in enumerate(capped.trials):
        assert sum(earlier.tokens for earlier in capped.trials[:count]) <= 0.5 * trial.position


@pytest.mark.slow
async def test_every_token_that_is_not_in_a_row_is_wasted(embedded: Embedded) -> None:
    exit = {"policy": "code", "monitor": "paragraph", "inducer": "closed", "threshold": 0.97}
    with metered() as usage:
        responses = await embedded.responses(trial_tokens=12, **exit)
    trials = [trial for response in responses for trial in response.trials]
    assert any(trial.tokens < 12 for trial in trials)
    assert usage.generated - usage.wasted == sum(
        len(response.thinking_ids) + response.answer_tokens + response.trial_tokens
        for response in responses
    )
