"""The wiring: which tables each stage reads, what its groups are, and which function gets them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import AsyncExitStack
from itertools import groupby
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from dto import tables
from dto.context import Context
from dto.errors import DtoError, disk_errors
from dto.recipe import ExitSettings, Recipe
from dto.records import (
    Dropped,
    EvaluationRow,
    ExitEstimate,
    OptimizedTrajectory,
    PreferencePair,
    Problem,
    Segment,
    Trajectory,
)
from dto.runs import manifest
from dto.runs.journal import Entry
from dto.runs.run import Run, count, write_run_manifest
from dto.runs.stage import Group, Stage, Timed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.engines.base import Engine
    from dto.stages.report import Report

logger = logging.getLogger("dto")

RECORDS: dict[str, type[Any]] = {
    "problems": Problem,
    "sample": Trajectory,
    "segment": Segment,
    "estimate": ExitEstimate,
    "optimize": OptimizedTrajectory,
    "prune": OptimizedTrajectory,
    "pair": PreferencePair,
    "evaluate": EvaluationRow,
}


def run_stages(run: Run, stages: Sequence[str]) -> Report | None:
    """Compute the stages, in the order given, that are not finished yet; the report, if asked for.

    One engine serves consecutive stages; it is closed before training, which wants its memory.
    Raises what a stage raises; what was computed until then is kept.
    """
    summary: Report | None = None
    for apart, names in groupby(stages, key=lambda stage: stage in ("train", "report")):
        if not apart:
            asyncio.run(_compute(run, list(names)))
            continue
        for name in names:
            if name == "train":
                _train(run)
            else:
                from dto.stages.report import report

                run.config(name)  # says what is missing
                summary = report(run.path)
    write_run_manifest(run)
    return summary


def _train(run: Run) -> None:
    """Training is a process of its own; its journal holds only what it was begun with."""
    config = run.config("train")
    if run.finished("train", config):
        tell(run, "train", "done before")
        return
    from dto.stages.train import train

    begun = time.perf_counter()
    directory = run / "train"
    with disk_errors(directory):
        directory.mkdir(exist_ok=True)
        manifest.write_text(directory / "journal", json.dumps({"head": {"config": config}}) + "\n")
    result = train(run.path, run.recipe)
    result["seconds"] = time.perf_counter() - begun
    with disk_errors(directory):
        manifest.write(directory, manifest.finished("train", config) | result)
        (directory / "journal").unlink()
    tell(run, "train")


async def _compute(run: Run, stages: Sequence[str]) -> None:
    async with Serving(run.recipe) as serving:
        for name in stages:
            config = run.config(name)
            if run.finished(name, config):
                tell(run, name, "done before")
                continue
            with Stage(run / name, RECORDS[name], config) as stage:
                await _feed(run, stage, serving)
                await stage.finish()
            tell(run, name)


async def _feed(run: Run, stage: Stage, serving: Serving) -> None:
    """Give a stage its groups and its function."""
    name, recipe, window = stage.name, run.recipe, run.recipe.window

    if name == "problems":
        from dto.problems import load_problems

        await asyncio.to_thread(
            _record_problems, stage, load_problems(recipe.problems, recipe.seed)
        )
        return
    if name == "evaluate":
        await _feed_evaluate(run, stage, serving)
        return
    if name == "segment":
        tokenizer = serving.tokenizer()
        from dto.segmentation.worker import segment_texts
        from dto.stages.segment import snap

        loop = asyncio.get_running_loop()
        with _segment_processes() as pool:

            async def segment(trajectory: Trajectory) -> list[Segment] | Dropped:
                texts = [trajectory.text[slice(*trajectory.thinking)]]
                try:
                    cuts = await loop.run_in_executor(
                        pool, segment_texts, texts, recipe.segment.granularity
                    )
                except BrokenExecutor:
                    raise DtoError(
                        "a segmentation process was killed, probably for memory: run again, what "
                        "was computed is kept"
                    ) from None
                return await asyncio.to_thread(snap, trajectory, tokenizer, cuts[0])

            groups = (Group(row.id, (row,)) for row in _trajectories(run))
            await stage.feed(groups, segment, window=window, total=count(run, "sample"))
        return
    if name == "pair":
        from dto.stages.pair import pair

        tokenizer = serving.tokenizer()

        async def pairs(
            problem: Problem,
            trajectories: Sequence[Trajectory],
            optimized: Sequence[OptimizedTrajectory],
        ) -> list[PreferencePair | Dropped]:
            return await asyncio.to_thread(
                pair, problem, trajectories, optimized, tokenizer, recipe.pair
            )

        total = count(run, "problems", split="train")
        await stage.feed(_problem_groups(run), pairs, window=8, total=total)
        return

    import dto

    context = await serving.context("base", None)
    work = getattr(dto, name)
    rows, total = _engine_groups(run, name)
    await stage.feed(rows, lambda *rows: work(*rows, context), window=window, total=total)


async def _feed_evaluate(run: Run, stage: Stage, serving: Serving) -> None:
    from dto.stages.evaluate import evaluate

    settings = run.recipe.evaluate
    total = count(run, "problems", split="test") * len(settings.exits)
    for model in settings.models:
        if not stage.owes(_evaluation_groups(run, model)):
            continue
        path = {"base": None, "trained": str(run / "train" / "model")}.get(model, model)
        context = await serving.context(model, path)

        async def timed(
            problem: Problem, exit: ExitSettings, ctx: Context = context, label: str = model
        ) -> list[Timed]:
            return [Timed(*row) for row in await evaluate(problem, exit, ctx, label)]

        groups = _evaluation_groups(run, model)
        await stage.feed(groups, timed, window=run.recipe.window, total=total)


class Serving:
    """The engine and the grader of consecutive stages, opened when a stage first asks for them.

    At most one engine is open: two would share the memory.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._grader = AsyncExitStack()
        self._engine = AsyncExitStack()
        self._label = ""
        self._context: Context | None = None

    async def __aenter__(self) -> Serving:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._engine.aclose()
        await self._grader.aclose()

    async def context(self, label: str, model: str | None) -> Context:
        """The context with the engine for `model` (None: the recipe's own), known as `label`."""
        if self._context is not None and self._label == label:
            return self._context
        from dto.engines import open_engine
        from dto.grading import Grader

        await self._engine.aclose()
        grader = (
            self._context.grader
            if self._context is not None
            else await self._grader.enter_async_context(Grader())
        )
        engine: Engine = await self._engine.enter_async_context(
            open_engine(self._recipe.model, model)
        )
        self._label, self._context = label, Context(self._recipe, engine, grader)
        return self._context

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The recipe's tokenizer; no engine is opened for it."""
        if self._context is not None and self._label == "base":
            return self._context.tokenizer
        return load_tokenizer(self._recipe)


