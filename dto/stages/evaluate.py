"""Answer a problem under an exit policy, and count what it took (avg@n over the test problems).

All policies and all models answer sample j of a problem with the same seed, so that comparisons are
paired; what they do with it is the policy's business (`dto.exits`).
"""

from __future__ import annotations

import time

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.engines.base import Sampling
from dto.exits import ExitedResponse, answer
from dto.grading import Graded
from dto.recipe import ExitSettings
from dto.records import EvaluationRow, Problem
from dto.trajectories import prompt_ids


async def evaluate(
    problem: Problem, exit: ExitSettings, ctx: Context, model: str
) -> list[tuple[EvaluationRow, float]]:
    """`recipe.evaluate.samples` answers to one problem, each with its wall seconds.

    Seconds run from the request to the grade under whatever load the engine has, so they depend on
    scheduling and belong beside the table. A response that ran out of tokens or never closed its
    thinking is graded `truncated` without asking the grader; a request that failed, and a prompt
    without room for a response, are rows graded `failed` with their reason.

    Args:
        problem: what is asked.
        exit: the policy, and the name that its rows go by.
        ctx: recipe, engine that serves the model, grader.
        model: what the rows call the model (`base`, `trained`, a path).
    """
    prompt = prompt_ids(problem.question, ctx.tokenizer, ctx.recipe.model)
    seed = ctx.seed(problem.id, "evaluate")

    async def one(sample: int) -> tuple[EvaluationRow, float]:
        started = time.perf_counter()
        row = await _answered(problem, prompt, exit, ctx, model, sample, seed + sample)
        return row, time.perf_counter() - started

    samples = ctx.recipe.evaluate.samples
    return await gather_bounded((one(sample) for sample in range(samples)), limit=samples)


async def _answered(
    problem: Problem,
    prompt: tuple[int, ...],
    exit: ExitSettings,
    ctx: Context,
    model: str,
    sample: int,
    seed: int,
) -> EvaluationRow:
    settings = ctx.recipe.evaluate
    if len(prompt) < ctx.engine.context:
        sampling = Sampling(settings.max_tokens, settings.temperature, settings.top_p, seed=seed)
        response = await answer(problem, prompt, exit, ctx, sampling)
    else:
        response = ExitedResponse.failed(
            len(prompt),
            f"prompt has {len(prompt):,} tokens, context is {ctx.engine.context:,}: "
            "no room for a response",
        )
    if response.exit_reason == "failed":
        graded = Graded("failed", "", response.error)
    elif not response.complete:
        graded = Graded("truncated", "", "")
    else:
        graded = await ctx.grader.grade_conclusion(
            response.conclusion, problem.answer, problem.answer_kind
        )
    thinking, answered = len(response.thinking_ids), response.answer_tokens
    return EvaluationRow(
        id=EvaluationRow.make_id(model, exit.name, problem.id, sample),
        model=model,
        exit=exit.name,
        problem_id=problem.id,
        sample=sample,
        seed=seed,
        grade=graded.grade,
        answer=graded.answer,
        reason=graded.reason,
        exit_reason=response.exit_reason,
        thinking_tokens=thinking,
        answer_tokens=answered,
        trial_tokens=response.trial_tokens,
        tokens=thinking + answered + response.trial_tokens,
        prompt_tokens=len(prompt),
        attention_flops=response.attention_flops(ctx.engine.shape),
        trials=response.trials,
    )
