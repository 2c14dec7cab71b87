"""Views of a run: its tables joined in one pass.

A view holds all rows about one trajectory, question, chain or batch prompt. A running stage is read
from its journal; a stage that has not started has no rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import chain, groupby
from pathlib import Path
from typing import Any, TypeVar

from dto import tables
from dto.drqa.records import BatchResponse, Chain, LabelledChain, Origin
from dto.errors import DtoError
from dto.pipeline import STAGES, needed
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
from dto.runs.journal import read_entries
from dto.runs.reader import RunReader
from dto.viewer.arms import arms_of, question_of
from dto.viewer.prompt import Request, RequestReader, sampling

R = TypeVar("R")
IDS = ("prompt_ids", "token_ids")
LENGTHS_READ = 64
"""Rows whose token ids are in memory at a time to count them."""
_JOINED = (Trajectory, Segment, ExitEstimate, OptimizedTrajectory, PreferencePair)
"""Rows that belong to a trajectory: their ids start with its id."""
_VIEWED = (*_JOINED, Problem, EvaluationRow, BatchResponse, Chain, LabelledChain)
RECORDS = {name: stage.record for name, stage in STAGES.items() if stage.record in _VIEWED}


@dataclass(frozen=True, slots=True)
class TrajectoryView:
    """A trajectory with all rows of the run about it.

    `estimates` and `pairs` are sorted by id. `tokens` counts the response. `dropped` has (stage,
    row) pairs with the reason why a stage dropped it. `threshold` is the threshold on p at an exit;
    nan where unknown. `request` is the prompt with the sampling settings, where the run has them.
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
    request: Request | None = None

    @property
    def id(self) -> str:
        """Id of the trajectory."""
        return self.trajectory.id

    @property
    def outcome(self) -> str:
        """Outcome of the optimized version, else why it was dropped, else `not optimized`."""
        if self.optimized is not None:
            return self.optimized.outcome
        reasons = [row.reason for _, row in self.dropped if row.id == self.id]
        return reasons[0] if reasons else "not optimized"

    @property
    def removed(self) -> dict[int, str]:
        """Segments missing from the optimized version, by index: `pruned`, or `cut` by the exit."""
        if self.optimized is None:
            return {}
        exit = self.optimized.exit
        gone = {segment.index for segment in self.segments} - set(self.optimized.kept)
        return {index: "cut" if index > exit else "pruned" for index in gone}


@dataclass(frozen=True, slots=True)
class AnswersView:
    """Answers to one problem with one sample index, by every model under every exit.

    The reference is the answer under `plain`, the exit whose policy is none. Rows of a run have no
    token ids of the response. `settings` are names and values of the sampling settings.
    """

    problem_id: str
    sample: int
    rows: tuple[EvaluationRow, ...]
    problem: Problem | None = None
    plain: str = "none"
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def ordered(self) -> list[EvaluationRow]:
        """Rows in display order: the base model first; for each model, the plain exit first."""
        return sorted(
            self.rows,
            key=lambda row: (row.model != "base", row.model, row.exit != self.plain, row.exit),
        )

    @property
    def reference(self) -> EvaluationRow | None:
        """The reference row: base model (else the first model) under the plain exit."""
        return next((row for row in self.ordered if row.exit == self.plain), None)

    @property
    def by_model(self) -> list[tuple[EvaluationRow | None, list[EvaluationRow]]]:
        """For each model, its row under the plain exit (None if it has none), and the others."""
        models = [list(rows) for _, rows in groupby(self.ordered, key=lambda row: row.model)]
        return [
            (next((row for row in rows if row.exit == self.plain), None),
             [row for row in rows if row.exit != self.plain])
            for rows in models
        ]  # fmt: skip

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
    """A chain with its question, its label and the options of the judge."""

    chain: Chain
    problem: Problem | None = None
    labelled: LabelledChain | None = None
    dropped: tuple[Dropped, ...] = ()

    @property
    def id(self) -> str:
        """Id of the chain."""
        return self.chain.id

    @property
    def outcome(self) -> str:
        """Verdict of its label, or the reason why it has none."""
        if self.labelled is not None:
            return self.labelled.verdict
        return self.dropped[0].reason if self.dropped else "not labelled"

    @property
    def prompt_size(self) -> str:
        """Number of questions in the prompt, in words."""
        return "1 question" if self.chain.k == 1 else f"{self.chain.k} questions"


