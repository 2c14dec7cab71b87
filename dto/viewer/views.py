"""What is looked at: a trajectory with all that a run says of it, the answers to a question."""

from __future__ import annotations

from dataclasses import dataclass

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
