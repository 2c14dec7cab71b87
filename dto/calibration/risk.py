"""Certify that exits lose little accuracy: Learn then Test (2110.01052) on paired losses.

The loss of a problem is its accuracy without the exit minus that with it, each the mean of the same
samples. It lies in [-1, 1]. Problems, not samples, are independent. Each candidate has the null
hypothesis "the expected loss exceeds the limit" and one p-value. The candidates are tested in an
order that other problems have fixed, so they need not share the level (fixed-sequence testing,
2110.01052; the order is that of Pareto testing, 2210.07913).

Departs from 2110.01052, whose p-values (Hoeffding-Bentkus) assume the largest variance that the
range allows. Paired losses are mostly 0, so such bounds hardly ever certify anything. Simulated
with 5 % of answers lost, 10 % won, 300 problems, limit 0.02 and level 0.1, Hoeffding's bound
certifies in 1 draw of 100, a bet in 90.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dto.records import derive

Floats = npt.NDArray[np.float64]

LARGEST_BET = 0.9  # share of the wealth at risk, so that one bad problem cannot lose it all
MOST_PROBLEMS = 2**22  # that are thought of
BETS = 100  # fixed bets among which `growth` takes the best


class Split(NamedTuple):
    """Problem ids of the parts that order candidates, certify them, and check the chosen one."""

    choose: tuple[str, ...]
    certify: tuple[str, ...]
    held_out: tuple[str, ...]


def split(problems: Sequence[str], seed: int, choose: float, certify: float) -> Split:
    """Divide the problems at random, by seed and id; the remainder is held out."""
    mixed = sorted(set(problems), key=lambda problem: derive(seed, problem, "calibrate"))
    first = round(choose * len(mixed))
    second = first + round(certify * len(mixed))
    return Split(tuple(mixed[:first]), tuple(mixed[first:second]), tuple(mixed[second:]))


def p_value(losses_P: Floats, limit: float, level: float) -> float:
    """A p-value of the null "the expected loss is `limit` or more", exact for any sample size.

    Testing by betting (2010.09686, section 4): a gambler bets on each problem in turn that its loss
    is below the limit. Under the null the wealth is a non-negative supermartingale that starts at
    1, so it ever reaches 1 / p with probability at most p (Ville). The stakes depend only on
    earlier problems and are chosen for a test at `level`.

    Args:
        losses_P: one loss in [-1, 1] per problem, independent and identically distributed, in an
            order fixed without looking at them.
        limit: limit of the expected loss, in [0, 1).
        level: the level of the later comparison; the p-value is valid at every level.
    """
    problems = len(losses_P)
    if not problems:
        return 1.0
    count_P = np.arange(1, problems + 1)
    # Running moments of the earlier losses, with one loss of 0 added in front.
    mean_P = np.cumsum(losses_P) / (count_P + 1)
    variance_P = (1.0 + np.cumsum((losses_P - mean_P) ** 2)) / (count_P + 1)
    known_P = np.concatenate([[1.0], variance_P[:-1]])
    stake_P = np.minimum(
        np.sqrt(2 * np.log(1 / level) / (problems * known_P)), LARGEST_BET / (1 - limit)
    )
    wealth_P = np.cumsum(np.log1p(stake_P * (limit - losses_P)))
    return float(min(1.0, np.exp(-wealth_P.max())))


def problems_needed(limit: float, level: float) -> int | None:
    """The fewest problems that reject the null at `level` when none of them loses anything.

    With fewer, no candidate can be certified that does not gain accuracy. None: no number is
    enough, as with a limit of 0.
    """

    def rejects(problems: int) -> bool:
        return p_value(np.zeros(problems), limit, level) <= level

    most = 1
    while not rejects(most):
        most *= 2
        if most > MOST_PROBLEMS:
            return None
    few = most // 2
    while most - few > 1:
        middle = (few + most) // 2
        few, most = (few, middle) if rejects(middle) else (middle, most)
    return most


def growth(losses_P: Floats, limit: float) -> float:
    """The growth rate of the best fixed bet against the null, in nats per problem.

    It estimates how easily the null can be rejected. It orders candidates and proves nothing.
    """
    if not len(losses_P):
        return 0.0
    stakes_B = np.linspace(0.0, LARGEST_BET / (1 - limit), BETS)
    return float(np.log1p(np.outer(stakes_B, limit - losses_P)).mean(axis=1).max())


def order(losses_CP: Floats, tokens_C: Floats, base_tokens: float, limit: float) -> list[int]:
    """The candidates worth testing, the most easily certified first (2210.07913).

    Excludes candidates that another one beats in loss and tokens, and those that save no tokens.
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
    """Test candidates in order until one fails; return the p-values, including the failed one's.

    Candidates with p ≤ level are certified. With probability at least 1 - level over the draw of
    the problems, the expected losses of all of them are below the limit, so any may be chosen
    afterwards. Assumes independent problems, and an order fixed without them.

    Args:
        losses_TP: losses of T candidates on the same P problems.
        limit: limit of the expected loss, in [0, 1).
        level: the probability of any false certificate.
    """
    tested: list[float] = []
    for losses_P in losses_TP:
        tested.append(p_value(losses_P, limit, level))
        if tested[-1] > level:
            break
    return tested
