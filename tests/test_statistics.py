"""Intervals against published values, brute force and simulation."""

from itertools import combinations
from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.reporting.evaluation import average
from dto.sequential import clopper_pearson
from dto.statistics import (
    Estimate,
    _t_quantile,
    efficiency,
    mean,
    paired_difference,
    pass_at_k,
    proportion,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.308497),
        (1, 10, 0.002529, 0.445016),
        (5, 10, 0.187086, 0.812914),
        (8, 10, 0.443905, 0.974789),
        (10, 10, 0.691503, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_clopper_pearson_against_tables(successes, trials, low, high):
    assert clopper_pearson(successes, trials) == pytest.approx((low, high), abs=1e-5)


def test_clopper_pearson_closed_forms():
    assert clopper_pearson(0, 32).high == pytest.approx(1 - 0.025 ** (1 / 32))
    assert clopper_pearson(1024, 1024).low == pytest.approx(0.025 ** (1 / 1024))


@given(st.integers(1, 60), st.integers(0, 60))
def test_clopper_pearson_covers_and_mirrors(trials, successes):
    successes = min(successes, trials)
    low, high = clopper_pearson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    mirrored = clopper_pearson(trials - successes, trials)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high), abs=1e-8)


def test_wilson_against_its_published_example():
    # Newcombe 1998 (Statistics in Medicine 17), table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3)])
def test_impossible_counts(successes, trials):
    with pytest.raises(ValueError, match="trials"):
        clopper_pearson(successes, trials)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (4, 2.776), (10, 2.228), (29, 2.045)]
)
def test_student(freedom, quantile):
    assert _t_quantile(0.95, freedom) == pytest.approx(quantile, rel=3e-3)


def test_samples_of_a_problem_that_agree_count_once():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 2, 200).astype(float)
    names = [str(i) for i in range(200)]
    once = mean(scores, names)
    four = mean(np.repeat(scores, 4), [name for name in names for _ in range(4)])
    assert (four.value, four.low, four.high) == pytest.approx((once.value, once.low, once.high))
    assert (four.samples, four.problems) == (800, 200)
    naive = mean(np.repeat(scores, 4), [str(i) for i in range(800)])
    assert naive.high - naive.low == pytest.approx((once.high - once.low) / 2, rel=0.02)


def test_independent_samples_have_the_textbook_error():
    values = [1.0, 2.0, 3.0, 4.0, 6.0]
    found = mean(values, list("abcde"))
    half = 2.776 * np.std(values, ddof=1) / np.sqrt(5)
    assert found.high - found.value == pytest.approx(half, rel=3e-3)


