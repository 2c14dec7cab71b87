"""Responses that exist already, as the first tables of a run that goes on at `segment`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from dto.errors import DtoError
from dto.grading import Grader
from dto.pipeline import load_tokenizer, tell
from dto.records import Dropped, Problem, Trajectory
from dto.runs import manifest
from dto.runs.journal import Entry
from dto.runs.run import Run
from dto.runs.stage import Group, Stage
from dto.stages.importing import Response, read_responses, to_trajectory


def import_responses(run: Run, source: str) -> None:
    """Fill `problems` and `sample` of a run with the rows of a file or a Hub dataset.

    The manifests say that they were imported: `dto run` then takes both as they are. Raises
    DtoError when the run has such tables already, and when no row can be read.
    """
    for name in ("problems", "sample"):
        if manifest.read(run / name) is not None:
            raise DtoError(f"{run / name} is finished already: give another --out, or --overwrite")
    config = {"imported": source, "model.name": run.recipe.model.name}
    with Stage(run / "problems", Problem, config) as stage:
        seen: set[str] = set()
        for row in read_responses(source):
            if isinstance(row, Response) and row.problem.id not in seen:
                seen.add(row.problem.id)
                stage.note(Entry(row.problem.id, [row.problem]))
        asyncio.run(stage.finish())
    asyncio.run(_trajectories(run, source, Stage(run / "sample", Trajectory, config)))
    tell(run, "problems")
    tell(run, "sample")
    if not seen:
        raise DtoError(
            f"{source} holds no row that can be read: see {run / 'sample/dropped.jsonl'}"
        )


async def _trajectories(run: Run, source: str, stage: Stage) -> None:
    tokenizer, settings = load_tokenizer(run.recipe), run.recipe.model

    async def work(row: Response | Dropped) -> Trajectory | Dropped:
        if isinstance(row, Dropped):
            return row
        return await to_trajectory(row, tokenizer, settings, grader)

    with stage:
        async with Grader() as grader:
            await stage.feed(_groups(source), work, window=run.recipe.window)
        await stage.finish()


def _groups(source: str) -> Iterator[Group]:
    for row in read_responses(source):
        if isinstance(row, Dropped):
            yield Group(row.id, (row,))
        else:
            yield Group(Trajectory.make_id(row.problem.id, row.sample), (row,))
