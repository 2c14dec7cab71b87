"""Mode compat beside the benchmark's lock-step version, greedily on the embedded model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from benchmarks import lockstep
from dto.context import Context
from dto.exits.path import ExitedResponse, ResponsePath
from dto.grading import Grader
from dto.grading.extract import trial_answer
from dto.nano import chain_problems
from dto.policies.compat import Compat, before_stop
from dto.protocols import Engine, Sampling
from dto.recipe import Recipe
from dto.rollouts import BOX
from dto.settings import open_policy
from dto.text import decode_response
from dto.trajectories import prompt_ids

QUESTIONS = 8
MAX_TOKENS = 480
EXITS: tuple[dict[str, Any], ...] = (
    {},
    {"threshold": 0.8, "confidence": "geometric"},
    {"threshold": 0.6, "confidence": "min"},
    {"threshold": 1.0, "max_trials": 2, "think_ratio": 0.5},
)


def policy_of(**changes: Any) -> Compat:
    policy = open_policy({"name": "compat", "policy": "deer", "mode": "compat"} | changes)
    assert isinstance(policy, Compat)
    return policy


def context(engine: Engine, grader: Grader) -> Context:
    recipe = Recipe.model_validate({"name": "compat", "model": {"name": "nano", "family": "nano"}})
    return Context(recipe, engine, grader)


def prompts(ctx: Context) -> list[str]:
    """The questions as the lock-step version reads them."""
    asked = (each.question for each in chain_problems("test", QUESTIONS, 0))
    model = ctx.recipe.model
    return [
        decode_response(ctx.tokenizer, prompt_ids(each, ctx.tokenizer, model)) for each in asked
    ]


async def by_compat(ctx: Context, policy: Compat) -> list[ExitedResponse]:
    """All questions at once, each on its own way."""
    sampling = Sampling(MAX_TOKENS, temperature=0.0, top_p=1.0)

    async def one(problem: Any) -> ExitedResponse:
        ids = prompt_ids(problem.question, ctx.tokenizer, ctx.recipe.model)
        return await policy.leave(ResponsePath(ids, ctx, sampling), problem, ctx)

    return await asyncio.gather(*map(one, chain_problems("test", QUESTIONS, 0)))


def by_lockstep(
    prompts: Sequence[str], generate: lockstep.Generate, tokenizer: Any, policy: Compat
) -> list[lockstep.Question]:
    """The same questions in rounds."""
    options = lockstep.Settings(
        MAX_TOKENS,
        policy.think_ratio,
        policy.threshold,
        policy.confidence,
        policy.max_trials,
        policy.trial_tokens,
    )
    return lockstep.run(prompts, generate, tokenizer.encode, options)


def batches_of(engine: Engine) -> lockstep.Generate:
    """Synchronous batches on an engine of ours, for a thread beside the running event loop."""
    tokenizer: Any = engine.tokenizer
    loop = asyncio.get_running_loop()

    async def one(request: lockstep.Request) -> lockstep.Generated:
        sampling = Sampling(
            request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            stop=request.stop,
            logprobs=0 if request.logprobs else None,
        )
        [done] = await engine.complete(tokenizer.encode(request.prompt), sampling)
        assert done.finish_reason != "failed", done.error
        length = done.finish_reason == "length"
        return lockstep.Generated(
            before_stop(done), done.token_ids, done.logprobs or (), done.stop, length
        )

    async def every(requests: Sequence[lockstep.Request]) -> list[lockstep.Generated]:
        return list(await asyncio.gather(*map(one, requests)))

    return lambda requests: asyncio.run_coroutine_threadsafe(every(requests), loop).result()


def assert_same(response: ExitedResponse, question: lockstep.Question, tokenizer: Any) -> None:
    """Exit and its reason, every trial, final text, and what it cost."""
    assert response.exit_reason == question.left_by
    assert decode_response(tokenizer, response.thinking_ids) == question.said
    assert len(response.trials) == len(question.trials)
    for ours, theirs in zip(response.trials, question.trials, strict=True):
        assert (ours.position, ours.tokens) == (theirs.position, len(theirs.token_ids))
        assert math.isclose(ours.confidence, theirs.confidence, abs_tol=1e-4)
        said = trial_answer(BOX + decode_response(tokenizer, theirs.token_ids))
        assert ours.answer == (said or "")
    assert response.conclusion == (question.answer or "")
    assert response.answer_tokens == question.answer_tokens
    cut = question.thinking_tokens - len(response.thinking_ids)
    assert response.withdrawn == max(0, cut)
