"""Rewards and weights of the baselines, for the responses to one problem.

`correct` says of each response whether it is right (None: it could not be graded, and gets no
reward), `lengths` are in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from statistics import fmean, pstdev

Correct = Sequence[bool | None]
Rewards = list[float | None]


def accuracy(correct: Correct, lengths: Sequence[int], penalty: float) -> Rewards:
    """1 for a right response, 0 for a wrong one (2402.03300); length is not looked at."""
    return [None if right is None else float(right) for right in correct]


def length_penalty(correct: Correct, lengths: Sequence[int], penalty: float) -> Rewards:
    """Right: 1 - penalty · sigmoid((length - mean) / deviation), wrong: 0 (2502.04463).

    Mean and standard deviation are those of the right responses to the problem. Where they are all
    equally long, the sigmoid is one half.
    """
    right = [length for length, good in zip(lengths, correct, strict=True) if good]
    mean, deviation = (fmean(right), pstdev(right)) if right else (0.0, 0.0)

    def reward(length: int) -> float:
        score = (length - mean) / deviation if deviation else 0.0
        return 1 - penalty / (1 + exp(-score))

    return [
        None if good is None else reward(length) if good else 0.0
        for good, length in zip(correct, lengths, strict=True)
    ]


def shorter_better(correct: Correct, lengths: Sequence[int], penalty: float) -> Rewards:
    """2 · right - penalty · |length - optimal length| (2504.21370; 2 is the paper's alpha).

    The sample-optimal length is that of the shortest right response; without a right one, the mean.
    """
    graded = [
        (length, good) for length, good in zip(lengths, correct, strict=True) if good is not None
    ]
    right = [length for length, good in graded if good]
    optimal = min(right) if right else fmean(length for length, _ in graded) if graded else 0.0
    return [
        None if good is None else 2.0 * good - penalty * abs(length - optimal)
        for good, length in zip(correct, lengths, strict=True)
    ]


REWARDS = {
    "accuracy": accuracy,
    "length_penalty": length_penalty,
    "shorter_better": shorter_better,
}


def judging(picks: Sequence[str], no_letter: float) -> Rewards:
    """1 for picking the label, 0 for another letter, `no_letter` for none (2508.17803).

    The paper has 1 and 0 alone; a judgement that failed gets no reward.
    """
    worth = {"correct": 1.0, "wrong": 0.0, "unreadable": no_letter}
    return [worth.get(pick) for pick in picks]


def length_harmonizing(correct: Correct, lengths: Sequence[int], accuracy_weight: float) -> Rewards:
    """O1-Pruner's reward (2501.12570): mean length / length - 1 + weight · (right - accuracy).

    Mean length and accuracy are those of the reference model, estimated by the same samples, so
    that the rewards need no further baseline. Departures from the published script: it takes two of
    the samples of each problem, cuts the rewards to [-2, 4] and standardizes them over the data.
    """
    graded = [
        (length, good) for length, good in zip(lengths, correct, strict=True) if good is not None
    ]
    if not graded:
        return [None] * len(lengths)
    mean = fmean(length for length, _ in graded)
    share = fmean(bool(good) for _, good in graded)
    return [
        None if good is None else mean / length - 1 + accuracy_weight * (good - share)
        for good, length in zip(correct, lengths, strict=True)
    ]