def test_proportions_stay_in_range_and_keep_a_width():
    names = [str(i // 2) for i in range(60)]
    perfect = proportion([True] * 60, names)
    assert perfect.value == perfect.high == 1.0
    # thirty problems, not sixty samples
    assert wilson(30, 30).low - 0.02 < perfect.low < wilson(30, 30).low
    assert 0.0 == proportion([False] * 60, names).low < proportion([False] * 60, names).high
    single = proportion([True, False], ["a", "a"])
    assert single.low < 0.2 and single.high > 0.8


def test_no_samples_are_no_figure():
    for found in (mean([], []), proportion([], []), pass_at_k([], [], 1)):
        assert isnan(found.value) and isnan(found.low) and found.samples == 0
    assert isnan(mean([1.0, 2.0], ["a", "a"]).low)
    assert isnan(efficiency([1], [2], ["a"], [1], [2], ["b"]).value)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 values for 1 problems"):
        mean([1.0, 2.0], ["a"])


def clustered_data(rng, problems=60, samples=4):
    """Scores whose problems differ in difficulty; the true mean is 0.5."""
    difficulty_P = rng.beta(0.6, 0.6, problems)
    scores_N = (rng.random((problems, samples)) < difficulty_P[:, None]).astype(float).ravel()
    return scores_N, np.repeat(np.arange(problems), samples).astype(str).tolist()


@pytest.mark.parametrize("estimator", [mean, proportion])
def test_coverage_is_what_it_says(estimator):
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(600):
        scores, names = clustered_data(rng)
        found = estimator(scores, names)
        covered += found.low <= 0.5 <= found.high
    assert 0.925 <= covered / 600 <= 0.98


def test_pairing_removes_what_problems_share():
    rng = np.random.default_rng(2)
    scores, names = clustered_data(rng, problems=300)
    better = np.clip(scores + (rng.random(len(scores)) < 0.1), 0, 1)
    found = paired_difference(better, names, scores, names)
    assert found.value == pytest.approx((better - scores).mean())
    assert found.low > 0
    alone = proportion(scores, names)
    assert found.high - found.low < (alone.high - alone.low) / 2


def test_pairing_uses_shared_problems_and_their_means():
    found = paired_difference(
        [1, 0, 1, 1], ["a", "a", "b", "only A"], [0, 0, 0, 1, 1], ["a", "b", "b", "b", "only B"]
    )
    assert found.value == pytest.approx(((0.5 - 0) + (1 - 1 / 3)) / 2)
    assert (found.samples, found.problems) == (3 + 4, 2)


def test_equal_models_have_no_difference_and_efficiency_one():
    scores, names = clustered_data(np.random.default_rng(3))
    same = paired_difference(scores, names, scores, names)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    tokens = np.full(len(scores), 200.0)
    eta = efficiency(scores, tokens, names, scores, tokens, names)
    assert (eta.value, eta.low, eta.high) == pytest.approx((1, 1, 1))


def test_efficiency_is_accuracy_per_token_against_the_base():
    rng = np.random.default_rng(4)
    scores, names = clustered_data(rng, problems=200)
    tokens = rng.uniform(100, 300, len(scores))
    half = efficiency(scores, tokens / 2, names, scores, tokens, names)
    assert (half.value, half.low, half.high) == pytest.approx((2, 2, 2))
    other, _ = clustered_data(rng, problems=200)
    found = efficiency(other, tokens / 2, names, scores, tokens, names)
    expected = (other.mean() / scores.mean()) / 0.5
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    assert found == efficiency(other, tokens / 2, names, scores, tokens, names)


@pytest.mark.slow
def test_the_bootstrap_covers():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(80):
        scores, names = clustered_data(rng)
        other, _ = clustered_data(rng)
        tokens = np.full(len(scores), 10.0)
        found = efficiency(other, tokens, names, scores, tokens, names)
        covered += found.low <= 1.0 <= found.high
    assert 0.89 <= covered / 80 <= 0.99


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 8))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(correct, k):
    found = pass_at_k(correct, ["a"] * len(correct), k)
    if k > len(correct):
        assert isnan(found.value) and found.problems == 0
        return
    draws = list(combinations(correct, k))
    assert found.value == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


def test_pass_at_k_over_problems():
    found = pass_at_k([1, 0, 0, 0, 1, 1], ["a", "a", "b", "b", "c", "c"], 2)
    assert found.value == pytest.approx(2 / 3)
    assert 0 <= found.low < found.value < found.high <= 1
    with pytest.raises(ValueError, match="at least 1"):
        pass_at_k([1], ["a"], 0)


def test_the_average_of_independent_means_is_as_wide_as_its_parts_say():
    parts = [Estimate(0.2, 0.1, 0.4, 10, 5), Estimate(0.6, 0.6, 0.6, 20, 7)]
    found = average(parts)
    assert found == Estimate(pytest.approx(0.4), pytest.approx(0.35), pytest.approx(0.5), 30, 12)
    assert isnan(average([]).value)
    rng = np.random.default_rng(13)
    covered = 0
    for _ in range(200):
        tasks = [clustered_data(rng, problems) for problems in (20, 40, 80)]
        found = average([proportion(*task) for task in tasks])
        covered += found.low <= 0.5 <= found.high
    assert 0.91 <= covered / 200 <= 0.99
