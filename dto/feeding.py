"""What each stage is fed with: the tables that it reads, its groups, and its function."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any

from dto import records, tables
from dto.context import Context
from dto.drqa import feed as drqa
from dto.errors import DtoError
from dto.recipe import ExitSettings, Recipe
from dto.records import (
    Dropped,
    OptimizedTrajectory,
    PreferencePair,
    Problem,
    Segment,
    Trajectory,
)
from dto.runs.graph import test_stage
from dto.runs.journal import Entry
from dto.runs.run import Run
from dto.runs.runner import Group, Stage, Timed
from dto.serving import Serving
from dto.stages.pilot import StaticExit
from dto.stages.trace import Trace
from dto.tags import think_tags

logger = logging.getLogger("dto")

RECORDS: dict[str, type[Any]] = {
    **records.RECORDS,
    "trace": Trace,
    "pilot": StaticExit,
}


async def feed(run: Run, stage: Stage, serving: Serving) -> None:
    """Give a stage its groups and its function."""
    name, recipe = stage.name, run.recipe
    if name == "problems":
        await asyncio.to_thread(_record_problems, stage, recipe)
    elif name == "test":
        await asyncio.to_thread(_record_test_sets, stage, run)
    elif name == "sample" and recipe.sample.imported:
        await _feed_imported(run, stage, serving)
    elif name == "segment":
        await _feed_segment(run, stage, serving)
    elif name == "pair":
        await _feed_pair(run, stage, serving)
    elif name == "evaluate":
        await _feed_evaluate(run, stage, serving)
    elif name in ("batch", "chain", "label"):
        await drqa.feed(run, stage, serving)
    else:
        await _feed_engine(run, stage, serving)


async def _feed_engine(run: Run, stage: Stage, serving: Serving) -> None:
    """Of a stage that one engine serves, its function has its name (`dto.estimate`, …)."""
    import dto

    context = await serving.context("base", None)
    if stage.name == "prune":
        context = await serving.with_judge(context)
    work = getattr(dto, stage.name)
    groups, total = _engine_groups(run, stage.name)
    await stage.feed(
        groups, lambda *rows: work(*rows, context), window=run.recipe.window, total=total
    )


async def _feed_segment(run: Run, stage: Stage, serving: Serving) -> None:
    from dto.segmentation.worker import processes, segment_texts
    from dto.stages.segment import snap

    tokenizer, granularity = serving.tokenizer(), run.recipe.segment.granularity
    loop = asyncio.get_running_loop()
    with processes() as pool:

        async def segment(trajectory: Trajectory) -> list[Segment] | Dropped:
            texts = [trajectory.text[slice(*trajectory.thinking)]]
            try:
                cuts = await loop.run_in_executor(pool, segment_texts, texts, granularity)
            except BrokenExecutor:
                raise DtoError(
                    "a segmentation process was killed, probably for memory: run again, what "
                    "was computed is kept"
                ) from None
            return await asyncio.to_thread(snap, trajectory, tokenizer, cuts[0])

        groups = (Group(row.id, (row,)) for row in _trajectories(run))
        total = tables.count(run.table("sample"))
        await stage.feed(groups, segment, window=run.recipe.window, total=total)


async def _feed_pair(run: Run, stage: Stage, serving: Serving) -> None:
    from dto.stages.pair import pair

    tokenizer, settings = serving.tokenizer(), run.recipe.pair
    max_tokens = run.recipe.sample.max_tokens

    async def pairs(
        problem: Problem,
        trajectories: Sequence[Trajectory],
        optimized: Sequence[OptimizedTrajectory],
    ) -> list[PreferencePair | Dropped]:
        return await asyncio.to_thread(
            pair, problem, trajectories, optimized, tokenizer, settings, max_tokens
        )

    total = tables.count(run.table("problems"), split="train")
    await stage.feed(_problem_groups(run), pairs, window=8, total=total)


async def _feed_imported(run: Run, stage: Stage, serving: Serving) -> None:
    from dto.tasks.importing import Response, read_responses, to_trajectory

    recipe = run.recipe
    tokenizer, grader = serving.tokenizer(), await serving.grader()
    tags = think_tags(tokenizer, recipe.model)
    known = await asyncio.to_thread(lambda: {row.id for row in _problems(run, "train")})

    async def imported(row: Response | Dropped) -> Trajectory | Dropped:
        if isinstance(row, Dropped):
            return row
        if row.problem.id not in known:
            detail = f"gold answer {row.problem.answer[:100]!r} of problem {row.problem.id}"
            row_id = Trajectory.make_id(row.problem.id, row.sample)
            return Dropped(row_id, "unreadable_gold", detail)
        return await to_trajectory(row, tokenizer, recipe.model, grader)

    def groups() -> Iterator[Group]:
        for row in read_responses(str(recipe.sample.imported), tags=tags):
            if isinstance(row, Dropped):
                yield Group(row.id, (row,))
            else:
                yield Group(Trajectory.make_id(row.problem.id, row.sample), (row,))

    await stage.feed(groups(), imported, window=recipe.window)


async def _feed_evaluate(run: Run, stage: Stage, serving: Serving) -> None:
    from dto.exits import check
    from dto.stages.evaluate import evaluate

    settings = run.recipe.evaluate
    total = tables.count(run.table(test_stage(run.recipe)), split="test") * len(settings.exits)
    for model in settings.models:
        if not stage.owes(_evaluation_groups(run, model)):
            continue
        path = {"base": None, "trained": str(run / "train" / "model")}.get(model, model)
        if model == "trained" and not (run / "train" / "model").is_dir():
            raise DtoError(
                f"the trained model of {run.path} is not here: bring it with `dto pull USER/NAME "
                f"--out {run.path} --weights`, or train again: `dto train {run.path} --overwrite`"
            )
        context = await serving.context(model, path)
        for exit in settings.exits:
            check(exit, context.engine)

        async def timed(
            problem: Problem, exit: ExitSettings, ctx: Context = context, label: str = model
        ) -> list[Timed]:
            return [Timed(*row) for row in await evaluate(problem, exit, ctx, label)]

        groups = _evaluation_groups(run, model)
        await stage.feed(groups, timed, window=run.recipe.window, total=total)


def _record_problems(stage: Stage, recipe: Recipe) -> None:
    rows: Iterator[Problem | Dropped]
    if recipe.sample.imported:
        from dto.tasks.importing import imported_problems

        rows = imported_problems(recipe.sample.imported, recipe.problems, recipe.seed)
    else:
        from dto.tasks.load import load_problems

        rows = load_problems(recipe.problems, recipe.seed)
    _note(stage, rows)


def _record_test_sets(stage: Stage, run: Run) -> None:
    from dto.tasks.load import load_test_sets

    rows = tables.read(run.table("problems"), Problem)
    asked = [row for row in rows if row.split != "test"]
    _note(stage, load_test_sets(run.recipe, asked))


def _note(stage: Stage, rows: Iterator[Problem | Dropped]) -> None:
    from dto.tasks.load import NEAR_DUPLICATE

    counts: Counter[str] = Counter()
    copies: dict[str, list[Problem]] = {}
    for row in rows:
        if isinstance(row, Dropped):
            stage.note(Entry(f"{row.id} {row.detail}", dropped=[row]))
            continue
        stage.note(Entry(row.id, rows=[row]))
        counts[row.split] += 1
        if NEAR_DUPLICATE in row.metadata:
            copies.setdefault(row.split, []).append(row)
    for split, found in copies.items():
        first = found[0]
        logger.warning(
            "%s: %s of %s %s problems repeat half or more of a question of another split, such as "
            "%s (%s): set problems.near_duplicates to drop to leave them out",
            stage.name, f"{len(found):,}", f"{counts[split]:,}", split, first.id,
            first.metadata[NEAR_DUPLICATE],
        )  # fmt: skip


def _problems(run: Run, split: str, stage: str = "problems") -> Iterator[Problem]:
    rows = tables.read(run.table(stage), Problem)
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
    """The groups of a stage that one engine serves row by row, and how many they are at most."""
    if name == "sample":
        groups = (Group(row.id, (row,)) for row in _problems(run, "train"))
        return groups, tables.count(run.table("problems"), split="train")
    if name == "trace":
        groups = (Group(row.id, (row,)) for row in _problems(run, "dev"))
        return groups, tables.count(run.table("problems"), split="dev")
    if name == "pilot":
        return (Group(row[1].id, row) for row in _joined(run)), tables.count(run.table("sample"))
    if name == "estimate":
        rows = (row for row in _joined(run, "segment") if row[2])
        return (Group(row[1].id, row) for row in rows), tables.count(run.table("sample"))
    if name == "optimize":
        if run.recipe.optimize.exit == "estimate":
            rows = (row for row in _joined(run, "segment", "estimate") if row[3])
        else:
            rows = ((*row, []) for row in _joined(run, "segment") if row[2])
        return (Group(row[1].id, row) for row in rows), tables.count(run.table("sample"))
    rows = (
        (problem, trajectory, segments, optimized[0])
        for problem, trajectory, segments, optimized in _joined(run, "segment", "optimize")
        if optimized
    )
    return (Group(row[1].id, row) for row in rows), tables.count(run.table("optimize"))


def _problem_groups(run: Run) -> Iterator[Group]:
    """(problem, its trajectories, their optimized versions, if pairs are made of those)."""
    optimized: Iterator[OptimizedTrajectory] = iter(())
    if run.recipe.pair.data == "optimized":
        optimized = tables.read(run.table("prune"), OptimizedTrajectory)
    merged = tables.merge(
        tables.read(run.table("problems"), Problem),
        (_trajectories(run), lambda row: str(row.problem_id)),
        (optimized, lambda row: str(row.problem_id)),
    )
    return (Group(row[0].id, row) for row in merged if row[1])


def _evaluation_groups(run: Run, model: str) -> Iterator[Group]:
    for exit in run.recipe.evaluate.exits:
        for problem in _problems(run, "test", test_stage(run.recipe)):
            yield Group(f"{model}/{exit.name}/{problem.id}", (problem, exit))
