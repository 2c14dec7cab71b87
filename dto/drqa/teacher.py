"""Chains by another model, DRQA's teacher (2508.17803: DeepSeek-R1 writes the chains).

With `batch.teacher` the stage `batch` asks this model in place of the one that is trained, and asks
it each question alone too: chains of both kinds have one author, since a label would otherwise tell
authors apart. The stage's usage is the teacher's.

The rows are in the tokens of the model that is trained. Where the teacher's engine returns ids, and
both models have the same tokenizer and tags, these are the sampled ids. Otherwise the text is
encoded again, with the trained model's prompt and tags, and the row says `encoded`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dto.context import Context
from dto.drqa import batch
from dto.drqa.batch import graded_row, message, most_tokens
from dto.drqa.records import BatchResponse
from dto.engines.checks import check_model
from dto.engines.models import load_tokenizer
from dto.protocols import Completion, Graded, Message
from dto.recipe import JudgeSettings, Recipe
from dto.records import Dropped, Problem, Span, Trajectory
from dto.runs.reader import RunReader
from dto.runs.stage import RENDERING, SAMPLING, Group, never
from dto.tags import FOREIGN, ThinkTags, foreign_detail, shown_tags, think_tags
from dto.text import split_thinking
from dto.trajectories import (
    Reading,
    chat_ids,
    no_room,
    opening,
    read_response,
    read_whole,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUOTED_TAG = "quotes_a_tag"
"""The reason for dropping a response in which a tag of the trained model is ordinary text."""


def settings_of(recipe: Recipe) -> JudgeSettings:
    """The teacher's settings, with the prompts of the model that is trained."""
    teacher, model = recipe.batch.teacher, recipe.model
    assert teacher is not None
    own = {"family": model.family, "prompt": teacher.prompt or model.prompt}
    return teacher.model_copy(update=own)


async def taught(
    problems: Sequence[Problem], sample: int, student: PreTrainedTokenizerBase, ctx: Context
) -> BatchResponse | Dropped:
    """Let the teacher answer the problems, one alone or several numbered ones.

    `ctx.engine` is the teacher's, `student` the tokenizer of the model that is trained. Dropped as
    `dto.drqa.batch.batch` does, and as `quotes_a_tag`.
    """
    recipe, engine = ctx.recipe, ctx.engine
    teacher = settings_of(recipe)
    row_id = BatchResponse.make_id(sample, tuple(problem.id for problem in problems))
    seed, most = ctx.seed(row_id, "batch"), most_tokens(len(problems), recipe)
    user = message(problems, teacher)
    prompt: tuple[int, ...] = ()
    if engine.tokenizer is None or engine.capabilities.messages_only:
        messages: list[Message] = [{"role": "user", "content": user}]
        if teacher.system is not None:
            messages.insert(0, {"role": "system", "content": teacher.system})
        (completion,) = await engine.complete(messages, ctx.sampling(most, seed))
        tags = shown_tags(teacher)
        reading, ended = _read_text(completion, tags)
    else:
        prompt = chat_ids(user, engine.tokenizer, teacher)
        if full := no_room(prompt, engine.context):
            return Dropped(row_id, "prompt_too_long", full)
        sampling = ctx.sampling(min(most, engine.context - len(prompt)), seed)
        (completion,) = await engine.complete(prompt, sampling)
        tags = think_tags(engine.tokenizer, teacher)
        reading, ended = await read_whole(prompt, completion, engine.tokenizer, tags)
    if reading.foreign is not None:
        return Dropped(row_id, FOREIGN, foreign_detail(tags, reading.foreign))
    own = think_tags(student, recipe.model)
    sampled = completion.ids_from == "sampled" and engine.tokenizer is not None
    if not (sampled and tags == own and _same(engine.tokenizer, student)):
        prompt = chat_ids(message(problems, recipe.model), student, recipe.model)
        encoded = await asyncio.to_thread(_encoded, prompt, completion, reading, student, own)
        if encoded is None:
            return Dropped(row_id, QUOTED_TAG, f"{own.open} or {own.close} is text in the response")
        completion, reading = encoded
    return await graded_row(problems, sample, seed, prompt, completion, reading, ended, ctx)


