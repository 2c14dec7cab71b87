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
        ([True, None, False], [20, 400, 5], [HALF, None, 0.0]),
        ([False, False], [3, 4], [0.0, 0.0]),
    ],
)
def test_length_penalty(
    correct: list[bool | None], lengths: list[int], rewards: list[float | None]
) -> None:
    assert length_penalty(correct, lengths, 0.4) == pytest.approx(rewards)


@pytest.mark.parametrize(
    ("correct", "lengths", "rewards"),
    [
        ([True, True, False], [10, 30, 5], [2.0, 2 - 0.2, -0.05]),  # optimal length 10
        ([False, False], [10, 30], [-0.1, -0.1]),  # none right: the mean, 20
        ([None, True], [500, 40], [None, 2.0]),
        ([None, None], [1, 2], [None, None]),
    ],
)
def test_shorter_better(
    correct: list[bool | None], lengths: list[int], rewards: list[float | None]
) -> None:
    assert shorter_better(correct, lengths, 0.01) == pytest.approx(rewards)


@pytest.mark.parametrize(
    ("correct", "lengths", "weights"),
    [
        ([True, False], [10, 30], [20 / 10 - 1 + 2 * 0.5, 20 / 30 - 1 - 2 * 0.5]),
        ([True, True], [10, 30], [1.0, 20 / 30 - 1]),  # all right: length alone
        ([True, None, False], [10, 999, 30], [2.0, None, 20 / 30 - 2]),
        ([None], [7], [None]),
    ],
)
def test_length_harmonizing(
    correct: list[bool | None], lengths: list[int], weights: list[float | None]
) -> None:
    assert length_harmonizing(correct, lengths, 2.0) == pytest.approx(weights)


def test_accuracy_ignores_length() -> None:
    assert accuracy([True, False, None], [1, 2, 3], 9.0) == [1.0, 0.0, None]


@given(
    rows=st.lists(
        st.tuples(st.sampled_from([True, False, None]), st.integers(1, 9000)), min_size=1
    ),
    penalty=st.floats(0, 1),
    name=st.sampled_from(sorted(REWARDS)),
)
def test_of_right_responses_the_shorter_never_gets_less(
    rows: list[tuple[bool | None, int]], penalty: float, name: str
) -> None:
    correct, lengths = [right for right, _ in rows], [length for _, length in rows]
    rewards = REWARDS[name](correct, lengths, penalty)
    assert [reward is None for reward in rewards] == [right is None for right in correct]
    right = sorted((n, r) for n, r, good in zip(lengths, rewards, correct, strict=True) if good)
    values = [reward for _, reward in right if reward is not None]
    assert values == sorted(values, reverse=True)
