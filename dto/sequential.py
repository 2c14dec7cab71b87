"""A sequential test of "is p above T?" with an exact guarantee.

Wald's sequential probability ratio test (A. Wald, Sequential Tests of Statistical Hypotheses, Ann.
Math. Statist. 16(2), 1945) of p <= T - margin against p >= T + margin, truncated at `cap` trials.
It also stops as soon as `above` can no longer be reached before the cap: that is `undecided`.

Wald's own thresholds, log((1 - error) / error), only approximate the errors. Here both errors are
computed exactly, stops included. The threshold for `above` is the lowest for which some threshold
for `below` keeps both errors to `error`, the one for `below` the lowest that does so with it. The
number of trials grows with either threshold, whatever p is.

Guarantee, by enumeration of all paths. It is not asymptotic, and it holds for every p and not only
at the two end points, because one more success never prevents `above` and never causes `below`:

    P(above | p) <= error   for every p <= T - margin  (or `pass_error`)
    P(below | p) <= error   for every p >= T + margin

Inside the zone T ± margin either decision is acceptable: the stated error is against T - margin and
T + margin, not against T. With the defaults (0.75 ± 0.10, error 0.05) a boundary at p = 0.75 is
decided `above` with probability 0.26, one at 0.70 with 0.12. `undecided` is no error and is counted
separately. If `undecided` counts as not passed, a good p is missed with probability
1 - P(above | p), which `characteristic` computes: 0.26 at p = 0.85.

The guarantee is for one test at one boundary. A scan that stops at the first pass tests many
boundaries: over 24 boundaries that all have p = 0.65, some boundary passes with probability 0.70.
`share` divides an error for the whole scan among its boundaries.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from math import ceil, expm1, floor, isnan, log, log1p
from typing import NamedTuple

import numpy as np

from dto.errors import DtoError
from dto.records import Decision

_EDGE = 1e-3
MOST_BOUNDARIES = 512
"""The most boundaries that a scan tests if its error is stated for the whole scan."""


class Characteristic(NamedTuple):
    """The probability of each decision at one true p, and the mean number of trials."""

    above: float
    below: float
    undecided: float
    trials: float


class Boundaries(NamedTuple):
    """The numbers of successes at which the test stops, for n = 0 … cap trials.

    `pass_at[n]`: the fewest that decide `above` (n + 1: impossible). `refuse_at[n]`: the most that
    decide `below` (-1: impossible). `hopeless_at[n]`: the most from which `above` is out of reach.
    """

    pass_at: tuple[int, ...]
    refuse_at: tuple[int, ...]
    hopeless_at: tuple[int, ...]


def zone(threshold: float, margin: float, error: float, cap: int) -> tuple[float, float]:
    """The ends of the indifference zone. Raises DtoError if the test does not exist."""
    low, high = max(threshold - margin, _EDGE), min(threshold + margin, 1 - _EDGE)
    if not low < high:
        raise DtoError(
            f"sequential test: threshold {threshold} ± margin {margin} is not a zone in (0, 1): "
            "threshold must lie in [0, 1], margin above 0"
        )
    if not 0 < error < 0.5 or cap < 1:
        raise DtoError(
            f"sequential test: error {error} must lie in (0, 0.5) and cap {cap} must be at least 1"
        )
    if low**cap > error:
        raise DtoError(
            f"sequential test: even {cap} successes in {cap} trials do not show p > {low:.3f} "
            f"with error {error}: raise cap or error"
        )
    return low, high


def share(error_scan: float, boundaries: int) -> float:
    """Divide the error of a scan equally among the tests at its boundaries.

    1 - (1 - error_scan)^(1 / k) is exact, because every boundary has its own rollouts (Z. Šidák, J.
    Amer. Statist. Assoc. 62, 1967). k, the number of a trajectory's boundaries, is known before the
    scan. A spending rule without k, such as error_scan · 6 / (π i)², leaves so little for the 24th
    boundary that p = 0.95 passes there with probability 0.56 instead of 0.94 (cap 32). k is rounded
    up to 1, 2, 3, 4, 6, 8, 12, … 512, so that few different tests are computed. A scan ends after
    MOST_BOUNDARIES.
    """
    least = max(1, min(boundaries, MOST_BOUNDARIES))
    power = 1 << (least.bit_length() - 1)
    k = next(k for k in (power, power * 3 / 2, power * 2) if k >= least)
    return float(-expm1(log1p(-error_scan) / k))


class SequentialTest:
    """The sequential test. Its boundaries are computed once for each set of parameters.

    Ask for a decision after every trial, or after as many trials as `rounds_to_decision` says.
    Since no decision is possible in between, the guarantee is the same.

    Args:
        threshold: T.
        margin: half of the width of the indifference zone; its ends stay within [0.001, 0.999].
        error: bound on either error, in (0, 0.5).
        cap: maximum number of trials. Rollouts that failed for technical reasons do not count.
        pass_error: a different bound on P(above | p <= T - margin); None: `error`.

    Raises:
        DtoError: if a parameter is out of range, or the cap is too small for the error.
    """

    def __init__(
        self,
        threshold: float,
        margin: float,
        error: float,
        cap: int,
        pass_error: float | None = None,
    ) -> None:
        self.pass_error = error if pass_error is None else pass_error
        zone(threshold, margin, error, cap)
        self.low, self.high = zone(threshold, margin, self.pass_error, cap)
        self.error = error
        self.cap = cap
        self.boundaries = _tightest(self.low, self.high, self.pass_error, error, cap)
        self._wait = _wait(self.boundaries)

    def decide(self, successes: int, trials: int) -> Decision | None:
        """The decision after `trials` trials; None: continue. `undecided` is final."""
        self._check(successes, trials)
        if successes >= self.boundaries.pass_at[trials]:
            return "above"
        if successes <= self.boundaries.refuse_at[trials]:
            return "below"
        return "undecided" if successes <= self.boundaries.hopeless_at[trials] else None

    def rounds_to_decision(self, successes: int, trials: int) -> int:
        """The fewest further trials after which a decision is possible; 0 if there is one now."""
        self._check(successes, trials)
        return self._wait[trials][successes]

    def characteristic(self, p: float) -> Characteristic:
        """The exact operating characteristic and average sample number at a true rate p."""
        return _characteristic(self.boundaries, p)

    def _check(self, successes: int, trials: int) -> None:
        if not 0 <= successes <= trials <= self.cap:
            raise ValueError(
                f"{successes} successes in {trials} trials: a test with cap {self.cap} sees "
                "0 <= successes <= trials <= cap"
            )


def _boundaries(low: float, high: float, accept: float, refuse: float, cap: int) -> Boundaries:
    """The boundaries for likelihood-ratio thresholds `accept` > 0 and `refuse` > 0.

    log L = s · log(high / low) + (n - s) · log((1 - high) / (1 - low)) is linear in s and in n, so
    both boundaries are parallel lines (a small slack keeps grid points on them).
    """
    failure = log((1 - low) / (1 - high))
    span = log(high / low) + failure
    slack = 1e-9
    trials = range(cap + 1)
    pass_at = [max(0, min(n + 1, ceil((accept + n * failure) / span - slack))) for n in trials]
    refuse_at = [max(-1, min(n, floor((n * failure - refuse) / span + slack))) for n in trials]
    # Successes grow by at most one per trial, pass_at no faster: the last trial is the easiest.
    hopeless = [max(-1, pass_at[cap] - (cap - n) - 1) for n in trials]
    return Boundaries(tuple(pass_at), tuple(refuse_at), tuple(hopeless))


def _characteristic(boundaries: Boundaries, p: float) -> Characteristic:
    """Dynamic programme over n; the state is the probability of each number of successes."""
    cap = len(boundaries.pass_at) - 1
    successes_S = np.arange(cap + 1)
    undecided_S = np.zeros(cap + 1)  # probability of each count with no decision yet
    undecided_S[0] = 1.0
    above = below = gone = trials = 0.0
    for n in range(cap + 1):
        passing = successes_S >= boundaries.pass_at[n]
        refusing = successes_S <= boundaries.refuse_at[n]
        hopeless = ~refusing & ((successes_S <= boundaries.hopeless_at[n]) | (n == cap)) & ~passing
        above += float(undecided_S[passing].sum())
        below += float(undecided_S[refusing].sum())
        gone += float(undecided_S[hopeless].sum())
        undecided_S[passing | refusing | hopeless] = 0.0
        trials += float(undecided_S.sum())
        undecided_S[1:] = undecided_S[1:] * (1 - p) + undecided_S[:-1] * p
        undecided_S[0] *= 1 - p
    return Characteristic(above, below, gone, trials)


@cache
def _tightest(low: float, high: float, pass_error: float, error: float, cap: int) -> Boundaries:
    """The lowest admissible threshold for `above`, and the lowest one for `below` given that.

    P(above) falls with the first threshold and rises with the second, so the test that refuses
    soonest bounds the first from below. With the first fixed, P(below) falls with the second.
    """
    success, failure = log(high / low), log((1 - low) / (1 - high))
    grid = {s * success - (n - s) * failure for n in range(1, cap + 1) for s in range(n + 1)}
    accepts = [*sorted(value for value in grid if value > 0), max(grid) + 1.0]  # last: never
    refuses = [*sorted(-value for value in grid if value < 0), -min(grid) + 1.0]

    def passes_wrongly(i: int, j: int) -> bool:
        boundaries = _boundaries(low, high, accepts[i], refuses[j], cap)
        return _characteristic(boundaries, low).above > pass_error

    def refuses_wrongly(i: int, j: int) -> bool:
        boundaries = _boundaries(low, high, accepts[i], refuses[j], cap)
        return _characteristic(boundaries, high).below > error

    i = bisect_left(range(len(accepts)), True, key=lambda i: not passes_wrongly(i, 0))
    while True:
        rows = range(len(refuses))
        j = bisect_left(rows, True, key=lambda j, i=i: not refuses_wrongly(i, j))  # type: ignore[misc]
        if not passes_wrongly(i, j):
            return _boundaries(low, high, accepts[i], refuses[j], cap)
        i += 1


@cache
def _wait(boundaries: Boundaries) -> tuple[tuple[int, ...], ...]:
    """For each n and s, the fewest further trials to a decision."""
    cap = len(boundaries.pass_at) - 1
    rows: list[tuple[int, ...]] = [(0,) * (cap + 2)]
    for n in range(cap, -1, -1):
        after = rows[-1]
        rows.append(
            tuple(
                0
                if s >= boundaries.pass_at[n]
                or s <= max(boundaries.refuse_at[n], boundaries.hopeless_at[n])
                or n == cap
                else 1 + min(after[s], after[s + 1])
                for s in range(n + 1)
            )
        )
    return tuple(reversed(rows[1:]))


class Interval(NamedTuple):
    """A closed interval."""

    low: float
    high: float


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """The exact binomial interval (Clopper & Pearson 1934), for independent trials of one problem.

    At each end the binomial tail is (1 - confidence) / 2. The ends are quantiles of a beta
    distribution, to 2**-35. Without trials the interval is [0, 1].
    """
    from scipy import special  # importing it takes 0.2 s, which most commands need not wait for

    check_counts(successes, trials)
    tail = (1 - confidence) / 2
    low = 0.0
    if successes > 0:
        low = _on_grid(special.betaincinv(successes, trials - successes + 1, tail))
    high = 1.0
    if successes < trials:
        high = 1 - _on_grid(special.betaincinv(trials - successes, successes + 1, tail))
    return Interval(low, high)


def _on_grid(p: float) -> float:
    """Round p to the middle of a cell of width 2**-34.

    Tables store these values, which must not change with the last digits of a library.
    """
    return (floor(p * 2**34) + 0.5) / 2**34


def check_counts(successes: float, trials: float) -> None:
    """Raise ValueError unless 0 <= successes <= trials."""
    if isnan(trials) or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials: 0 <= successes <= trials")
