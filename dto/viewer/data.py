"""What is looked at: a run's tables, joined in one pass.

A view holds all that a run says of a trajectory, a question, a chain or a batch prompt. What is not
there yet is left out: a stage under way is read from its journal, one that has not begun is empty.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, TypeVar

from dto import tables
from dto.errors import DtoError
from dto.pipeline import STAGES, needed
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
from dto.runs.reader import RunReader

R = TypeVar("R")
IDS = ("prompt_ids", "token_ids")
_JOINED = (Trajectory, Segment, ExitEstimate, OptimizedTrajectory, PreferencePair)
"""The rows that belong to a trajectory, whose id theirs begins with."""
_VIEWED = (*_JOINED, Problem, EvaluationRow, BatchResponse, Chain, LabelledChain)
WINDOW = 64
"""Problems whose answers are in memory at a time."""
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
        right = {row.grade == "correct" for row in self.rows if row.grade != "failed"}
        if len(right) != 1:
            return "mixed" if right else "failed"
        return "all correct" if right.pop() else "none correct"


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
        if not (path / "recipe.yaml").is_file():
            raise DtoError(f"{path} is no run: there is no recipe.yaml in it")
        super().__init__(path)
        names = {"finished": "finished", "begun": "under way"}
        found = {stage: self.state(stage) for stage in SHOWN}
        self.states = {stage: names[state] for stage, state in found.items() if state in names}
        if self.methods():
            self.states.setdefault("evaluate", "compared")
        if "sample" not in self.states and "evaluate" not in self.states:
            raise DtoError(
                f"{path} has neither trajectories nor answers to show: start `dto sample {path}` "
                "or `dto evaluate` first"
            )
        for stage, record in SHOWN.items():
            if record is not None and self.states.get(stage) == "finished":
                tables.check(self.table(stage), record).close()
        exits = self.recipe.evaluate.exits
        self.plain = next((exit.name for exit in exits if exit.policy == "none"), "none")

    def missing(self) -> tuple[str, ...]:
        """The stages that the recipe takes, of those that are shown, and the run does not have.

        Of a comparison the methods that have not answered, the base model first.
        """
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

    def trajectories(self, only: str = "") -> Iterator[TrajectoryView]:
        """Every trajectory with what belongs to it, by id; token ids are left out.

        `only`: the one with this id, with its token ids, and without reading the others' tables.
        """

        def rows(stage: str, record: type[R], column: str = "trajectory_id") -> Iterator[R]:
            if not only or self.states.get(stage) != "finished":
                return self.rows(stage, record, without.get(record, ()))
            key = only.partition("/")[0] if record is Problem else only
            return iter(tables.find(self.table(stage), record, column, key))

        def of_it(row: Any) -> str:
            return str(row.trajectory_id)

        without = {} if only else {Trajectory: IDS, OptimizedTrajectory: ("token_ids",)}
        lengths, dropped = {}, self._dropped()
        if not only and self.states.get("sample") == "finished":  # counted without reading them
            import polars as pl

            counts = self.frame("sample").select("id", pl.col("token_ids").list.len())
            lengths = dict(counts.collect().iter_rows())
        pruned = self.states.get("prune") == "finished"
        joined = tables.merge(
            rows("sample", Trajectory, "id"),
            (rows("segment", Segment), of_it),
            (rows("estimate", ExitEstimate), of_it),
            (rows("prune", OptimizedTrajectory), of_it),
            (() if pruned else rows("optimize", OptimizedTrajectory), of_it),
            (rows("pair", PreferencePair), of_it),
        )
        problem_of = _ById(rows("problems", Problem, "id"))
        for trajectory, segments, estimates, after, before, pairs in joined:
            if only in ("", trajectory.id):
                yield TrajectoryView(
                    trajectory,
                    lengths.get(trajectory.id) or len(trajectory.token_ids),
                    problem_of(trajectory.problem_id),
                    tuple(segments),
                    tuple(estimates),
                    next(iter((*after, *before)), None),
                    tuple(pairs),
                    tuple(dropped.get(trajectory.id, ())),
                    self.recipe.estimate.threshold,
                )

    def find(self, row_id: str) -> View:
        """The first trajectory whose id begins so, else the first answered question.

        Raises DtoError for an id that no row has.
        """
        found: Iterable[View]
        ids: Iterable[str] = (row.id for row in self.rows("sample", Trajectory, IDS))
        if self.states.get("sample") == "finished":
            ids = self.frame("sample", "id").collect()["id"]
        if row_id.count("/") > 1:  # a chain's id has three, a batch prompt's two
            found = chain(self.chains(), self.batches())
        elif (first := next((each for each in ids if each.startswith(row_id)), None)) is not None:
            found = self.trajectories(first)
        else:
            found = self.answers(row_id)
        if (view := next((view for view in found if view.id.startswith(row_id)), None)) is None:
            raise DtoError(
                f"{self.path} has no row {row_id!r}: give an id as `dto view {self.path}` shows it"
            )
        return view

    def _dropped(self) -> dict[str, list[tuple[str, Dropped]]]:
        """What ended, and where: (stage, row) by the id of the trajectory or problem."""
        dropped: dict[str, list[tuple[str, Dropped]]] = {}
        for stage in self.states:
            if SHOWN[stage] in _JOINED:
                for row in self.dropped(stage):
                    dropped.setdefault("/".join(row.id.split("/")[:2]), []).append((stage, row))
        return dropped

    def answers(self, start: str = "") -> Iterator[AnswersView]:
        """The evaluation's answers, those of one problem and sample together.

        `start`: of the problems alone whose ids begin as this row's.
        """
        problem_of = _ById(self.rows(self.test_stage, Problem))
        for (problem_id, sample), rows in groupby(self._evaluated(start), key=_question):
            yield AnswersView(problem_id, sample, tuple(rows), problem_of(problem_id), self.plain)

    def _evaluated(self, start: str) -> Iterator[EvaluationRow]:
        """Evaluation rows by problem and sample, those of WINDOW problems in memory at a time.

        Tables are sorted by model and exit. A comparison's methods stand for their models.
        """
        state = self.states.get("evaluate")
        if state == "under way":
            yield from sorted(self.rows("evaluate", EvaluationRow), key=_question)
        if state not in ("finished", "compared"):
            return
        import polars as pl  # as late as this: `dto.show` of a row at hand need not wait for it

        frame = pl.concat(
            [
                pl.scan_parquet(path).with_columns(model=pl.lit(name))
                for name, path in self.methods()
            ]
            if state == "compared"
            else [self.frame("evaluate")],
            how="diagonal",
        )
        asked = frame.select(pl.col("problem_id").unique().sort()).collect()["problem_id"]
        ids = [each for each in asked if each.startswith(start.partition("/")[0])]
        build = tables.adapter(EvaluationRow).validate_python
        for place in range(0, len(ids), WINDOW):
            low, high = ids[place], ids[min(place + WINDOW, len(ids)) - 1]
            window = pl.col("problem_id").is_between(pl.lit(low), pl.lit(high))
            rows = frame.filter(window).collect()
            for row in rows.sort("problem_id", "sample", maintain_order=True).iter_rows(named=True):
                # A column that an earlier version did not write has its default.
                yield build({name: value for name, value in row.items() if value is not None})

    def chains(self) -> Iterator[ChainView]:
        """Every chain with its label, by id."""
        problem_of = _ById(self.rows("problems", Problem))
        dropped = {row.id: row for row in self.dropped("label")}
        labelled = (self.rows("label", LabelledChain, ("prompt_ids",)), lambda row: str(row.id))
        for row, labels in tables.merge(self.rows("chain", Chain), labelled):
            ended = dropped.get(row.id)
            yield ChainView(
                row,
                problem_of(row.problem_id),
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


def _question(row: EvaluationRow) -> tuple[str, int]:
    """What rows are put together by: problem and sample."""
    return row.problem_id, row.sample
