"""Rewards and weights: what the papers' formulas give, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.training.grpo import REWARDS, accuracy, length_penalty, shorter_better
from dto.training.pairs import length_harmonizing

HALF = 1 - 0.4 / 2  # sigmoid(0) = 1/2
LONG = 1 - 0.4 / (1 + 2.718281828459045**-1)  # one deviation longer
SHORT = 1 - 0.4 / (1 + 2.718281828459045**1)


@pytest.mark.parametrize(
    ("correct", "lengths", "rewards"),
    [
        ([True, True, False], [10, 30, 5], [SHORT, LONG, 0.0]),
        ([True, True], [20, 20], [HALF, HALF]),
        ([True, False], [20, 5], [HALF, 0.0]),
        ([False, False], [3, 4], [0.0, 0.0]),
    ],
)
def test_length_penalty(correct: list[bool], lengths: list[int], rewards: list[float]) -> None:
    assert length_penalty(correct, lengths, 0.4) == pytest.approx(rewards)


@pytest.mark.parametrize(
    ("correct", "lengths", "rewards"),
    [
        ([True, True, False], [10, 30, 5], [2.0, 2 - 0.2, -0.05]),  # optimal length 10
        ([False, False], [10, 30], [-0.1, -0.1]),  # none right: the mean, 20
        ([True], [40], [2.0]),
        ([], [], []),
    ],
)
def test_shorter_better(correct: list[bool], lengths: list[int], rewards: list[float]) -> None:
    assert shorter_better(correct, lengths, 0.01) == pytest.approx(rewards)


@pytest.mark.parametrize(
    ("correct", "lengths", "weights"),
    [
        ([True, False], [10, 30], [20 / 10 - 1 + 2 * 0.5, 20 / 30 - 1 - 2 * 0.5]),
        ([True, True], [10, 30], [1.0, 20 / 30 - 1]),  # all right: length alone
        ([True], [7], [0.0]),
        ([], [], []),
    ],
)
def test_length_harmonizing(correct: list[bool], lengths: list[int], weights: list[float]) -> None:
    assert length_harmonizing(correct, lengths, 2.0) == pytest.approx(weights)


def test_accuracy_ignores_length() -> None:
    assert accuracy([True, False], [1, 2], 9.0) == [1.0, 0.0]


@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(1, 9000)), min_size=1),
    penalty=st.floats(0, 1),
    name=st.sampled_from(sorted(REWARDS)),
)
def test_of_right_responses_the_shorter_never_gets_less(
    rows: list[tuple[bool, int]], penalty: float, name: str
) -> None:
    correct, lengths = [right for right, _ in rows], [length for _, length in rows]
    rewards = REWARDS[name](correct, lengths, penalty)
    assert len(rewards) == len(rows)
    right = sorted((n, r) for n, r, good in zip(lengths, rewards, correct, strict=True) if good)
    values = [reward for _, reward in right]
    assert values == sorted(values, reverse=True)
