"""What is looked at: a run's tables, joined in one pass.

A view holds all that a run says of a trajectory, a question, a chain or a batch prompt. What is not
there yet is left out: a stage under way is read from its journal, one that has not begun is empty.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from math import nan
from pathlib import Path
from typing import Any, TypeVar

from dto import tables
from dto.errors import DtoError
from dto.pipeline import STAGES, needed
from dto.recipe import Recipe
from dto.records import (
    BatchResponse,
    Chain,
    Dropped,
    EvaluationRow,
    ExitEstimate,
    LabelledChain,
    OptimizedTrajectory,
    PreferencePair,
    Problem,
    Segment,
    Trajectory,
)
from dto.runs.journal import read_entries
from dto.runs.reader import RunReader

R = TypeVar("R")
IDS = ("prompt_ids", "token_ids")
_JOINED = (Trajectory, Segment, ExitEstimate, OptimizedTrajectory, PreferencePair)
"""The rows that belong to a trajectory, whose id theirs begins with."""
_VIEWED = (*_JOINED, Problem, EvaluationRow, BatchResponse, Chain, LabelledChain)
SHOWN = {name: stage.record for name, stage in STAGES.items() if stage.record in _VIEWED}


@dataclass(frozen=True, slots=True)
class TrajectoryView:
    """A trajectory with all that a run says of it.

    `estimates` and `pairs` are sorted by id. `tokens` counts the response; `dropped` says at which
    stage, and why, it ended: (stage, row) pairs. `threshold` is what an exit's p is held against;
    nan where it is not known.
    """

    trajectory: Trajectory
    tokens: int
    problem: Problem | None = None
    segments: tuple[Segment, ...] = ()
    estimates: tuple[ExitEstimate, ...] = ()
    optimized: OptimizedTrajectory | None = None
    pairs: tuple[PreferencePair, ...] = ()
    dropped: tuple[tuple[str, Dropped], ...] = ()
    threshold: float = float("nan")

    @property
    def id(self) -> str:
        """The trajectory's id."""
        return self.trajectory.id

    @property
    def outcome(self) -> str:
        """What became of it: its version's outcome, why there is none, or `not optimized`."""
        if self.optimized is not None:
            return self.optimized.outcome
        ends = [row.reason for _, row in self.dropped if row.id == self.id]
        return ends[0] if ends else "not optimized"

    @property
    def removed(self) -> dict[int, str]:
        """The segments that the optimized version does not have: `truncated` or `pruned`."""
        if self.optimized is None:
            return {}
        exit = self.optimized.exit
        gone = {segment.index for segment in self.segments} - set(self.optimized.kept)
        return {index: "truncated" if index > exit else "pruned" for index in gone}


