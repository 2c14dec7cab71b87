"""Which settings lose at most so much accuracy: Learn then Test (2110.01052) on paired losses.

The loss of a problem is the accuracy without the exit minus the accuracy with it, each the mean of
the same samples: it lies in [-1, 1], and problems, not samples, are what is drawn independently.
Candidate settings are nulls "the expected loss exceeds the limit" with one p-value each, and are
tested in an order that other problems have fixed, so that no level has to be shared among them
(fixed-sequence testing, 2110.01052; the order is that of Pareto testing, 2210.07913).

Departs from 2110.01052, whose p-values (Hoeffding-Bentkus) take the variance for the largest that
the range allows: paired losses are mostly 0, and on them such bounds hardly ever certify anything
(simulated with 5 % of answers lost, 10 % won, 300 problems, limit 0.02, level 0.1: Hoeffding's in 1
draw of 100, a bet in 90).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dto.records import derive

Floats = npt.NDArray[np.float64]

LARGEST_BET = 0.9  # of the stake that could be lost whole: one bad problem must not ruin the bet
BETS = 100  # fixed bets among which the growth rate takes the best


class Split(NamedTuple):
    """Problem ids: to put the candidates in order, to certify them, to verify the one picked."""

    choose: tuple[str, ...]
    certify: tuple[str, ...]
    held_out: tuple[str, ...]


def split(problems: Sequence[str], seed: int, choose: float, certify: float) -> Split:
    """Shares of the problems, mixed by seed and id alone; what is left is held out."""
    mixed = sorted(set(problems), key=lambda problem: derive(seed, problem, "calibrate"))
    first = round(choose * len(mixed))
    second = first + round(certify * len(mixed))
    return Split(tuple(mixed[:first]), tuple(mixed[first:second]), tuple(mixed[second:]))


def p_value(losses_P: Floats, limit: float, level: float) -> float:
    """A p-value of the null "the expected loss is `limit` or more", exact for any sample size.

    Testing by betting (2010.09686, section 4): a gambler stakes on each problem in turn
    that its loss is below the limit; under the null the wealth is a non-negative supermartingale
    that starts at 1, so it ever reaches 1 / p with probability at most p (Ville). The stakes look
    only at earlier problems and are the best for a test at `level`.

    Args:
        losses_P: one loss in [-1, 1] per problem, independent and alike in distribution, in an
            order that was fixed without looking at them.
        limit: of the expected loss, in [0, 1).
        level: at which the p-value will be compared; it is valid at every level.
    """
    problems = len(losses_P)
    if not problems:
        return 1.0
    count_P = np.arange(1, problems + 1)
    # As if one loss of 0 had come before: the running moments of what was seen until then.
    mean_P = np.cumsum(losses_P) / (count_P + 1)
    variance_P = (1.0 + np.cumsum((losses_P - mean_P) ** 2)) / (count_P + 1)
    known_P = np.concatenate([[1.0], variance_P[:-1]])
    stake_P = np.minimum(
        np.sqrt(2 * np.log(1 / level) / (problems * known_P)), LARGEST_BET / (1 - limit)
    )
    wealth_P = np.cumsum(np.log1p(stake_P * (limit - losses_P)))
    return float(min(1.0, np.exp(-wealth_P.max())))


def growth(losses_P: Floats, limit: float) -> float:
    """How fast the best fixed bet against the null would grow, in nats a problem.

    An estimate of how easily the null can be rejected; it orders candidates and proves nothing.
    """
    if not len(losses_P):
        return 0.0
    stakes_B = np.linspace(0.0, LARGEST_BET / (1 - limit), BETS)
    return float(np.log1p(np.outer(stakes_B, limit - losses_P)).mean(axis=1).max())


def order(losses_CP: Floats, tokens_C: Floats, base_tokens: float, limit: float) -> list[int]:
    """The candidates worth testing, the one most easily certified first (2210.07913).

    Left out are those that another one beats in loss and in tokens, and those that save no tokens.
    """
    loss_C = losses_CP.mean(axis=1)
    worth: list[int] = []
    for candidate in range(len(loss_C)):
        no_worse_C = (loss_C <= loss_C[candidate]) & (tokens_C <= tokens_C[candidate])
        better_C = (loss_C < loss_C[candidate]) | (tokens_C < tokens_C[candidate])
        if tokens_C[candidate] < base_tokens and not (no_worse_C & better_C).any():
            worth.append(candidate)
    rates = {candidate: growth(losses_CP[candidate], limit) for candidate in worth}
    return sorted(worth, key=lambda candidate: (-rates[candidate], tokens_C[candidate], candidate))


def certify(losses_TP: Floats, limit: float, level: float) -> list[float]:
    """Test candidates in the order given, until one cannot be certified; the p-values, its own too.

    Those with p ≤ level are certified. With probability at least 1 - level over the draw of the
    problems, the expected loss of every one of them is below the limit, so any may be picked
    afterwards. Assumes problems drawn independently of each other, and an order fixed without them.

    Args:
        losses_TP: losses of T candidates on the same P problems.
        limit: of the expected loss, in [0, 1).
        level: the chance of any false certificate.
    """
    tested: list[float] = []
    for losses_P in losses_TP:
        tested.append(p_value(losses_P, limit, level))
        if tested[-1] > level:
            break
    return tested