@dataclass(frozen=True, slots=True)
class BatchView:
    """A response to several questions, with the state of the chain of each question.

    `cut` says whether a chain was extracted, `dropped` why it was not. Neither is set before the
    stage `chain` has processed the response.
    """

    response: BatchResponse
    problems: tuple[Problem | None, ...] = ()
    cut: tuple[bool, ...] = ()
    dropped: tuple[Dropped | None, ...] = ()

    @property
    def id(self) -> str:
        """Id of the response: `k/sample/content`, with a hash of the questions as content."""
        return self.response.id

    @property
    def question(self) -> str:
        """The first question."""
        first = self.problems[0] if self.problems else None
        return first.question if first is not None else self.response.text

    @property
    def outcome(self) -> str:
        """Number of extracted chains, in words."""
        if any(self.cut):
            return f"{sum(self.cut)} of {self.response.k} chains"
        return "no chains" if any(self.dropped) else "pending"

    def chain_state(self, place: int) -> tuple[str, str]:
        """Return the state of a question's chain in a word, and details."""
        if (dropped := self.dropped[place]) is not None:
            return dropped.reason, dropped.detail
        return ("extracted" if self.cut[place] else "pending"), ""


View = TrajectoryView | AnswersView | ChainView | BatchView
Displayable = View | Trajectory | OptimizedTrajectory | PreferencePair
"""Rows and views that can be displayed."""


