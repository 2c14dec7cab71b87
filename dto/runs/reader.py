"""Read a run, finished or in progress, of this version or another.

Nothing is written, so the run may still be in progress. An unfinished stage is read from its
journal.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dto import tables
from dto.recipe import Recipe, read_recipe
from dto.records import Dropped, Problem, Split, Trajectory
from dto.runs import manifest
from dto.runs.journal import read_entries

if TYPE_CHECKING:
    import polars as pl

logger = logging.getLogger("dto")
R = TypeVar("R")
State = Literal["missing", "begun", "finished"]


class RunReader:
    """A run directory: its recipe, tables, manifests and dropped rows.

    The recipe may come from another version: unknown settings are ignored, and `unknown` names
    them. A column missing from an old table gets the field's default, if it has one.
    """

    def __init__(self, path: Path | str, recipe: Recipe | None = None) -> None:
        self.path = Path(path)
        self._given = recipe

    def __truediv__(self, stage: str) -> Path:
        """The directory of a stage."""
        return self.path / stage

    def table(self, stage: str) -> Path:
        """The file of a stage's table."""
        return self.path / stage / "rows.parquet"

    @cached_property
    def _recipe(self) -> tuple[Recipe, tuple[str, ...]]:
        if self._given is not None:
            return self._given, ()
        recipe, unknown = read_recipe(self.path / "recipe.yaml")
        if unknown:
            done = next(self.path.glob("*/manifest.json"), None)
            made = {} if done is None else manifest.read(done.parent) or {}
            _warn_of_settings(self.path, unknown, made.get("versions", {}).get("dto", "unknown"))
        return recipe, unknown

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run. Raises RecipeError if the directory has none."""
        return self._recipe[0]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Dotted keys of the settings that this version does not know."""
        return self._recipe[1]

    @property
    def test_stage(self) -> str:
        """The stage whose table has the test problems (its split `test`)."""
        return "test" if self.recipe.evaluate.tasks else "problems"

    def state(self, stage: str) -> State:
        """`finished` with a manifest or a table, `begun` with a journal, else `missing`."""
        directory = self / stage
        if (directory / "manifest.json").is_file() or self.table(stage).is_file():
            return "finished"
        return "begun" if (directory / "journal").is_file() else "missing"

    def manifest(self, stage: str) -> dict[str, Any] | None:
        """The manifest of a finished stage; None if it is not finished."""
        return manifest.read(self / stage)

    def rows(self, stage: str, record: type[R], without: Collection[str] = ()) -> Iterator[R]:
        """Read a stage's rows, sorted by id; of an unfinished stage, sorted by group key.

        Columns named in `without` are not read. Raises DtoError if the stage has neither a
        table nor a journal, or if the table lacks columns of the record.
        """
        if self.state(stage) == "begun":
            for entry in read_entries(self / stage / "journal", record):
                yield from entry.rows
        else:
            yield from tables.read(self.table(stage), record, without)

    def frame(self, stage: str, *columns: str) -> pl.LazyFrame:
        """The table of a finished stage as a lazy frame, with these columns or all."""
        import polars as pl

        frame = pl.scan_parquet(self.table(stage))
        return frame.select(columns) if columns else frame

    def count(self, stage: str, **equals: str) -> int:
        """Count a table's rows, or those with the given values in their columns."""
        return tables.count(self.table(stage), **equals)

    def dropped(self, stage: str) -> Iterator[Dropped]:
        """Read the rows that a stage dropped, with their reasons; none if the stage is missing."""
        path = self / stage / "dropped.jsonl"
        if path.is_file():
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    yield Dropped(**json.loads(line))
        elif self.state(stage) == "begun":
            for entry in read_entries(self / stage / "journal", None):
                yield from entry.dropped

    def problems(self, split: Split, stage: str = "problems") -> Iterator[Problem]:
        """The problems of a split."""
        return (row for row in self.rows(stage, Problem) if row.split == split)

    def joined(self, *stages: tuple[str, type[Any]]) -> Iterator[tuple[Any, ...]]:
        """Yield (problem, trajectory, rows of each stage …) for each trajectory, in one pass."""
        rows = tables.merge(
            self.rows("sample", Trajectory),
            *(
                (self.rows(stage, record), lambda row: str(row.trajectory_id))
                for stage, record in stages
            ),
        )
        for problem, trajectories in tables.merge(
            self.rows("problems", Problem), (rows, lambda row: str(row[0].problem_id))
        ):
            for row in trajectories:
                yield (problem, *row)


@cache
def _warn_of_settings(path: Path, unknown: tuple[str, ...], version: str) -> None:
    """Warn once, however many readers of the run there are."""
    text = "%s: made by dto %s; settings that this version does not know are ignored: %s"
    logger.warning(text, path, version, ", ".join(unknown))
