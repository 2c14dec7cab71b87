"""A run's tables, joined in one pass: all there is about a trajectory, all answers to a problem.

What is not there yet is left out: a stage under way is read from its journal, one that has not
begun is empty.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dto import tables
from dto.drqa.records import RECORDS as DRQA_RECORDS
from dto.drqa.records import BatchResponse, Chain, LabelledChain
from dto.errors import DtoError
from dto.records import (
    RECORDS,
    Dropped,
    EvaluationRow,
    ExitEstimate,
    OptimizedTrajectory,
    PreferencePair,
    Problem,
    Segment,
    Trajectory,
)
from dto.runs.journal import read_entries
from dto.viewer.views import AnswersView, BatchView, ChainView, TrajectoryView

if TYPE_CHECKING:
    from dto.recipe import Recipe
    from dto.redact import Redaction


class ById:
    """Problems by ascending id, one in memory at a time."""

    def __init__(self, problems: Iterator[Problem]) -> None:
        self._rest = problems
        self._head = next(problems, None)

    def __call__(self, problem_id: str) -> Problem | None:
        """The problem, if it is there."""
        while self._head is not None and self._head.id < problem_id:
            self._head = next(self._rest, None)
        return self._head if self._head is not None and self._head.id == problem_id else None


def state(directory: Path) -> str:
    """How far a stage is: `finished` with its table, `under way` with a journal, else empty."""
    if (directory / "rows.parquet").is_file():
        return "finished"
    return "under way" if (directory / "journal").is_file() else ""


def dropped(directory: Path, state: str) -> Iterator[Dropped]:
    """The rows that end at a stage of this state."""
    if state == "under way":
        for entry in read_entries(directory / "journal", None):
            yield from entry.dropped
        return
    path = directory / "dropped.jsonl"
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield Dropped(**json.loads(line))


R = TypeVar("R")
IDS = ("prompt_ids", "token_ids")
SHOWN = {**RECORDS, **DRQA_RECORDS}


@dataclass(frozen=True, slots=True)
class RunTables:
    """The tables of a run directory, read a row group at a time.

    Raises DtoError, on opening, for what is no run and for a run without a row to show.
    """

    path: Path
    threshold: float = float("nan")
    name: str = ""
    plain: str = "none"
    states: dict[str, str] = field(default_factory=dict)  # stage: finished, under way, compared
    recipe: Recipe | None = None

    @staticmethod
    def open(run: Path | str) -> RunTables:
        """Look at what is there."""
        from dto.recipe import load_recipe

        path = Path(run)
        if not path.is_dir():
            raise DtoError(f"{path} is no run: give the directory that `dto run` wrote")
        states = {stage: found for stage in SHOWN if (found := state(path / stage))}
        if compared(path):
            states.setdefault("evaluate", "compared")
        if "sample" not in states and "evaluate" not in states:
            if not (path / "recipe.yaml").is_file():
                raise DtoError(f"{path} is no run: there is no recipe.yaml in it")
            raise DtoError(
                f"{path} has neither trajectories nor answers to show: start `dto sample {path}` "
                "or `dto evaluate` first"
            )
        for stage, found in states.items():
            if found == "finished":
                tables.check(path / stage / "rows.parquet", SHOWN[stage]).close()
        recipe = path / "recipe.yaml"
        if not recipe.is_file():
            return RunTables(path, name=path.name, states=states)
        settings = load_recipe(recipe)
        plain = [exit.name for exit in settings.evaluate.exits if exit.policy == "none"]
        return RunTables(
            path,
            settings.estimate.threshold,
            settings.name,
            next(iter(plain), "none"),
            states,
            settings,
        )

    def missing(self) -> tuple[str, ...]:
        """The stages that the recipe takes, of those that are shown, and the run does not have.

        Of a comparison the methods that have not answered.
        """
        from dto.pipeline import needed

        if self.recipe is None:
            return ()
        if self.recipe.compare.methods and self.states.get("evaluate") != "finished":
            return tuple(unfinished(self.path, self.recipe.compare.methods))
        seen = {*self.states, *(("optimize",) if "prune" in self.states else ())}
        return tuple(each for each in needed(self.recipe) if each in SHOWN and each not in seen)

    def redaction(self) -> Redaction:
        """What a page that is passed on must not show."""
        from dto.recipe import Recipe
        from dto.redact import Redaction

        return Redaction.of(self.recipe or Recipe(name=self.name), self.path)

    def rows(self, stage: str, record: type[R], without: Collection[str] = ()) -> Iterator[R]:
        """A stage's rows by id, from its table or else its journal; none where neither is there."""
        state = self.states.get(stage)
        if state == "finished":
            yield from tables.read(self.path / stage / "rows.parquet", record, without)
        elif state == "under way":
            for entry in read_entries(self.path / stage / "journal", record):
                yield from entry.rows

    def dropped(self) -> dict[str, list[tuple[str, Dropped]]]:
        """What ended, and where: (stage, row) by the id of the trajectory or problem."""
        found: dict[str, list[tuple[str, Dropped]]] = {}
        for stage in self.states:
            if stage in ("problems", "test", "evaluate", *DRQA_RECORDS):
                continue
            for row in self.ended(stage):
                found.setdefault("/".join(row.id.split("/")[:2]), []).append((stage, row))
        return found

    def ended(self, stage: str) -> Iterator[Dropped]:
        """The rows that end at a stage."""
        return dropped(self.path / stage, self.states.get(stage, ""))

    def trajectories(self) -> Iterator[TrajectoryView]:
        """Every trajectory with what belongs to it, by id; token ids are left out."""
        lengths, dropped = self._lengths(), self.dropped()
        versions = "prune" if "prune" in self.states else "optimize"
        samples = self.rows("sample", Trajectory, IDS)
        joined = tables.merge(
            samples,
            (self.rows("segment", Segment), lambda row: row.trajectory_id),
            (self.rows("estimate", ExitEstimate), lambda row: row.trajectory_id),
            (self._versions(versions), lambda row: row.trajectory_id),
            (self.rows("pair", PreferencePair), lambda row: row.trajectory_id),
        )
        problem_of = ById(self.rows("problems", Problem))
        for trajectory, segments, estimates, optimized, pairs in joined:
            yield TrajectoryView(
                trajectory,
                lengths.get(trajectory.id) or len(trajectory.token_ids),
                problem_of(trajectory.problem_id),
                tuple(segments),
                tuple(estimates),
                optimized[0] if optimized else None,
                tuple(pairs),
                tuple(dropped.get(trajectory.id, ())),
                self.threshold,
            )

    def find(self, row_id: str) -> TrajectoryView | AnswersView | ChainView | BatchView:
        """The first trajectory whose id begins so, else the first answered question."""
        if row_id.count("/") > 1:  # a chain's id has three, a batch prompt's two
            for views in (chains(self), batches(self)):
                if (one := next((each for each in views if each.id == row_id), None)) is not None:
                    return one
        trajectory = self._first_trajectory(row_id)
        if trajectory is not None:
            own = trajectory.id
            stages = ("prune", "optimize")
            versions = [
                self._of(stage, OptimizedTrajectory, "trajectory_id", own) for stage in stages
            ]
            problems = self._of("problems", Problem, "id", trajectory.problem_id)
            return TrajectoryView(
                trajectory,
                len(trajectory.token_ids),
                next(iter(problems), None),
                tuple(self._of("segment", Segment, "trajectory_id", own)),
                tuple(self._of("estimate", ExitEstimate, "trajectory_id", own)),
                next((row for rows in versions for row in rows), None),
                tuple(self._of("pair", PreferencePair, "trajectory_id", own)),
                tuple(self.dropped().get(own, ())),
                self.threshold,
            )
        problem_id, _, sample = (row_id or self._first_answered()).partition("/")
        rows = self._of("evaluate", EvaluationRow, "problem_id", problem_id)
        if self.states.get("evaluate") == "compared":
            rows = find_compared(self.path, problem_id)
        samples = {row.sample for row in rows if f"{row.sample:03d}".startswith(sample)}
        if not samples:
            raise DtoError(
                f"{self.path} has no row {row_id!r}: give an id as `dto view {self.path}` shows it"
            )
        stage = "test" if "test" in self.states else "problems"
        problems = self._of(stage, Problem, "id", problem_id)
        shown = tuple(row for row in rows if row.sample == min(samples))
        return AnswersView(problem_id, min(samples), shown, next(iter(problems), None), self.plain)

    def _first_trajectory(self, start: str) -> Trajectory | None:
        import polars as pl

        if self.states.get("sample") != "finished":
            rows = self.rows("sample", Trajectory)
            return next((row for row in rows if row.id.startswith(start)), None)
        ids = pl.scan_parquet(self.path / "sample" / "rows.parquet").select("id")
        fitting = ids.filter(pl.col("id").str.starts_with(start)).head(1).collect()["id"].to_list()
        found = [self._of("sample", Trajectory, "id", row_id)[0] for row_id in fitting]
        return found[0] if found else None

    def _first_answered(self) -> str:
        first = next(self.answers(), None)
        return first.id if first is not None else ""

    def _of(self, stage: str, record: type[R], column: str, value: str) -> list[R]:
        """A stage's rows that belong to one."""
        if self.states.get(stage) == "finished":
            return tables.find(self.path / stage / "rows.parquet", record, column, value)
        return [row for row in self.rows(stage, record) if getattr(row, column) == value]

    def _versions(self, stage: str) -> Iterator[OptimizedTrajectory]:
        """Those of `prune`; where it is under way, those of `optimize` that it has not reached."""
        pruned = self.rows(stage, OptimizedTrajectory, ("token_ids",))
        if stage == "optimize" or self.states["prune"] == "finished":
            yield from pruned
            return
        before = self.rows("optimize", OptimizedTrajectory, ("token_ids",))
        for _, same in groupby(heapq.merge(pruned, before, key=_id), key=_id):
            yield next(same)  # merge is stable: the pruned one comes first

    def _lengths(self) -> dict[str, int]:
        """Tokens of each response, without reading them."""
        import polars as pl

        if self.states.get("sample") != "finished":
            return {}
        frame = pl.scan_parquet(self.path / "sample" / "rows.parquet")
        counted = frame.select("id", pl.col("token_ids").list.len()).collect()
        return dict(counted.iter_rows())

    def answers(self) -> Iterator[AnswersView]:
        """The evaluation's answers, those of one problem and sample together."""
        stage = "test" if "test" in self.states else "problems"
        problem_of = ById(self.rows(stage, Problem))
        by_question = groupby(self._evaluated(), key=question)
        for (problem_id, sample), rows in by_question:
            yield AnswersView(problem_id, sample, tuple(rows), problem_of(problem_id), self.plain)

    def _evaluated(self) -> Iterator[EvaluationRow]:
        """Evaluation rows by problem and sample."""
        state = self.states.get("evaluate")
        if state == "finished":
            table = self.path / "evaluate" / "rows.parquet"
            yield from by_question([("", table)])
        elif state == "compared":
            yield from by_question(compared(self.path))
        elif state == "under way":
            yield from under_way(self.path / "evaluate" / "journal")