class RunTables(RunReader):
    """Tables of a run directory, read one row group at a time.

    `states` maps each stage with rows to `finished`, `running`, or `compared` (the answers come
    from the methods of a comparison). Opening raises DtoError for a directory that is not a run and
    for a run without rows.
    """

    def __init__(self, run: Path | str) -> None:
        path = Path(run)
        if not path.is_dir():
            raise DtoError(f"{path} is not a run: give the directory that `dto run` wrote")
        if not (path / "recipe.yaml").is_file():
            raise DtoError(
                f"{path} is not a run: it has no recipe.yaml; give a directory of `dto run`"
            )
        super().__init__(path)
        names = {"finished": "finished", "begun": "running"}
        states = {stage: self.state(stage) for stage in RECORDS}
        self.states = {stage: names[state] for stage, state in states.items() if state in names}
        if self.methods():
            self.states.setdefault("evaluate", "compared")
        if "sample" not in self.states and "evaluate" not in self.states:
            raise DtoError(
                f"{path} has no trajectories or answers to show: run `dto sample {path}` or "
                f"`dto evaluate {path}` first"
            )
        for stage, record in RECORDS.items():
            if record is not None and self.states.get(stage) == "finished":
                tables.check(self.table(stage), record).close()
        exits = self.recipe.evaluate.exits
        self.plain = next((exit.name for exit in exits if exit.policy == "none"), "none")

    def missing(self) -> tuple[str, ...]:
        """List the displayable stages that the recipe needs and the run does not have yet.

        For a comparison, list the methods without answers, the base model first.
        """
        if self.recipe.compare.methods and self.states.get("evaluate") != "finished":
            from dto.compare.compare import method_names

            answered = {name for name, _ in self.methods()}
            names = method_names(self.recipe)
            return tuple(f"compare/{name}" for name in names if name not in answered)
        existing = {*self.states, *(("optimize",) if "prune" in self.states else ())}
        return tuple(
            name for name in needed(self.recipe) if name in RECORDS and name not in existing
        )

    def methods(self) -> list[tuple[str, Path]]:
        """List name and evaluation table of each method of a comparison (`dto.compare.compare`)."""
        paths = sorted(self.path.glob("compare/*/evaluate/rows.parquet"))
        return [(path.parents[1].name, path) for path in paths]

    def rows(self, stage: str, record: type[R], without: Collection[str] = ()) -> Iterator[R]:
        """Yield the rows of a stage by id, from its table or its journal; none without either."""
        if self.states.get(stage) in ("finished", "running"):
            yield from super().rows(stage, record, without)

    def trajectories(self, only: str = "") -> Iterator[TrajectoryView]:
        """Yield a view of every trajectory, by id and without the token ids of responses.

        `only`: yield the trajectory with this id, with token ids, and read only its rows.
        """

        def rows(stage: str, record: type[R], column: str = "trajectory_id") -> Iterator[R]:
            if not only or self.states.get(stage) != "finished":
                return self.rows(stage, record, without.get(record, ()))
            key = only.partition("/")[0] if record is Problem else only
            return iter(_find(self.table(stage), record, column, key))

        def trajectory_id(row: Any) -> str:
            return str(row.trajectory_id)

        without: dict[Any, tuple[str, ...]] = {}
        if not only:
            without = dict.fromkeys((Trajectory, OptimizedTrajectory), ("token_ids",))
        dropped, request_of = self._dropped(), RequestReader(self.recipe)
        lengths: Iterator[int] = iter(())
        if not only and self.states.get("sample") == "finished":
            lengths = _lengths(self.table("sample"))
        pruned = self.states.get("prune") == "finished"
        joined = tables.merge(
            rows("sample", Trajectory, "id"),
            (rows("segment", Segment), trajectory_id),
            (rows("estimate", ExitEstimate), trajectory_id),
            (rows("prune", OptimizedTrajectory), trajectory_id),
            (() if pruned else rows("optimize", OptimizedTrajectory), trajectory_id),
            (rows("pair", PreferencePair), trajectory_id),
        )
        problem_of = _ProblemsById(rows("problems", Problem, "id"))
        for trajectory, segments, estimates, after, before, pairs in joined:
            tokens = next(lengths, len(trajectory.token_ids))
            if only in ("", trajectory.id):
                yield TrajectoryView(
                    trajectory,
                    tokens,
                    problem_of(trajectory.problem_id),
                    tuple(segments),
                    tuple(estimates),
                    next(iter((*after, *before)), None),
                    tuple(pairs),
                    tuple(dropped.get(trajectory.id, ())),
                    self.recipe.estimate.threshold,
                    request_of(trajectory),
                )

    def total(self, stage: str) -> int | None:
        """Count the rows of a list's stage, of `evaluate` its questions; None while it runs."""
        if self.states.get(stage) != "finished":
            return None
        if stage != "evaluate":
            return self.count(stage)
        return self.frame(stage, "problem_id", "sample").unique().collect().height

    def find(self, row_id: str) -> View:
        """Find the first trajectory whose id starts with `row_id`, else the first such answer.

        Raises DtoError if no row has such an id.
        """
        views: Iterable[View]
        ids: Iterable[str] = (row.id for row in self.rows("sample", Trajectory, IDS))
        if self.states.get("sample") == "finished":
            ids = self.frame("sample", "id").collect()["id"]
        if row_id.count("/") > 1:  # the id of a chain has three slashes, of a batch prompt two
            views = chain(self.chains(), self.batches())
        elif (first := next((id for id in ids if id.startswith(row_id)), None)) is not None:
            views = self.trajectories(first)
        else:
            views = self.answers(row_id)
        if (view := next((view for view in views if view.id.startswith(row_id)), None)) is None:
            raise DtoError(
                f"{self.path} has no row {row_id!r}: copy an id from `dto view {self.path}`"
            )
        return view

    def _dropped(self) -> dict[str, list[tuple[str, Dropped]]]:
        """Collect dropped rows: (stage, row) pairs by the id of the trajectory or problem."""
        dropped: dict[str, list[tuple[str, Dropped]]] = {}
        for stage in self.states:
            if RECORDS[stage] in _JOINED:
                for row in self.dropped(stage):
                    dropped.setdefault("/".join(row.id.split("/")[:2]), []).append((stage, row))
        return dropped

    def answers(self, start: str = "") -> Iterator[AnswersView]:
        """Yield the evaluation's answers by problem and sample, with texts and without token ids.

        `start`: only problems whose ids start with the problem part of this row id.
        """
        problem_of = _ProblemsById(self.rows(self.test_stage, Problem))
        for (problem_id, _), group in groupby(self._evaluated(start), key=question_of):
            rows = tuple(group)
            problem, seeds = problem_of(problem_id), {row.seed for row in rows}
            settings = sampling(self.recipe.evaluate, seeds.pop() if len(seeds) == 1 else None)
            shown = () if self.recipe.compare.methods else tuple(settings)
            yield AnswersView(problem_id, rows[0].sample, rows, problem, self.plain, shown)

    def _evaluated(self, start: str) -> Iterator[EvaluationRow]:
        """Yield evaluation rows by problem and sample, with a few rows of each arm in memory.

        For a comparison, the method name is the model.
        """
        problem, state = start.partition("/")[0], self.states.get("evaluate")
        if state == "running":
            path = self / "evaluate" / "journal"
            entries = read_entries(path, EvaluationRow, order=lambda key: key.rpartition("/")[2])
            rows = chain.from_iterable(entry.rows for entry in entries)
            for problem_id, group in groupby(rows, key=lambda row: str(row.problem_id)):
                if problem_id.startswith(problem):
                    yield from sorted(group, key=question_of)
        named = self.methods() if state == "compared" else [("", self.table("evaluate"))]
        if state in ("finished", "compared"):
            arms = (arm for name, path in named for arm in arms_of(path, name, problem))
            yield from merge(*arms, key=question_of)

    def chains(self) -> Iterator[ChainView]:
        """Yield every chain with its label, by id."""
        problem_of = _ProblemsById(self.rows("problems", Problem))
        dropped = {row.id: row for row in self.dropped("label")}
        labelled = (self.rows("label", LabelledChain, ("prompt_ids",)), lambda row: str(row.id))
        for row, labels in tables.merge(self.rows("chain", Chain), labelled):
            reason = dropped.get(row.id)
            yield ChainView(
                row,
                problem_of(row.problem_id),
                labels[0] if labels else None,
                (reason,) if reason is not None else (),
            )

    def batches(self) -> Iterator[BatchView]:
        """Yield every response to a batch prompt; questions and chain ids are held in memory."""
        if "batch" not in self.states:
            return
        problems = {row.id: row for row in self.rows("problems", Problem)}
        dropped = {row.id: row for row in self.dropped("chain")}
        extracted = {row.id for row in self.rows("chain", Chain)}
        for row in self.rows("batch", BatchResponse, ("prompt_ids",)):
            origin: Origin = "batch" if row.k > 1 else "vanilla"  # one question: of a teacher
            ids = [Chain.make_id(id, origin, row.k, row.sample) for id in row.problem_ids]
            yield BatchView(
                row,
                tuple(problems.get(id) for id in row.problem_ids),
                tuple(id in extracted for id in ids),
                tuple(dropped.get(id) for id in ids),
            )


class _ProblemsById:
    """Look up problems by ascending id, with one in memory at a time."""

    def __init__(self, problems: Iterator[Problem]) -> None:
        self._rest = problems
        self._head = next(problems, None)

    def __call__(self, problem_id: str) -> Problem | None:
        """Return the problem, or None if there is none with this id."""
        while self._head is not None and self._head.id < problem_id:
            self._head = next(self._rest, None)
        return self._head if self._head is not None and self._head.id == problem_id else None


def _lengths(path: Path) -> Iterator[int]:
    """Yield the number of tokens of each response of a table, in its order."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=LENGTHS_READ, columns=["token_ids"]):
            yield from pc.list_value_length(batch.column(0)).to_pylist()


def _find(path: Path, record: type[R], column: str, value: str | int) -> list[R]:
    """Find the rows with `value` in `column`; reads only the row groups that may have it."""
    import pyarrow.parquet as pq

    present = pq.read_schema(path).names
    names = [name for name in tables.schema(record).names if name in present]
    table = pq.read_table(path, columns=names, filters=[(column, "=", value)])
    return [tables.decode(record, row) for row in table.to_pylist()]
