"""Sums over all problems from the values of a few, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
import numpy.typing as npt

from dto.statistics import widening

Column = npt.NDArray[np.float64]
Columns = Mapping[str, Column]
"""A value for each of the pilot's problems, by stratum."""

RESAMPLES = 2000
SEED = 20_250_521


@dataclass(frozen=True, slots=True)
class Range:
    """A figure and its interval; nan where it is not known."""

    value: float
    low: float
    high: float

    def plus(self, other: Range) -> Range:
        """The sum; ends are added, as if all erred the same way."""
        return Range(self.value + other.value, self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> Range:
        """All three times a factor."""
        return Range(self.value * factor, self.low * factor, self.high * factor)


NOTHING = Range(0.0, 0.0, 0.0)


class Extrapolation:
    """From the pilot's problems to those of the run.

    Args:
        ids: the pilot's problems by stratum (train, dev, each test set), two or more in each.
        actual: how many problems of each stratum the run has.
    """

    def __init__(self, ids: Mapping[str, Sequence[str]], actual: Mapping[str, int]) -> None:
        rng = np.random.default_rng(SEED)
        self.ids = ids
        self.actual = actual
        self._weights_RP = {
            stratum: rng.multinomial(len(own), np.full(len(own), 1 / len(own)), RESAMPLES)
            / len(own)
            for stratum, own in ids.items()
        }

    def total(self, values: Columns) -> Range:
        """The sum over all problems of these strata."""
        return self._range([(each, values[each], self.actual[each]) for each in values])

    def like(self, stratum: str, values: Column, number: int) -> Range:
        """The sum over `number` other problems like those of a stratum."""
        return self._range([(stratum, values, number)])

    def growth(self, values: Columns) -> Range:
        """The sum over all problems, over the pilot's; of their number where that is 0."""
        had = sum(float(column.sum()) for column in values.values())
        if had > 0:
            return self.total(values).times(1 / had)
        number = sum(self.actual[each] for each in values)
        return Range(1.0, 1.0, 1.0).times(number / sum(len(self.ids[each]) for each in values))

    def _range(self, parts: Sequence[tuple[str, Column, int]]) -> Range:
        value, draws_R = 0.0, np.zeros(RESAMPLES)
        for stratum, column, number in parts:
            had, mean = len(column), float(column.mean())
            wider = widening(had) * sqrt(1 + had / max(1, number))
            value += number * mean
            draws_R += number * (mean + wider * (self._weights_RP[stratum] @ column - mean))
        if not np.isfinite(value):
            return Range(nan, nan, nan)
        low, high = np.quantile(draws_R, [0.025, 0.975])
        return Range(value, max(0.0, float(low)), float(high))
