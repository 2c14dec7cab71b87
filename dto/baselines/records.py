"""What a comparison of methods amounts to: a row a method, and all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dto.baselines.table import lines_of


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method, over all seeds.

    Intervals are 95 %, of this method alone. `policy_tokens` is the mean over the trainings of its
    grid, of which `charged` went into its data; `cpu_seconds` is all that it took. `gain` and
    `tokens_change` are differences from the reference (accuracy; tokens), each with its interval
    and its p-value after Holm's correction. `accuracy_rank` is 1 + the number of methods that are
    shown to be more accurate, `tokens_rank` 1 + the number shown to be shorter (None: too few
    problems, or too many failed). `picked` is what dev chose, for each seed; empty: the base model.
    """

    method: str
    picked: tuple[str, ...]
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    tokens: float
    tokens_low: float
    tokens_high: float
    gain: float
    gain_low: float
    gain_high: float
    gain_p: float
    tokens_change: float
    tokens_change_low: float
    tokens_change_high: float
    tokens_change_p: float
    accuracy_rank: int | None
    tokens_rank: int | None
    truncated: int
    failed: int
    policy_tokens: float
    charged: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison; `str()` gives the table for the terminal.

    `judging` has, by method, the judging of held-out chains (share, low, high) before a training,
    and then after each training of the grid.
    """

    name: str
    reference: str
    seeds: tuple[int, ...]
    problems: int
    samples: int
    budget: int
    rows: tuple[MethodRow, ...]
    judging: Mapping[str, tuple[tuple[float, float, float], ...]]

    def __str__(self) -> str:
        return "\n".join(lines_of(self))
