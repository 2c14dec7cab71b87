"""Exact and approximate intervals for the share of successes in independent trials."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan, lgamma, log, log1p, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A closed interval."""

    low: float
    high: float


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """The exact binomial interval (Clopper & Pearson 1934), for independent trials of one problem.

    Each end is where the binomial tail is (1 - confidence) / 2, to 1e-9. No trials: [0, 1].
    """
    _check_counts(successes, trials)
    tail = (1 - confidence) / 2
    low = 0.0
    if successes > 0:
        low = _solve(lambda p: _binomial_tail(successes, trials, p) - tail)
    high = 1.0
    if successes < trials:
        high = 1 - _solve(lambda q: _binomial_tail(trials - successes, trials, q) - tail)
    return Interval(low, high)


def wilson(successes: float, trials: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval (1927); takes effective counts that are no integers. None: [0, 1]."""
    _check_counts(successes, trials)
    if trials == 0:
        return Interval(0.0, 1.0)
    z = normal_quantile(confidence)
    p = successes / trials
    centre = p + z * z / (2 * trials)
    spread = z * sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return Interval(max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


def normal_quantile(confidence: float) -> float:
    """The two-sided quantile of the standard normal distribution: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _binomial_tail(successes: int, trials: int, p: float) -> float:
    """P(X >= successes) for X binomial."""
    if p <= 0.0 or p >= 1.0:
        return float(p >= 1.0)
    up, down = log(p), log1p(-p)
    k = np.arange(successes, trials + 1)
    choose = np.array([lgamma(trials + 1) - lgamma(i + 1) - lgamma(trials - i + 1) for i in k])
    return float(np.exp(choose + k * up + (trials - k) * down).sum())


def _solve(rising: Callable[[float], float]) -> float:
    """The root in [0, 1] of a rising function, by bisection."""
    low, high = 0.0, 1.0
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def _check_counts(successes: float, trials: float) -> None:
    if isnan(trials) or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials: 0 <= successes <= trials")