def _id(row: Any) -> str:
    return str(row.id)


def chains(found: RunTables) -> Iterator[ChainView]:
    """Every chain with its label, by id."""
    problem_of = ById(found.rows("problems", Problem))
    dropped = {row.id: row for row in found.ended("label")}
    labelled = (found.rows("label", LabelledChain, ("prompt_ids",)), lambda row: str(row.id))
    for chain, labels in tables.merge(found.rows("chain", Chain), labelled):
        ended = dropped.get(chain.id)
        yield ChainView(
            chain,
            problem_of(chain.problem_id),
            labels[0] if labels else None,
            (ended,) if ended is not None else (),
        )


def batches(found: RunTables) -> Iterator[BatchView]:
    """Every response to a batch prompt; questions, a kilobyte each, and chains' ids are held."""
    if "batch" not in found.states:
        return
    problems = {row.id: row for row in found.rows("problems", Problem)}
    dropped = {row.id: row for row in found.ended("chain")}
    made = {row.id for row in found.rows("chain", Chain) if row.origin == "batch"}
    for row in found.rows("batch", BatchResponse, ("prompt_ids",)):
        ids = [Chain.make_id(each, "batch", row.k, row.sample) for each in row.problem_ids]
        yield BatchView(
            row,
            tuple(problems.get(each) for each in row.problem_ids),
            tuple(each in made for each in ids),
            tuple(dropped.get(each) for each in ids),
        )


