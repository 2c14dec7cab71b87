"""Chain: cut a response into one chain for each question, its reasoning and answer (2508.17803).

The paper cuts the reasoning about a question out of the response to a batch prompt and does not say
how. Here a cut is where the model names the next question (`dto.drqa.split`). A chain that cannot
be cut out cleanly is dropped with the reason.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from dto.context import Context
from dto.drqa.records import BatchResponse, Chain, Origin
from dto.drqa.split import alike, goes_over_all, others, quoted, split
from dto.drqa.teacher import as_trajectory
from dto.languages import DEFAULT, Languages
from dto.recipe import Recipe
from dto.records import Dropped, Grade, Problem, Span, Trajectory
from dto.runs.reader import RunReader
from dto.runs.stage import Card, Group, Stage, always
from dto.text import char_ends, tokens_within

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def vanilla_chain(
    problem: Problem,
    trajectory: Trajectory,
    tokenizer: PreTrainedTokenizerBase,
    languages: Languages = DEFAULT,
) -> Chain | Dropped:
    """Make the chain of a question that was asked alone: all of the thinking.

    Dropped as `truncated`, `failed`, `names_a_question` (it names one by number; such batch chains
    are dropped too), `empty` or `answer_not_reached` (the answer is a number that is not in it).
    """
    row_id = Chain.make_id(problem.id, "vanilla", 1, trajectory.sample)
    if trajectory.grade not in ("correct", "wrong"):
        return Dropped(row_id, trajectory.grade, trajectory.reason)
    thinking = trajectory.text[slice(*trajectory.thinking)]
    named = others(thinking, None, problem.question, languages)
    if named:
        return Dropped(row_id, "names_a_question", f"{named[0]!r}")
    span, answer = trajectory.thinking_tokens, trajectory.answer
    text = alike(thinking, languages=languages)
    return _whole(problem, trajectory, 1, span, text, answer, trajectory.grade, tokenizer)


def batch_chains(
    problems: Sequence[Problem],
    response: BatchResponse,
    tokenizer: PreTrainedTokenizerBase,
    languages: Languages = DEFAULT,
) -> Iterator[Chain | Dropped]:
    """Cut the chains of the questions of one batch prompt, in the order asked.

    Dropped as `truncated` or `failed`, for the fault of the answer (`dto.drqa.answers`), for the
    reason of the piece (`dto.drqa.split`), as `quotes_another` (the chain names another question,
    quotes it, or goes over all answers), `empty`, or `answer_not_reached` (the chain may belong to
    another question).
    """
    start = response.thinking.start
    thinking = response.text[slice(*response.thinking)]
    questions = [problem.question for problem in problems]
    whole = any(grade in ("correct", "wrong") for grade in response.grades)
    pieces = split(thinking, questions, languages) if whole else []
    ends: list[int] | None = None
    for index, problem in enumerate(problems):
        row_id = Chain.make_id(problem.id, "batch", response.k, response.sample)
        grade, fault = response.grades[index], response.faults[index]
        if grade not in ("correct", "wrong"):
            yield Dropped(row_id, grade, response.reason)
            continue
        if fault:
            yield Dropped(row_id, fault, f"answer {index + 1} of {response.id}")
            continue
        piece = pieces[index]
        if piece.reason:
            yield Dropped(row_id, piece.reason, f"{response.id}: {piece.detail}")
            continue
        text = thinking[piece.heading.end : piece.span.end]
        other_questions = questions[:index] + questions[index + 1 :]
        other_answers = response.answers[:index] + response.answers[index + 1 :]
        leak = ""
        if named := others(text, index + 1, problem.question, languages):
            leak = f"it names {named[0]!r}"
        elif quoted(text, problem.question, other_questions):
            leak = "it repeats another question"
        elif goes_over_all(text, other_answers, languages):
            leak = "it goes over all answers"
        if leak:
            yield Dropped(row_id, "quotes_another", f"{response.id}: {leak}")
            continue
        if ends is None:
            ends = char_ends(tokenizer, response.token_ids)
        chars = Span(start + piece.span.start, start + piece.span.end)
        span, text = tokens_within(ends, chars), alike(text, index + 1, languages)
        answer = response.answers[index]
        yield _whole(problem, response, index + 1, span, text, answer, grade, tokenizer)


def _whole(
    problem: Problem,
    source: Trajectory | BatchResponse,
    number: int,
    span: Span,
    text: str,
    answer: str,
    grade: Grade,
    tokenizer: PreTrainedTokenizerBase,
) -> Chain | Dropped:
    """Make the chain, unless it is empty or its answer is a number that is not in it."""
    k = source.k if isinstance(source, BatchResponse) else 1
    origin: Origin = "batch" if isinstance(source, BatchResponse) else "vanilla"
    row_id = Chain.make_id(problem.id, origin, k, source.sample)
    if not text or not span.length:
        return Dropped(row_id, "empty", f"{source.id}: no thinking about the question")
    figure = answer.replace(",", "")
    if _NUMBER.fullmatch(figure) and figure not in _NUMBER.findall(text.replace(",", "")):
        return Dropped(row_id, "answer_not_reached", f"{source.id}: {figure}")
    return Chain(
        id=row_id,
        problem_id=problem.id,
        origin=origin,
        k=k,
        sample=source.sample,
        number=number,
        source_id=source.id,
        span=span,
        text=text,
        tokens=span.length,
        length=len(tokenizer.encode(text, add_special_tokens=False)),
        answer=answer,
        grade=grade,
    )


class Cut:
    """Cuts a response into chains, once for all of its questions.

    A copy in another process cuts it again.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        source: Trajectory | BatchResponse,
        languages: Languages,
    ) -> None:
        self._parts = problems, source, languages
        self._chains: list[Chain | Dropped] | None = None
        self._lock = Lock()

    def __call__(self, tokenizer: PreTrainedTokenizerBase) -> list[Chain | Dropped]:
        """The chains of its questions, in order."""
        problems, source, languages = self._parts
        with self._lock:
            if self._chains is None:
                self._chains = (
                    [vanilla_chain(problems[0], source, tokenizer, languages)]
                    if isinstance(source, Trajectory)
                    else list(batch_chains(problems, source, tokenizer, languages))
                )
            return self._chains

    def __reduce__(self) -> tuple[type[Cut], tuple[Any, ...]]:
        return Cut, self._parts


