from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.calibration.risk import certify, growth, order, p_value, split


def draws(lost: float, won: float, problems: int, rounds: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    chances = [lost, won, 1 - lost - won]
    return rng.choice([1.0, -1.0, 0.0], p=chances, size=(rounds, problems))


@pytest.mark.parametrize(
    ("lost", "won", "limit"), [(0.05, 0.03, 0.02), (0.02, 0.0, 0.02), (0.5, 0.45, 0.05)]
)
def test_a_loss_at_the_limit_is_certified_no_more_often_than_the_level(lost, won, limit):
    ps = np.array([p_value(row, limit, 0.1) for row in draws(lost, won, 300, 2000)])
    for level in (0.02, 0.1, 0.3):
        assert (ps <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 2000)


def test_averages_of_several_samples_are_no_less_safe():
    """Samples of a problem that are alike must not count as problems."""
    alike = np.repeat(draws(0.06, 0.04, 200, 1000)[:, :, None], 4, axis=2).mean(axis=2)
    assert np.mean([p_value(row, 0.02, 0.1) <= 0.1 for row in alike]) <= 0.13


def test_a_gain_is_certified_and_a_loss_is_not():
    gains = [p_value(row, 0.02, 0.1) <= 0.1 for row in draws(0.05, 0.10, 300, 200)]
    assert np.mean(gains) > 0.8
    assert p_value(np.zeros(300), 0.02, 0.1) < 0.1
    assert p_value(np.zeros(20), 0.02, 0.1) > 0.1  # too few to tell, whatever they show
    assert p_value(np.ones(500), 0.02, 0.1) == 1.0
    assert p_value(np.zeros(0), 0.02, 0.1) == 1.0


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), max_size=60), st.floats(0, 0.9))
def test_a_p_value_is_one_and_never_smaller_for_a_lower_limit(losses, limit):
    own = p_value(np.array(losses), limit, 0.1)
    assert 0 < own <= 1
    worse = p_value(np.array([*losses[:-1], 1.0] if losses else []), limit, 0.1)
    assert worse >= own - 1e-12


def test_testing_stops_at_the_first_that_fails():
    good, bad = -np.ones(50), np.ones(50)
    ps = certify(np.stack([good, good, bad, good]), 0.02, 0.1)
    assert [p <= 0.1 for p in ps] == [True, True, False]
    assert certify(np.zeros((0, 50)), 0.02, 0.1) == []


def test_any_false_certificate_is_rarer_than_the_level():
    """Twelve candidates that all lose exactly the limit, in a fixed order."""
    rng = np.random.default_rng(2)
    false = 0
    for _ in range(400):
        losses = rng.choice([1.0, -1.0, 0.0], p=[0.06, 0.04, 0.9], size=(12, 200))
        false += certify(losses, 0.02, 0.1)[0] <= 0.1
    assert false / 400 <= 0.1 + 3 * np.sqrt(0.09 / 400)


def test_order_leaves_out_what_is_beaten_and_what_saves_nothing():
    losses = np.array([[0.0] * 10, [0.1] * 10, [0.0] * 10, [-0.1] * 10, [0.0] * 10])
    tokens = np.array([50.0, 40.0, 60.0, 70.0, 120.0])
    # 2 is beaten by 0, 4 saves nothing; -0.1 is easier to certify than 0, and 0 than 0.1
    assert order(losses, tokens, 100.0, 0.05) == [3, 0, 1]
    assert growth(losses[3], 0.05) > growth(losses[0], 0.05) > growth(losses[1], 0.05) == 0


def test_split_depends_on_the_ids_alone():
    problems = [f"{n:016x}" for n in range(200)]
    parts = split(problems, 3, 0.25, 0.5)
    assert [len(part) for part in parts] == [50, 100, 50]
    assert sorted(part for each in parts for part in each) == problems
    assert split(problems[::-1] * 2, 3, 0.25, 0.5) == parts
    assert split(problems, 4, 0.25, 0.5) != parts