@dataclass(frozen=True, slots=True)
class AnswersView:
    """The answers to one problem with one sample index, of every model under every exit.

    The others are held against the answer under `plain`, the exit that leaves where the model does.
    """

    problem_id: str
    sample: int
    rows: tuple[EvaluationRow, ...]
    problem: Problem | None = None
    plain: str = "none"

    @property
    def ordered(self) -> list[EvaluationRow]:
        """The rows as they are shown: the base model first, and of each model the plain exit."""
        return sorted(
            self.rows,
            key=lambda row: (row.model != "base", row.model, row.exit != self.plain, row.exit),
        )

    @property
    def reference(self) -> EvaluationRow | None:
        """What the others are held against: the base model, or the first, under the plain exit."""
        return next((row for row in self.ordered if row.exit == self.plain), None)

    @property
    def id(self) -> str:
        """`problem/sample`."""
        return Trajectory.make_id(self.problem_id, self.sample)

    @property
    def outcome(self) -> str:
        """`all correct`, `none correct` or `mixed`; failed answers do not count."""
        right = [row.grade == "correct" for row in self.rows if row.grade != "failed"]
        return "failed" if not right else "all correct" if all(right) else (
            "mixed" if any(right) else "none correct"
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChainView:
    """A chain with its question, its label and the options as the judge reads them."""

    chain: Chain
    problem: Problem | None = None
    labelled: LabelledChain | None = None
    dropped: tuple[Dropped, ...] = ()

    @property
    def id(self) -> str:
        """The chain's id."""
        return self.chain.id

    @property
    def outcome(self) -> str:
        """The verdict that it is labelled with, or why it is not."""
        if self.labelled is not None:
            return self.labelled.verdict
        return self.dropped[0].reason if self.dropped else "not labelled"

    @property
    def asked(self) -> str:
        """How many questions the prompt had."""
        return "alone" if self.chain.k == 1 else f"{self.chain.k} together"


@dataclass(frozen=True, slots=True)
class BatchView:
    """A response to several questions: of each, whether a chain was cut, or why there is none.

    Neither stands where the stage `chain` has not come to it.
    """

    response: BatchResponse
    problems: tuple[Problem | None, ...] = ()
    cut: tuple[bool, ...] = ()
    dropped: tuple[Dropped | None, ...] = ()

    @property
    def id(self) -> str:
        """`k/sample/content` of the questions."""
        return self.response.id

    @property
    def question(self) -> str:
        """The first question."""
        first = self.problems[0] if self.problems else None
        return first.question if first is not None else self.response.text

    @property
    def outcome(self) -> str:
        """How many chains were cut."""
        if any(self.cut):
            return f"{sum(self.cut)} of {self.response.k} cut"
        return "nothing cut" if any(self.dropped) else "not cut yet"

    def fate(self, place: int) -> tuple[str, str]:
        """What became of a question, in a word, and why."""
        if (ended := self.dropped[place]) is not None:
            return ended.reason, ended.detail
        return ("cut" if self.cut[place] else "not yet"), ""


View = TrajectoryView | AnswersView | ChainView | BatchView
Shown = View | Trajectory | OptimizedTrajectory | PreferencePair
"""The rows and views that have a display."""


class RunTables(RunReader):
    """The tables of a run directory, read a row group at a time.

    `states` says how far each stage is that has rows to show: `finished`, `under way`, or
    `compared` where the answers are those of a comparison's methods. Raises DtoError, on opening,
    for what is no run and for a run without a row to show.
    """

    def __init__(self, run: Path | str) -> None:
        path = Path(run)
        if not path.is_dir():
            raise DtoError(f"{path} is no run: give the directory that `dto run` wrote")
        self.has_recipe = (path / "recipe.yaml").is_file()
        super().__init__(path, None if self.has_recipe else Recipe(name=path.name))
        names = {"finished": "finished", "begun": "under way"}
        found = {stage: self.state(stage) for stage in SHOWN}
        self.states = {stage: names[state] for stage, state in found.items() if state in names}
        if self.methods():
            self.states.setdefault("evaluate", "compared")
        if "sample" not in self.states and "evaluate" not in self.states:
            if not self.has_recipe:
                raise DtoError(f"{path} is no run: there is no recipe.yaml in it")
            raise DtoError(
                f"{path} has neither trajectories nor answers to show: start `dto sample {path}` "
                "or `dto evaluate` first"
            )
        for stage, record in SHOWN.items():
            if record is not None and self.states.get(stage) == "finished":
                tables.check(self.table(stage), record).close()
        self.threshold = self.recipe.estimate.threshold if self.has_recipe else nan
        exits = self.recipe.evaluate.exits if self.has_recipe else []
        self.plain = next((exit.name for exit in exits if exit.policy == "none"), "none")

    def missing(self) -> tuple[str, ...]:
        """The stages that the recipe takes, of those that are shown, and the run does not have.

        Of a comparison the methods that have not answered, the base model first.
        """
        if not self.has_recipe:
            return ()
        if self.recipe.compare.methods and self.states.get("evaluate") != "finished":
            from dto.compare.compare import method_names

            answered = {name for name, _ in self.methods()}
            names = method_names(self.recipe)
            return tuple(f"compare/{name}" for name in names if name not in answered)
        seen = {*self.states, *(("optimize",) if "prune" in self.states else ())}
        return tuple(stage for stage in needed(self.recipe) if stage in SHOWN and stage not in seen)

    def methods(self) -> list[tuple[str, Path]]:
        """The tables of a comparison's methods with their names (`dto.compare.compare`)."""
        paths = sorted(self.path.glob("compare/*/evaluate/rows.parquet"))
        return [(path.parents[1].name, path) for path in paths]

    def rows(self, stage: str, record: type[R], without: Collection[str] = ()) -> Iterator[R]:
        """A stage's rows by id, from its table or else its journal; none where neither is there."""
        if self.states.get(stage) in ("finished", "under way"):
            yield from super().rows(stage, record, without)

    def trajectories(self) -> Iterator[TrajectoryView]:
        """Every trajectory with what belongs to it, by id; token ids are left out."""
        lengths, dropped = self._lengths(), self._dropped()
        joined = tables.merge(
            self.rows("sample", Trajectory, IDS),
            (self.rows("segment", Segment), lambda row: row.trajectory_id),
            (self.rows("estimate", ExitEstimate), lambda row: row.trajectory_id),
            (self._versions(), lambda row: row.trajectory_id),
            (self.rows("pair", PreferencePair), lambda row: row.trajectory_id),
        )
        problem_of = _ById(self.rows("problems", Problem))
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

    def find(self, row_id: str) -> View:
        """The first trajectory whose id begins so, else the first answered question."""
        if row_id.count("/") > 1:  # a chain's id has three, a batch prompt's two
            for views in (self.chains(), self.batches()):
                if (view := next((view for view in views if view.id == row_id), None)) is not None:
                    return view
        trajectory = self._first_trajectory(row_id)
        return self._answers_to(row_id) if trajectory is None else self._joined(trajectory)

    def _joined(self, trajectory: Trajectory) -> TrajectoryView:
        """One trajectory with what belongs to it, without reading the others."""
        key = ("trajectory_id", trajectory.id)
        versions = [self._of(stage, OptimizedTrajectory, *key) for stage in ("prune", "optimize")]
        problems = self._of("problems", Problem, "id", trajectory.problem_id)
        return TrajectoryView(
            trajectory,
            len(trajectory.token_ids),
            next(iter(problems), None),
            tuple(self._of("segment", Segment, *key)),
            tuple(self._of("estimate", ExitEstimate, *key)),
            next((row for rows in versions for row in rows), None),
            tuple(self._of("pair", PreferencePair, *key)),
            tuple(self._dropped().get(trajectory.id, ())),
            self.threshold,
        )

    def _answers_to(self, row_id: str) -> AnswersView:
        if not row_id and (first := next(self.answers(), None)) is not None:
            row_id = first.id
        problem_id, _, sample = row_id.partition("/")
        key = ("problem_id", problem_id)
        rows = self._of("evaluate", EvaluationRow, *key)
        if self.states.get("evaluate") == "compared":
            rows = [
                replace(row, model=method)
                for method, path in self.methods()
                for row in tables.find(path, EvaluationRow, *key)
            ]
        samples = {row.sample for row in rows if f"{row.sample:03d}".startswith(sample)}
        if not samples:
            raise DtoError(
                f"{self.path} has no row {row_id!r}: give an id as `dto view {self.path}` shows it"
            )
        problems = self._of(self._tested(), Problem, "id", problem_id)
        shown = tuple(row for row in rows if row.sample == min(samples))
        return AnswersView(problem_id, min(samples), shown, next(iter(problems), None), self.plain)

    def _first_trajectory(self, start: str) -> Trajectory | None:
        import polars as pl

        if self.states.get("sample") != "finished":
            rows = self.rows("sample", Trajectory)
            return next((row for row in rows if row.id.startswith(start)), None)
        ids = self.frame("sample", "id").filter(pl.col("id").str.starts_with(start))
        first = ids.head(1).collect()["id"].to_list()
        return self._of("sample", Trajectory, "id", first[0])[0] if first else None

    def _of(self, stage: str, record: type[R], column: str, value: str) -> list[R]:
        """A stage's rows that belong to one."""
        if self.states.get(stage) == "finished":
            return tables.find(self.table(stage), record, column, value)
        return [row for row in self.rows(stage, record) if getattr(row, column) == value]

    def _dropped(self) -> dict[str, list[tuple[str, Dropped]]]:
        """What ended, and where: (stage, row) by the id of the trajectory or problem."""
        dropped: dict[str, list[tuple[str, Dropped]]] = {}
        for stage in self.states:
            if SHOWN[stage] in _JOINED:
                for row in self.dropped(stage):
                    dropped.setdefault("/".join(row.id.split("/")[:2]), []).append((stage, row))
        return dropped

    def _versions(self) -> Iterator[OptimizedTrajectory]:
        """Those of `prune`; where it is under way, those of `optimize` that it has not reached."""
        pruned = self.rows("prune", OptimizedTrajectory, ("token_ids",))
        before = self.rows("optimize", OptimizedTrajectory, ("token_ids",))
        if self.states.get("prune") == "finished":
            yield from pruned
            return
        for _, same in groupby(heapq.merge(pruned, before, key=_id), key=_id):
            yield next(same)  # merge is stable: the pruned one comes first

    def _lengths(self) -> dict[str, int]:
        """Tokens of each response, without reading them."""
        import polars as pl

        if self.states.get("sample") != "finished":
            return {}
        counted = self.frame("sample").select("id", pl.col("token_ids").list.len()).collect()
        return dict(counted.iter_rows())

    def _tested(self) -> str:
        return "test" if "test" in self.states else "problems"

    def answers(self) -> Iterator[AnswersView]:
        """The evaluation's answers, those of one problem and sample together."""
        problem_of = _ById(self.rows(self._tested(), Problem))
        for (problem_id, sample), rows in groupby(self._evaluated(), key=_question):
            yield AnswersView(problem_id, sample, tuple(rows), problem_of(problem_id), self.plain)

    def _evaluated(self) -> Iterator[EvaluationRow]:
        """Evaluation rows by problem and sample."""
        state = self.states.get("evaluate")
        if state == "finished":
            yield from _by_question([("", self.table("evaluate"))])
        elif state == "compared":
            yield from _by_question(self.methods())
        elif state == "under way":
            journal = self / "evaluate" / "journal"
            entries = read_entries(journal, EvaluationRow, lambda key: key.split("/")[::-1])
            for _, same in groupby(entries, key=lambda entry: entry.key.rpartition("/")[2]):
                yield from sorted((row for each in same for row in each.rows), key=_question)

    def chains(self) -> Iterator[ChainView]:
        """Every chain with its label, by id."""
        problem_of = _ById(self.rows("problems", Problem))
        dropped = {row.id: row for row in self.dropped("label")}
        labelled = (self.rows("label", LabelledChain, ("prompt_ids",)), lambda row: str(row.id))
        for chain, labels in tables.merge(self.rows("chain", Chain), labelled):
            ended = dropped.get(chain.id)
            yield ChainView(
                chain,
                problem_of(chain.problem_id),
                labels[0] if labels else None,
                (ended,) if ended is not None else (),
            )

    def batches(self) -> Iterator[BatchView]:
        """Every response to a batch prompt; all questions and the ids of chains are in memory."""
        if "batch" not in self.states:
            return
        problems = {row.id: row for row in self.rows("problems", Problem)}
        dropped = {row.id: row for row in self.dropped("chain")}
        made = {row.id for row in self.rows("chain", Chain) if row.origin == "batch"}
        for row in self.rows("batch", BatchResponse, ("prompt_ids",)):
            ids = [Chain.make_id(each, "batch", row.k, row.sample) for each in row.problem_ids]
            yield BatchView(
                row,
                tuple(problems.get(each) for each in row.problem_ids),
                tuple(each in made for each in ids),
                tuple(dropped.get(each) for each in ids),
            )


class _ById:
    """Problems by ascending id, one in memory at a time."""

    def __init__(self, problems: Iterator[Problem]) -> None:
        self._rest = problems
        self._head = next(problems, None)

    def __call__(self, problem_id: str) -> Problem | None:
        """The problem, if it is there."""
        while self._head is not None and self._head.id < problem_id:
            self._head = next(self._rest, None)
        return self._head if self._head is not None and self._head.id == problem_id else None


def _id(row: Any) -> str:
    return str(row.id)


def _question(row: EvaluationRow) -> tuple[str, int]:
    """What rows are put together by: problem and sample."""
    return row.problem_id, row.sample


def _by_question(named: Iterable[tuple[str, Path]]) -> Iterator[EvaluationRow]:
    """The rows of tables by problem and sample; a table's name, if any, stands for the model.

    Evaluation tables are sorted by model and exit. Each slice of one model and exit is read as a
    stream, a row group in memory, and the streams are merged.
    """
    import polars as pl

    streams: list[Iterator[EvaluationRow]] = []
    for name, path in named:
        frame = pl.scan_parquet(path)
        arms = frame.select(pl.struct("model", "exit").rle().alias("arm")).collect()
        ends = [0, *accumulate(arms["arm"].struct.field("len").to_list())]
        streams += [_slice(frame, name, start, end) for start, end in pairwise(ends)]
    yield from heapq.merge(*streams, key=_question)


def _slice(frame: Any, name: str, start: int, end: int) -> Iterator[EvaluationRow]:
    build = tables.adapter(EvaluationRow).validate_python
    for place in range(start, end, tables.ROW_GROUP):
        block = frame.slice(place, min(tables.ROW_GROUP, end - place)).collect()
        for row in block.iter_rows(named=True):
            yield build(row | {"model": name or row["model"]})
