"""Batch: ask k numbered questions in one prompt (2508.17803, section 3: batch reasoning).

Each question is in at most one prompt for each k and sample; the groups differ by sample.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from dto.context import Context
from dto.drqa.answers import NumberedAnswer, numbered_answers
from dto.drqa.records import BatchResponse
from dto.errors import DtoError
from dto.prompts import render
from dto.protocols import Completion, Graded
from dto.recipe import ModelSettings, Recipe
from dto.records import Dropped, Problem, derive
from dto.runs.reader import RunReader
from dto.runs.stage import SAMPLING, Card, Group, Stage
from dto.tags import FOREIGN, foreign_detail
from dto.trajectories import Reading, chat_ids, no_room, read_whole


async def batch(problems: Sequence[Problem], sample: int, ctx: Context) -> BatchResponse | Dropped:
    """Sample one response to all of the problems, numbered from 1 in the order given.

    It is sampled with the settings of `sample`. Its limit is k times `batch.max_tokens`, or k times
    `sample.max_tokens`. A prompt that leaves no room is dropped as `prompt_too_long`. A response in
    another model's tags is dropped as `foreign_tags`. A failed request is a row graded `failed`.
    """
    row_id = BatchResponse.make_id(sample, tuple(problem.id for problem in problems))
    prompt = batch_prompt(problems, ctx)
    if full := no_room(prompt, ctx.engine.context):
        return Dropped(row_id, "prompt_too_long", full)
    tags, seed = ctx.tags, ctx.seed(row_id, "batch")
    most = min(most_tokens(len(problems), ctx.recipe), ctx.engine.context - len(prompt))
    (completion,) = await ctx.engine.complete(prompt, ctx.sampling(most, seed))
    reading, ended = await read_whole(prompt, completion, ctx.tokenizer, tags)
    if reading.foreign is not None:
        return Dropped(row_id, FOREIGN, foreign_detail(tags, reading.foreign))
    return await graded_row(problems, sample, seed, prompt, completion, reading, ended, ctx)


def most_tokens(k: int, recipe: Recipe) -> int:
    """The limit of a response to k questions; a question asked alone has that of `sample`."""
    own = recipe.batch.max_tokens if k > 1 else None
    return k * (own or recipe.sample.max_tokens)


async def graded_row(
    problems: Sequence[Problem],
    sample: int,
    seed: int,
    prompt: tuple[int, ...],
    completion: Completion,
    reading: Reading,
    ended: Graded | None,
    ctx: Context,
) -> BatchResponse:
    """Make the row of a response as it was read; `ended`: why it has no answers to grade.

    The answer to a question asked alone (by a teacher) needs no number.
    """
    k = len(problems)
    answers = [NumberedAnswer("", "")] * k
    if ended:
        graded = [ended] * k
    else:
        conclusion = reading.text[slice(*reading.conclusion)]
        if k > 1:
            languages = ctx.recipe.languages
            answers = await asyncio.to_thread(numbered_answers, conclusion, k, languages)
        grade = ctx.grader.grade_answer if k > 1 else ctx.grader.grade_conclusion
        graded = [
            await grade(
                numbered.answer if k > 1 else conclusion,
                problem.answer,
                problem.rule,
                problem.question,
            )
            for problem, numbered in zip(problems, answers, strict=True)
        ]
    # A failed answer leaves the denominator, so its reason comes first.
    reasons = [row.reason for row in sorted(graded, key=lambda row: row.grade != "failed")]
    ids = tuple(problem.id for problem in problems)
    return BatchResponse(
        id=BatchResponse.make_id(sample, ids),
        problem_ids=ids,
        k=k,
        model=ctx.engine.model,
        sample=sample,
        seed=seed,
        prompt_ids=prompt,
        token_ids=completion.token_ids,
        ids_from=completion.ids_from,
        text=reading.text,
        thinking=reading.thinking,
        conclusion=reading.conclusion,
        thinking_tokens=reading.thinking_tokens,
        finish_reason=completion.finish_reason,
        grades=tuple(row.grade for row in graded),
        answers=tuple(row.answer for row in graded),
        faults=tuple(numbered.fault for numbered in answers),
        reason=next(filter(None, reasons), ""),
    )


def batch_prompt(problems: Sequence[Problem], ctx: Context) -> tuple[int, ...]:
    """Render the prompt with the problems, one per line, numbered from 1, as token ids."""
    model = ctx.recipe.model
    return chat_ids(message(problems, model), ctx.tokenizer, model)


def message(problems: Sequence[Problem], model: ModelSettings) -> str:
    """The user message that asks the problems; a single one is asked as `sample` asks it."""
    if len(problems) == 1:
        [problem] = problems
        return render(model.prompt or problem.prompt, model.family, question=problem.question)
    numbered = (f"{i}. {problem.question}" for i, problem in enumerate(problems, start=1))
    return render("batch", model.family, questions="\n".join(numbered), k=len(problems))


def groups(
    problems: Sequence[Problem],
    k: int,
    sample: int,
    seed: int,
    rates: Mapping[str, float] | None = None,
) -> Iterator[tuple[Problem, ...] | Dropped]:
    """Group the questions by k, in an order that depends only on the seed and the ids.

    With `rates`, pass rates by problem id, a group has problems of similar difficulty; a problem
    without a rate counts as never solved. The rest that fills no group is dropped as `left_over`;
    other samples draw another order. Problems whose answer is a program are dropped as
    `no_short_answer`. Raises DtoError for fewer than k questions.
    """
    questions = [problem for problem in problems if problem.rule != "code"]
    if len(questions) < k:
        raise DtoError(
            f"batch.k {k} is larger than the {len(questions):,} questions that can share a prompt: "
            "raise problems.train or lower batch.k"
        )
    for problem in problems:
        if problem.rule == "code":
            yield Dropped(_id(problem, k, sample), "no_short_answer", "the answer is a program")

    def place(problem: Problem) -> tuple[float, int, str]:
        rate = 0.0 if rates is None else rates.get(problem.id, 0.0)
        return rate, derive(seed, problem.id, "batch", k, sample), problem.id

    questions.sort(key=place)
    whole = len(questions) - len(questions) % k
    for start in range(0, whole, k):
        yield tuple(questions[start : start + k])
    for problem in questions[whole:]:
        detail = f"{len(questions):,} questions are not a multiple of {k}"
        yield Dropped(_id(problem, k, sample), "left_over", detail)


def _id(problem: Problem, k: int, sample: int) -> str:
    return f"{k:03d}/{sample:03d}/{problem.id}"


def pass_rates(run: RunReader) -> dict[str, float]:
    """Compute the share of correct samples of each problem, without failed ones."""
    import polars as pl

    right = (pl.col("grade") == "correct").mean()
    frame = run.frame("sample").filter(pl.col("grade") != "failed")
    return dict(frame.group_by("problem_id").agg(right).collect().iter_rows())


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    settings, seed = ctx.recipe.batch, ctx.recipe.seed
    if not settings.k:
        raise DtoError("stage batch: batch.k is empty: set it, for instance to [2, 3, 5]")
    problems = list(run.problems("train"))  # in memory, about one kilobyte each
    rates = pass_rates(run) if settings.grouping == "difficulty" else None
    for k in settings.k:
        for sample in range(settings.samples):
            for row in groups(problems, k, sample, seed, rates):
                if isinstance(row, Dropped):
                    yield Group(row.id, (row,))
                else:
                    key = BatchResponse.make_id(sample, tuple(problem.id for problem in row))
                    yield Group(key, (row, sample))


def _total(run: RunReader) -> int:
    settings, problems = run.recipe.batch, run.count("problems", split="train")
    return settings.samples * sum(problems // k for k in settings.k)


def _reads(recipe: Recipe) -> tuple[str, ...]:
    return ("problems", "sample") if recipe.batch.grouping == "difficulty" else ("problems",)


STAGE = Stage(
    name="batch",
    about="Ask several questions in one prompt (DRQA).",
    amount=lambda recipe: (
        f"{', '.join(map(str, recipe.batch.k)) or 'no'} questions in a prompt, each question "
        f"{recipe.batch.samples:,} times for each"
    ),
    record=BatchResponse,
    reads=_reads,
    settings=lambda recipe: ("batch.", "languages", *SAMPLING, "sample.max_tokens"),
    files=lambda recipe: recipe.language_files,
    groups=_groups,
    work=batch,
    total=_total,
    card=Card(7, "batch_responses", "train", "responses to several numbered questions, grades"),
    paper="2508.17803",
)