def _read_text(completion: Completion, tags: ThinkTags) -> tuple[Reading, Graded | None]:
    """Read the reply of a chat server, whose prompt is unknown, as `read_whole` reads ids."""
    text, finished = completion.text, completion.finish_reason == "stop"
    # A template that opens the thinking leaves a reply with the closing tag alone.
    split = split_thinking(text, opened=tags.close in text, tags=tags)
    foreign = tags.foreign(text, ended=finished)
    reading = Reading(text, split.thinking, split.conclusion, Span(0, 0), split.closed, foreign)
    if completion.finish_reason == "failed":
        return reading, Graded("failed", "", completion.error or "the engine gave no reason")
    return reading, None if finished and split.closed else Graded("truncated", "", "")


def _encoded(
    prompt: tuple[int, ...],
    completion: Completion,
    reading: Reading,
    tokenizer: PreTrainedTokenizerBase,
    tags: ThinkTags,
) -> tuple[Completion, Reading] | None:
    """The response in the tokens and tags of the model that is trained.

    None if one of these tags is ordinary text in it.
    """
    thinking = reading.text[slice(*reading.thinking)]
    conclusion = reading.text[slice(*reading.conclusion)]
    if any(tag in part for tag in (tags.open, tags.close) for part in (thinking, conclusion)):
        return None
    finished = completion.finish_reason == "stop"
    text = opening(tokenizer, prompt, tags) + thinking.lstrip("\n")
    if reading.closed:
        text += tags.close + conclusion
    ids = tags.encode(tokenizer, text) if completion.finish_reason != "failed" else ()
    if finished and tokenizer.eos_token_id is not None:
        ids = (*ids, int(tokenizer.eos_token_id))
    again = read_response(tokenizer, prompt, ids, tags, ended=finished)
    return replace(completion, token_ids=ids, ids_from="encoded"), again


@lru_cache(maxsize=4)
def _same(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers encode every text alike."""
    return bool(one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str())


def as_trajectory(row: BatchResponse) -> Trajectory:
    """The response to a question that was asked alone."""
    [problem_id], [grade], [answer] = row.problem_ids, row.grades, row.answers
    shared = {name: getattr(row, name) for name in (
        "id", "model", "sample", "seed", "prompt_ids", "token_ids", "ids_from", "text", "thinking",
        "conclusion", "thinking_tokens", "finish_reason", "reason",
    )}  # fmt: skip
    return Trajectory(problem_id=problem_id, grade=grade, answer=answer, **shared)


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    """The groups of `batch`, and each question alone, as often as `sample` asks it."""
    student = load_tokenizer(ctx.recipe.model)
    check_model(student, ctx.recipe.model)
    for group in batch.STAGE.groups(run, ctx):
        dropped = isinstance(group.rows[0], Dropped)
        yield group if dropped else Group(group.key, (*group.rows, student))
    for problem in run.problems("train"):
        if problem.rule == "code":  # `batch` has dropped it
            continue
        for sample in range(ctx.recipe.sample.samples):
            yield Group(BatchResponse.make_id(sample, (problem.id,)), ((problem,), sample, student))


def _files(recipe: Recipe) -> tuple[str, ...]:
    teacher = recipe.batch.teacher
    local = (teacher.name,) if teacher is not None and Path(teacher.name).is_dir() else ()
    return (*recipe.language_files, *local)


def _amount(recipe: Recipe) -> str:
    teacher, samples = recipe.batch.teacher, recipe.sample.samples
    assert teacher is not None
    return (
        f"{batch.STAGE.amount(recipe)}, and {samples:,} times alone, by {teacher.name} on "
        f"{teacher.engine}"
    )


def _total(run: RunReader) -> int | None:
    several = batch.STAGE.total(run)
    alone = run.count("problems", split="train") * run.recipe.sample.samples
    return None if several is None else several + alone


STAGE = replace(
    batch.STAGE,
    amount=_amount,
    settings=lambda recipe: (
        "batch.", "languages", *SAMPLING, "sample.max_tokens", "sample.samples", "model.prompt",
        *RENDERING,
    ),
    files=_files,
    groups=_groups,
    work=taught,
    total=_total,
    asks_model=never,
    renders=True,
)  # fmt: skip
