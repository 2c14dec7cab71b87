"""Rewards of GRPO. A reward is a function of one group: `(responses) -> list[float]`.

`train.reward` names one of these, or any other as `my_package.module:name`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp, isfinite
from pathlib import Path
from statistics import fmean, pstdev

from dto.errors import DtoError
from dto.extension import load
from dto.records import Problem
from dto.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Rewarded:
    """One response of a group, for a reward.

    Responses that failed (an error of the engine or the grader) are left out of the group.
    """

    text: str
    """The whole response, with its thinking."""
    tokens: int
    correct: bool
    """False for wrong and for truncated responses."""
    problem: Problem


Reward = Callable[[Sequence[Rewarded]], list[float]]


def accuracy(responses: Sequence[Rewarded]) -> list[float]:
    """Reward a right response with 1 and a wrong one with 0 (2402.03300)."""
    return [float(response.correct) for response in responses]


def length_penalty(responses: Sequence[Rewarded], penalty: float) -> list[float]:
    """Right: 1 - penalty · sigmoid((length - mean) / deviation), wrong: 0 (2502.04463).

    Lengths are in tokens. Mean and standard deviation are those of the right responses in the
    group. The sigmoid is one half when they are all equally long.
    """
    lengths = [response.tokens for response in responses if response.correct]
    mean, deviation = (fmean(lengths), pstdev(lengths)) if lengths else (0.0, 0.0)

    def reward(length: int) -> float:
        score = (length - mean) / deviation if deviation else 0.0
        return 1 - penalty / (1 + exp(-score))

    return [reward(response.tokens) if response.correct else 0.0 for response in responses]


def shorter_better(responses: Sequence[Rewarded], penalty: float) -> list[float]:
    """2 · right - penalty · |length - optimal length| (2504.21370; 2 is the paper's alpha).

    Lengths are in tokens. The optimal length is that of the shortest right response in the group,
    or the mean length when no response is right.
    """
    lengths = [response.tokens for response in responses]
    right = [response.tokens for response in responses if response.correct]
    optimal = min(right) if right else fmean(lengths) if lengths else 0.0
    return [
        2.0 * response.correct - penalty * abs(response.tokens - optimal) for response in responses
    ]


def reward_of(settings: TrainSettings) -> Reward:
    """The reward that a recipe names."""
    built_in: dict[str, Reward] = {
        "accuracy": accuracy,
        "length_penalty": partial(length_penalty, penalty=settings.penalty),
        "shorter_better": partial(shorter_better, penalty=settings.penalty),
    }
    name = settings.reward
    return built_in.get(name) or _checked(name, load(name, settings.reward_settings))


def _checked(name: str, reward: Reward) -> Reward:
    """The reward of another package, which raises DtoError for anything but finite numbers."""

    def checked(responses: Sequence[Rewarded]) -> list[float]:
        try:
            rewards = [float(value) for value in reward(responses)]
        except Exception as error:  # it can raise anything
            *_, frame = traceback.extract_tb(error.__traceback__)
            place = f"{Path(frame.filename).name}, line {frame.lineno}"
            reason = f"{type(error).__name__}: {error} ({place})"
            raise DtoError(f"train.reward {name!r} failed: {reason}") from error
        if len(rewards) != len(responses) or not all(map(isfinite, rewards)):
            raise DtoError(
                f"train.reward {name!r} returned {rewards} for {len(responses)} responses: it "
                "returns one finite number for each"
            )
        return rewards

    return checked
