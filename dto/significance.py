"""Which of many differences are real: paired bootstrap tests, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dto.statistics import SEED

_RESAMPLES = 20_000  # so many that p-values survive a correction for 100 comparisons


class Difference(NamedTuple):
    """A mean difference with its interval and a two-sided p-value; nan without problems."""

    value: float
    low: float
    high: float
    p: float


def bootstrap_differences(
    differences_PK: npt.NDArray[np.float64], confidence: float = 0.95
) -> list[Difference]:
    """The mean of each column with a percentile interval, under resampling of its P problems.

    Column k holds, for each problem, one method's mean over its samples less another's: a paired,
    clustered bootstrap. p is twice the smaller share of resampled means on either side of 0, the
    observed one counted in, so that it is never 0; nor is it below 2 / 2^P, the least that P
    problems can show by their signs. A column of zeros has 1.
    """
    problems, columns = differences_PK.shape
    if not problems:
        return [Difference(nan, nan, nan, nan)] * columns
    rng = np.random.default_rng(SEED)
    uniform = np.full(problems, 1 / problems)
    parts = [
        rng.multinomial(problems, uniform, size=500) @ differences_PK / problems
        for _ in range(0, _RESAMPLES, 500)
    ]
    means_RK = np.concatenate(parts)
    below_K = ((means_RK <= 0).sum(0) + 1) / (_RESAMPLES + 1)
    above_K = ((means_RK >= 0).sum(0) + 1) / (_RESAMPLES + 1)
    p_K = np.minimum(1.0, np.maximum(2 * np.minimum(below_K, above_K), 2.0 ** (1 - problems)))
    tail = (1 - confidence) / 2
    ends_2K = np.quantile(means_RK, [tail, 1 - tail], axis=0)
    values_K = differences_PK.mean(0)
    return [Difference(*map(float, row)) for row in zip(values_K, *ends_2K, p_K, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the order given.

    Calling those below alpha differences errs anywhere among them with probability alpha at most,
    whatever their dependence. nan, a comparison that could not be made, stays and does not count.
    """
    order = sorted(
        (i for i, p in enumerate(p_values) if not isnan(p)), key=lambda i: float(p_values[i])
    )
    adjusted = [nan] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
