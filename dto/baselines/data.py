"""Pairs of samples as published baselines choose them, from the trajectories of one problem.

All take graded trajectories (none `failed`) in order of their ids and give (chosen, rejected).
Ties go to the first, so the order decides nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from dto.records import Trajectory


class Choice(NamedTuple):
    """Two samples of one problem, and the words that the pair's columns say of them."""

    chosen: Trajectory
    rejected: Trajectory
    chosen_from: str
    rejected_from: str


def _length(row: Trajectory) -> int:
    return len(row.token_ids)


def _correct(rows: Sequence[Trajectory]) -> list[Trajectory]:
    return [row for row in rows if row.grade == "correct"]


def shortest_over_longest(rows: Sequence[Trajectory]) -> list[Choice]:
    """The shortest correct response over the longest response (2412.21187, section 4).

    The longest may be correct, wrong or truncated; the paper may have kept the right ones only. No
    pair without a correct response.
    """
    correct = _correct(rows)
    if not correct:
        return []
    chosen, rejected = min(correct, key=_length), max(rows, key=_length)
    return [Choice(chosen, rejected, "shortest_correct", "longest")]


def token_budget(rows: Sequence[Trajectory], max_tokens: int) -> float:
    """DAST's token-length budget of a problem (2503.04472): p · mean length + (1 - p) · limit.

    `p` is the share of correct samples, the mean is over those, `max_tokens` the limit on a
    response: the harder a problem, the nearer its budget to the limit.
    """
    correct = _correct(rows)
    p = len(correct) / len(rows)
    return p * fmean(map(_length, correct)) + (1 - p) * max_tokens if correct else float(max_tokens)


def budget_reward(correct: bool, length: int, budget: float) -> float:
    """DAST's calibrated reward of a response (2503.04472): long right ones lose, short wrong too.

    With excess = length / budget - 1: right max(0.5 - excess / 2, 0.1), wrong
    min(0.9 · excess - 0.1, -0.1).
    """
    excess = length / budget - 1
    if correct:
        return max(0.5 - 0.5 * excess, 0.1)
    return min(0.9 * excess - 0.1, -0.1)


def budget_pairs(rows: Sequence[Trajectory], max_tokens: int, margin: float) -> list[Choice]:
    """DAST's pairs (2503.04472): best over worst reward among right, and among wrong responses.

    A pair of right ones teaches to be short, one of wrong ones (the longer is chosen) to go on
    thinking; pairs across the two are left out, as in the paper. Only pairs whose rewards differ by
    more than `margin`. Truncated ones count as wrong.
    """
    budget = token_budget(rows, max_tokens)
    chosen: list[Choice] = []
    for right, name in ((True, "correct"), (False, "wrong")):
        kind = [row for row in rows if (row.grade == "correct") is right]
        if len(kind) < 2:
            continue
        rewards = [budget_reward(right, _length(row), budget) for row in kind]
        best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
        if rewards[best] - rewards[worst] > margin:
            chosen.append(Choice(kind[best], kind[worst], f"best_{name}", f"worst_{name}"))
    return chosen