async def chain(cut: Cut, index: int, ctx: Context) -> Chain | Dropped:
    """Cut a response, and return the chain of one of its questions."""
    return (await asyncio.to_thread(cut, ctx.tokenizer))[index]


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    problems = {row.id: row for row in run.problems("train")}
    languages = ctx.recipe.languages
    taught = ctx.recipe.batch.k and ctx.recipe.batch.teacher is not None
    for trajectory in () if taught else run.rows("sample", Trajectory):
        key = Chain.make_id(trajectory.problem_id, "vanilla", 1, trajectory.sample)
        yield Group(key, (Cut([problems[trajectory.problem_id]], trajectory, languages), 0))
    for response in run.rows("batch", BatchResponse) if ctx.recipe.batch.k else ():
        in_prompt = [problems[problem_id] for problem_id in response.problem_ids]
        if response.k == 1:
            key = Chain.make_id(in_prompt[0].id, "vanilla", 1, response.sample)
            yield Group(key, (Cut(in_prompt, as_trajectory(response), languages), 0))
            continue
        cut = Cut(in_prompt, response, languages)
        for index, problem_id in enumerate(response.problem_ids):
            key = Chain.make_id(problem_id, "batch", response.k, response.sample)
            yield Group(key, (cut, index))


def _reads(recipe: Recipe) -> tuple[str, ...]:
    if recipe.batch.k and recipe.batch.teacher is not None:
        return ("batch",)
    return ("sample", "batch") if recipe.batch.k else ("sample",)


STAGE = Stage(
    name="chain",
    about="Cut batch responses into one chain per question (DRQA).",
    amount=lambda recipe: "one for each question of a response",
    record=Chain,
    reads=_reads,
    settings=always("languages"),
    files=lambda recipe: recipe.language_files,
    groups=_groups,
    work=chain,
    needs="tokenizer",
    window=8,
    card=Card(8, "chains", "train", "the reasoning about one question, asked alone or together"),
    paper="2508.17803",
)
