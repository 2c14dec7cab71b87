"""Answer the test problems under each exit policy, and count the tokens (avg@n).

All policies and models answer sample j of a problem with the same seed, so comparisons are paired.
`dto.exits` has the policies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

from dto.concurrency import gather_bounded
from dto.context import Context, sampling
from dto.exits import ExitedResponse, answer
from dto.protocols import Graded
from dto.recipe import Recipe
from dto.records import NOWHERE, EvaluationRow, Problem, Span
from dto.runs.reader import RunReader
from dto.runs.stage import Card, Group, Stage, Timed
from dto.settings import ExitPolicy
from dto.text import INSIDE_CHARACTER, char_ends, decode_response
from dto.trajectories import no_room, prompt_ids
from dto.usage import ModelShape, Usage, charge, metered


async def evaluate(problem: Problem, exit: ExitPolicy, ctx: Context) -> list[Timed]:
    """Sample and grade `recipe.evaluate.samples` answers to one problem.

    A response that ran out of tokens or never closed its thinking is graded `truncated`. A failed
    request, and a prompt that fills the context, are rows graded `failed` with their reason.

    Args:
        problem: the question and its gold answer.
        exit: the exit policy; its name goes into the rows.
        ctx: recipe, engine, grader, and the model's name for the rows.
    """
    prompt = prompt_ids(problem.question, ctx.tokenizer, ctx.recipe.model, problem.prompt)
    seed = ctx.seed(problem.id, "evaluate")

    async def one(sample: int) -> Timed:
        started = time.perf_counter()
        with metered() as usage:
            row = await _answered(problem, prompt, exit, ctx, sample, seed + sample)
        wasted = max(0, usage.generated - row.tokens)
        # The engine counts tokens of aborted requests as wasted, the policy also unused ones.
        charge(Usage(wasted=max(0, wasted - usage.wasted)))
        return Timed(row, time.perf_counter() - started, wasted)

    samples = ctx.recipe.evaluate.samples
    return await gather_bounded((one(sample) for sample in range(samples)), limit=samples)


async def _answered(
    problem: Problem,
    prompt: tuple[int, ...],
    exit: ExitPolicy,
    ctx: Context,
    sample: int,
    seed: int,
) -> EvaluationRow:
    settings = ctx.recipe.evaluate
    if full := no_room(prompt, ctx.engine.context):
        response = ExitedResponse.failed(len(prompt), f"{full}: no room for a response")
    else:
        drawn = sampling(settings, settings.max_tokens, seed)
        response = await answer(problem, prompt, exit, ctx, drawn)
    graded = await grade_response(response, problem, ctx)
    row = evaluation_row(
        response, graded, exit.name, ctx.model, problem.id, sample, seed, ctx.engine.shape
    )
    if not settings.keep_answers:
        trials = tuple(replace(trial, token_ids=(), text="") for trial in row.trials)
        return replace(row, token_ids=(), inserted_tokens=NOWHERE, trials=trials)
    # A long response takes milliseconds to align: not on the event loop.
    return await asyncio.to_thread(_with_text, row, response.conclusion, ctx)


def _with_text(row: EvaluationRow, conclusion: str, ctx: Context) -> EvaluationRow:
    """Add the text of a row's ids, and the places of its parts."""
    text = decode_response(ctx.tokenizer, row.token_ids, ctx.tags)
    ends = char_ends(ctx.tokenizer, row.token_ids)

    def char(tokens: int) -> int:
        whole = (end for end in reversed(ends[:tokens]) if end != INSIDE_CHARACTER)
        return min(next(whole, 0), len(text))

    left, closed = map(char, row.inserted_tokens)
    at = text.rfind(conclusion)
    return replace(
        row,
        text=text,
        thinking=Span(char(row.inserted_tokens.start - row.thinking_tokens), left),
        inserted=Span(left, closed),
        conclusion=Span(closed, len(text)) if at < 0 else Span(at, at + len(conclusion)),
        trials=tuple(replace(trial, char=char(trial.position)) for trial in row.trials),
    )


async def grade_response(response: ExitedResponse, problem: Problem, ctx: Context) -> Graded:
    """Grade a response; one that ran out of tokens or left its thinking open is `truncated`."""
    if response.exit_reason == "failed":
        return Graded("failed", "", response.error)
    if not response.complete:
        return Graded("truncated", "", "")
    return await ctx.grader.grade_conclusion(
        response.conclusion, problem.answer, problem.rule, problem.question
    )


def evaluation_row(
    response: ExitedResponse,
    graded: Graded,
    exit: str,
    model: str,
    problem_id: str,
    sample: int,
    seed: int,
    shape: ModelShape | None,
) -> EvaluationRow:
    """Make the row of a response, sampled or replayed, with its ids and without its text."""
    thinking, answered = len(response.thinking_ids), response.answer_tokens
    return EvaluationRow(
        id=EvaluationRow.make_id(model, exit, problem_id, sample),
        model=model,
        exit=exit,
        problem_id=problem_id,
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
        prompt_tokens=response.prompt_tokens,
        attention_flops=response.attention_flops(shape),
        trials=response.trials,
        would_leave=response.would_leave,
        model_flops=response.model_flops(shape),
        token_ids=response.token_ids,
        inserted_tokens=response.inserted_tokens,
    )


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    for exit in ctx.recipe.evaluate.exits:
        for problem in run.problems("test", run.test_stage):
            yield Group(f"{ctx.model}/{exit.name}/{problem.id}", (problem, exit))


def _check(ctx: Context) -> None:
    for exit in ctx.recipe.evaluate.exits:
        exit.check(ctx.engine)


def _reads(recipe: Recipe) -> tuple[str, ...]:
    questions = "test" if recipe.evaluate.tasks else "problems"
    return (questions, "train") if "trained" in recipe.evaluate.models else (questions,)


def _settings(recipe: Recipe) -> tuple[str, ...]:
    # The ids of test problems, by which answers are kept, do not depend on these settings.
    further = ("rule", "rule_settings", "prompt") if recipe.evaluate.tasks else ()
    return ("evaluate.", "languages", *(f"problems.{key}" for key in further))


def _amount(recipe: Recipe) -> str:
    settings = recipe.evaluate
    answers = len(settings.models) * len(settings.exits) * settings.samples
    amount = f"{answers * recipe.problems.test:,} answers"
    if settings.tasks:
        amount = f"{answers:,} answers to each problem of {', '.join(settings.tasks)}"
    exits = ", ".join(exit.name for exit in settings.exits)
    return f"{amount}: models {', '.join(settings.models)}; exits {exits}"


STAGE = Stage(
    name="evaluate",
    about="Answer the test problems with every model and exit.",
    amount=_amount,
    record=EvaluationRow,
    reads=_reads,
    settings=_settings,
    files=lambda recipe: recipe.language_files,
    groups=_groups,
    work=evaluate,
    total=lambda run: run.count(run.test_stage, split="test") * len(run.recipe.evaluate.exits),
    models=lambda recipe: recipe.evaluate.models,
    check=_check,
    spends=False,
    card=Card(9, "evaluation", "test", "answers per model and exit: grade, tokens, trials"),
)
