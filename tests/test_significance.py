"""The paired bootstrap test against simulation, Holm's correction against a worked example."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest

from dto.statistics import bootstrap_differences, holm


def test_holm_against_a_worked_example():
    # Holm 1979: the least times 4, the next times 3, …, never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    kept, missing = holm([0.04, float("nan")])
    assert kept == 0.04 and isnan(missing)


@pytest.mark.slow
def test_bootstrap_agrees_with_the_normal_interval() -> None:
    noise = np.random.default_rng(0).normal(0.3, 1.0, size=(400, 1))
    zero = np.zeros((400, 1))
    sure = np.full((400, 1), 0.2)
    found, none, certain = bootstrap_differences(np.hstack([noise, zero, sure]))
    half = 1.96 * noise.std() / 20
    assert found.value == pytest.approx(noise.mean())
    assert found.low == pytest.approx(noise.mean() - half, abs=0.01)
    assert found.high == pytest.approx(noise.mean() + half, abs=0.01)
    assert found.p < 0.001
    assert none == (0.0, 0.0, 0.0, 1.0)
    assert certain.low == pytest.approx(0.2) and 0 < certain.p < 0.001
    missing, beside = bootstrap_differences(np.hstack([zero * np.nan, noise]))
    assert all(map(isnan, missing)) and beside.p < 0.001


def test_p_is_rarely_small_under_no_difference_and_often_under_one() -> None:
    noise = np.random.default_rng(1).normal(0.0, 1.0, size=(100, 200))
    small = sum(each.p < 0.05 for each in bootstrap_differences(noise))
    assert 2 <= small <= 20  # 10 are expected
    shifted = bootstrap_differences(noise + 0.4)
    assert np.mean([each.p < 0.05 for each in shifted]) > 0.9


def test_the_p_value_agrees_with_the_interval() -> None:
    rng = np.random.default_rng(12)
    for each in bootstrap_differences(rng.normal(0.05, 0.3, (100, 50))):
        assert (each.p < 0.05) == (each.low > 0 or each.high < 0) or abs(each.p - 0.05) < 0.005


def test_few_problems_show_no_more_than_their_signs() -> None:
    (three,) = bootstrap_differences(np.ones((3, 1)))
    assert three.p == 0.25
    (same,) = bootstrap_differences(np.zeros((3, 1)))
    assert same.p == 1.0
    (one,) = bootstrap_differences(np.ones((1, 1)))
    assert one.p == 1.0
    (none,) = bootstrap_differences(np.zeros((0, 1)))
    assert isnan(none.p)