def question(row: EvaluationRow) -> tuple[str, int]:
    """What rows are put together by: problem and sample."""
    return row.problem_id, row.sample


def compared(run: Path) -> list[tuple[str, Path]]:
    """The tables of a comparison's methods with their names (`dto.compare.compare`)."""
    found = sorted(run.glob("compare/*/evaluate/rows.parquet"))
    return [(path.parents[1].name, path) for path in found]


def unfinished(run: Path, methods: Iterable[str]) -> list[str]:
    """The folders of a comparison's methods that have no answers yet, the base model's first."""
    from dto.compare.methods import BASE, label

    names = [BASE, *map(label, methods)]
    done = {name for name, _ in compared(run)}
    return [f"compare/{name}" for name in names if name not in done]


def find_compared(run: Path, problem_id: str) -> list[EvaluationRow]:
    """All answers of a comparison to one problem; the method stands for the model."""
    return [
        replace(row, model=label)
        for label, path in compared(run)
        for row in tables.find(path, EvaluationRow, "problem_id", problem_id)
    ]


def by_question(named: Iterable[tuple[str, Path]]) -> Iterator[EvaluationRow]:
    """The rows of tables by problem and sample; a table's name, if any, stands for the model."""
    import polars as pl

    streams: list[Iterator[EvaluationRow]] = []
    for label, path in named:
        frame = pl.scan_parquet(path)
        arms = frame.select(pl.struct("model", "exit").rle().alias("arm")).collect()
        ends = [0, *accumulate(arms["arm"].struct.field("len").to_list())]
        streams += [_slices(frame, label, start, end) for start, end in pairwise(ends)]
    yield from heapq.merge(*streams, key=question)


def under_way(journal: Path) -> Iterator[EvaluationRow]:
    """The rows that a journal has so far, by problem and sample."""
    entries = read_entries(journal, EvaluationRow, lambda key: key.split("/")[::-1])
    for _, same in groupby(entries, key=lambda entry: entry.key.rpartition("/")[2]):
        yield from sorted((row for each in same for row in each.rows), key=question)


def _slices(frame: Any, label: str, start: int, end: int) -> Iterator[EvaluationRow]:
    build = tables.adapter(EvaluationRow).validate_python
    for place in range(start, end, tables.ROW_GROUP):
        block = frame.slice(place, min(tables.ROW_GROUP, end - place)).collect()
        for row in block.iter_rows(named=True):
            yield build(row | {"model": label or row["model"]})