def load_tokenizer(recipe: Recipe, *, local: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe's model; `local`: only when nothing has to be fetched for it.

    Raises DtoError when there is none.
    """
    from transformers import AutoTokenizer

    from dto.nano import resolve

    name, revision = resolve(recipe.model.name), recipe.model.revision
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=revision, local_files_only=local
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DtoError(f"tokenizer of {recipe.model.name!r} cannot be loaded: {reason}") from None
    return tokenizer


def _segment_processes() -> ProcessPoolExecutor:
    from dto.segmentation.worker import start

    return ProcessPoolExecutor(
        max_workers=min(8, os.cpu_count() or 1),
        mp_context=get_context("spawn"),
        initializer=start,
    )


def _record_problems(stage: Stage, rows: Iterator[Problem | Dropped]) -> None:
    for row in rows:
        if isinstance(row, Dropped):
            stage.note(Entry(f"{row.id} {row.detail}", dropped=[row]))
        else:
            stage.note(Entry(row.id, rows=[row]))


def _problems(run: Run, split: str) -> Iterator[Problem]:
    rows = tables.read(run.table("problems"), Problem)
    return (row for row in rows if row.split == split)


def _trajectories(run: Run) -> Iterator[Trajectory]:
    return tables.read(run.table("sample"), Trajectory)


def _joined(run: Run, *stages: str) -> Iterator[tuple[Any, ...]]:
    """(problem, trajectory, rows of each stage …) for each trajectory, in one pass."""
    rows = tables.merge(
        _trajectories(run),
        *(
            (tables.read(run.table(stage), RECORDS[stage]), lambda row: str(row.trajectory_id))
            for stage in stages
        ),
    )
    for problem, found in tables.merge(
        tables.read(run.table("problems"), Problem), (rows, lambda row: str(row[0].problem_id))
    ):
        for row in found:
            yield (problem, *row)


def _engine_groups(run: Run, name: str) -> tuple[Iterator[Group], int]:
    """The groups of sample, estimate, optimize or prune, and how many there are at most."""
    if name == "sample":
        groups = (Group(row.id, (row,)) for row in _problems(run, "train"))
        return groups, count(run, "problems", split="train")
    if name == "estimate":
        rows = (row for row in _joined(run, "segment") if row[2])
        return (Group(row[1].id, row) for row in rows), count(run, "sample")
    if name == "optimize":
        rows = (row for row in _joined(run, "segment", "estimate") if row[3])
        return (Group(row[1].id, row) for row in rows), count(run, "sample")
    rows = (
        (problem, trajectory, segments, optimized[0])
        for problem, trajectory, segments, optimized in _joined(run, "segment", "optimize")
        if optimized
    )
    return (Group(row[1].id, row) for row in rows), count(run, "optimize")


def _problem_groups(run: Run) -> Iterator[Group]:
    """(problem, its trajectories, their optimized versions)."""
    merged = tables.merge(
        tables.read(run.table("problems"), Problem),
        (_trajectories(run), lambda row: str(row.problem_id)),
        (
            tables.read(run.table("prune"), OptimizedTrajectory),
            lambda row: str(row.problem_id),
        ),
    )
    return (Group(row[0].id, row) for row in merged if row[1])


def _evaluation_groups(run: Run, model: str) -> Iterator[Group]:
    for exit in run.recipe.evaluate.exits:
        for problem in _problems(run, "test"):
            yield Group(f"{model}/{exit.name}/{problem.id}", (problem, exit))


def tell(run: Run, name: str, remark: str = "") -> None:
    """One line about a finished stage: nothing is dropped in silence."""
    done = manifest.read(run / name) or {}
    parts = [f"{done['rows']:,} rows"] if isinstance(done.get("rows"), int) else []
    dropped = done.get("dropped")
    if isinstance(dropped, dict):
        parts += [f"{amount:,} dropped: {reason}" for reason, amount in dropped.items()]
    parts.append(remark or f"{done['usage']['generated']:,} tokens, {done['seconds']:.1f} s")
    logger.info("%-9s %s", name, ", ".join(parts))
