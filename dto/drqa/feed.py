"""What the stages batch, chain and label are fed with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dto import tables
from dto.drqa.batch import groups
from dto.errors import DtoError
from dto.records import (
    BatchResponse,
    Chain,
    Dropped,
    Grade,
    LabelledChain,
    Origin,
    Problem,
    Trajectory,
)
from dto.runs.run import Run
from dto.runs.runner import Group, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.serving import Serving


async def feed(run: Run, stage: Stage, serving: Serving) -> None:
    """Give one of the three stages its groups and its function."""
    if stage.name == "batch":
        await _feed_batch(run, stage, serving)
    elif stage.name == "chain":
        await _feed_chain(run, stage, serving.tokenizer())
    else:
        await _feed_label(run, stage, serving.tokenizer())


def _asked(run: Run) -> dict[str, Problem]:
    """The training problems by id: their text is all that is held, one kilobyte each."""
    rows = tables.read(run.table("problems"), Problem)
    return {row.id: row for row in rows if row.split == "train"}


async def _feed_batch(run: Run, stage: Stage, serving: Serving) -> None:
    from dto.drqa.batch import batch

    settings, seed = run.recipe.batch, run.recipe.seed
    if not settings.k:
        raise DtoError(
            "stage batch: batch.k names no number of questions: set batch.k to [2, 3, 5]"
        )
    problems = list((await asyncio.to_thread(_asked, run)).values())
    rates = None
    if settings.grouping == "difficulty":
        rates = await asyncio.to_thread(pass_rates, run.table("sample"))

    def found() -> Iterator[tuple[int, tuple[Problem, ...] | Dropped]]:
        for k in settings.k:
            for sample in range(settings.samples):
                for row in groups(problems, k, sample, seed, rates):
                    yield sample, row

    def owed() -> Iterator[Group]:
        for sample, row in found():
            if isinstance(row, Dropped):
                yield Group(row.id, (row, sample))
            else:
                key = BatchResponse.make_id(sample, tuple(problem.id for problem in row))
                yield Group(key, (row, sample))

    context = await serving.context("base", None)

    async def work(row: Sequence[Problem] | Dropped, sample: int) -> BatchResponse | Dropped:
        return row if isinstance(row, Dropped) else await batch(row, sample, context)

    total = settings.samples * sum(len(problems) // k for k in settings.k)
    await stage.feed(owed(), work, window=run.recipe.window, total=total)


def pass_rates(samples: Path) -> dict[str, float]:
    """The share of right samples of each problem, of a table of trajectories; none failed."""
    import polars as pl

    right = (pl.col("grade") == "correct").mean()
    frame = pl.scan_parquet(samples).filter(pl.col("grade") != "failed")
    return dict(frame.group_by("problem_id").agg(right).collect().iter_rows())


async def _feed_chain(run: Run, stage: Stage, tokenizer: PreTrainedTokenizerBase) -> None:
    from dto.drqa.chain import batch_chains, vanilla_chain

    problems = await asyncio.to_thread(_asked, run)

    def made() -> Iterator[Group]:
        for alone in tables.read(run.table("sample"), Trajectory):
            problem = problems[alone.problem_id]
            key = Chain.make_id(problem.id, "vanilla", 1, alone.sample)
            yield Group(key, (partial(vanilla_chains, problem, alone), 0))
        if not run.recipe.batch.k:
            return
        for response in tables.read(run.table("batch"), BatchResponse):
            asked = [problems[each] for each in response.problem_ids]
            cut = cache(partial(cut_up, asked, response))  # once for all of its questions
            for index, problem in enumerate(asked):
                key = Chain.make_id(problem.id, "batch", response.k, response.sample)
                yield Group(key, (cut, index))

    def vanilla_chains(problem: Problem, alone: Trajectory) -> list[Chain | Dropped]:
        return [vanilla_chain(problem, alone, tokenizer)]

    def cut_up(asked: Sequence[Problem], response: BatchResponse) -> list[Chain | Dropped]:
        return list(batch_chains(asked, response, tokenizer))

    async def work(cut: Callable[[], list[Chain | Dropped]], index: int) -> Chain | Dropped:
        return (await asyncio.to_thread(cut))[index]

    await stage.feed(made(), work, window=8)


async def _feed_label(run: Run, stage: Stage, tokenizer: PreTrainedTokenizerBase) -> None:
    from dto.drqa.classes import balance
    from dto.drqa.label import label

    recipe = run.recipe
    unknown = sorted(set(recipe.label.k) - set(recipe.batch.k))
    if unknown:
        asked = ", ".join(map(str, recipe.batch.k)) or "none"
        raise DtoError(f"label.k {unknown[0]} is no number of questions in batch.k: {asked}")
    kept = await asyncio.to_thread(lambda: balance(_by_problem(run), recipe.label, recipe.seed))
    rows = tables.merge(
        tables.read(run.table("problems"), Problem),
        (tables.read(run.table("chain"), Chain), lambda row: str(row.problem_id)),
    )

    async def work(problem: Problem, chains: Sequence[Chain]) -> list[LabelledChain | Dropped]:
        return await asyncio.to_thread(label, problem, chains, kept, tokenizer, recipe)

    made = (Group(row[0].id, row) for row in rows if row[1])
    await stage.feed(made, work, window=8, total=tables.count(run.table("problems"), split="train"))


class _Light(NamedTuple):
    """The columns of a chain that its class goes by."""

    id: str
    problem_id: str
    origin: Origin
    k: int
    grade: Grade
    tokens: int
    length: int


def _by_problem(run: Run) -> Iterator[list[_Light]]:
    """The chains of each problem, without their text."""
    import polars as pl

    frame = pl.scan_parquet(run.table("chain")).select(_Light._fields).collect()
    rows = (_Light(*row) for row in frame.iter_rows())
    for _, chains in groupby(rows, key=lambda row: row.problem_id):
        yield list(chains)
