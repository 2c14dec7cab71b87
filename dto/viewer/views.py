"""What is looked at: a trajectory with all that a run says of it, the answers to a question."""

from __future__ import annotations

from dataclasses import dataclass

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
