"""Rewards and weights: what the papers' formulas give, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.errors import DtoError
from dto.records import Problem
from dto.settings import TrainSettings
from dto.training.pairs import length_harmonizing
from dto.training.rewards import (
    Rewarded,
    accuracy,
    length_penalty,
    reward_of,
    shorter_better,
)

PROBLEM = Problem("p", "chains", "train", "7 * 8?", "6")

HALF = 1 - 0.4 / 2  # sigmoid(0) = 1/2
LONG = 1 - 0.4 / (1 + 2.718281828459045**-1)  # one deviation longer
SHORT = 1 - 0.4 / (1 + 2.718281828459045**1)


def group(correct: Sequence[bool], lengths: Sequence[int]) -> list[Rewarded]:
    rows = zip(correct, lengths, strict=True)
    return [Rewarded("", length, right, PROBLEM) for right, length in rows]


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
    assert length_penalty(group(correct, lengths), 0.4) == pytest.approx(rewards)


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
    assert shorter_better(group(correct, lengths), 0.01) == pytest.approx(rewards)


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
    assert accuracy(group([True, False], [1, 2])) == [1.0, 0.0]


@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(1, 9000)), min_size=1),
    penalty=st.floats(0, 1),
    name=st.sampled_from(["accuracy", "length_penalty", "shorter_better"]),
)
def test_of_right_responses_the_shorter_never_gets_less(
    rows: list[tuple[bool, int]], penalty: float, name: str
) -> None:
    correct, lengths = [right for right, _ in rows], [length for _, length in rows]
    rewards = reward_of(TrainSettings(reward=name, penalty=penalty))(group(correct, lengths))
    assert len(rewards) == len(rows)
    right = sorted((n, r) for n, r, good in zip(lengths, rewards, correct, strict=True) if good)
    values = [reward for _, reward in right]
    assert values == sorted(values, reverse=True)


FOREIGN = """
import numpy as np

def right(responses):
    return np.array([response.correct for response in responses])

def short(responses):
    return [1.0]

def long(responses):
    return [1.0] * 9

def nothing(responses):
    pass

def one(responses):
    return 1.0

def strange(responses):
    return [float("nan"), 1.0]

def endless(responses):
    return [1.0, float("inf")]

def words(responses):
    return ["good", "bad"]

def broken(responses):
    return [1 / (response.tokens - 3) for response in responses]
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("right", None),
        ("short", r"returned \[1\.0\] for 2 responses: it returns one finite number for each"),
        ("long", "for 2 responses"),
        ("nothing", "failed: TypeError: 'NoneType' object is not iterable"),
        ("one", "failed: TypeError: 'float' object is not iterable"),
        ("strange", r"returned \[nan, 1\.0\] for 2"),
        ("endless", r"returned \[1\.0, inf\] for 2"),
        ("words", "failed: ValueError: could not convert string to float: 'good'"),
        ("broken", r"failed: ZeroDivisionError: .* \(foreign_rewards\.py, line 29\)"),
    ],
)
def test_a_reward_of_another_package_returns_a_finite_number_for_each_response(
    name: str, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign_rewards.py").write_text(FOREIGN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    reward = reward_of(TrainSettings(reward=f"foreign_rewards:{name}"))
    responses = group([True, False], [3, 5])
    if message is None:
        rewards = reward(responses)
        assert rewards == [1.0, 0.0] and all(type(value) is float for value in rewards)
        return
    with pytest.raises(DtoError, match=message) as error:
        reward(responses)
    assert str(error.value).startswith(f"train.reward 'foreign_rewards:{name}' ")
    assert "\n" not in str(error.value)
