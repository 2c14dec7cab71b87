"""Leave when the entropy after `</think>` has settled (EAT, 2509.26522, section 3).

Reads `smoothing`, `variance` and, for where it looks, the keys of `dto.exits.loop` and
`dto.exits.monitor` (of which `entropy` is another quantity: that of a step's first token).

At each transition the prompt `entropy_probe` closes the thinking, and the entropy of the token that
would follow is read; its moving variance falls when further thinking no longer changes the answer.

Departs from the published code: entropy is a lower bound from the 20 most likely tokens; the moving
variance starts without a value instead of at 0, and counts from 1 / `smoothing` differences on
instead of after 25 lines, so that short chains can be left too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from dto.context import Context
from dto.exits.loop import TrialResult, leave_at_transition
from dto.exits.monitor import ENTROPY_LOGPROBS
from dto.exits.monitor import entropy as entropy_of
from dto.exits.path import ExitedResponse, Path
from dto.protocols import Sampling
from dto.recipe import ExitSettings
from dto.records import Problem, Trial

READ = Sampling(max_tokens=1, temperature=0.0, top_p=1.0, logprobs=ENTROPY_LOGPROBS)


async def entropy(
    path: Path, settings: ExitSettings, problem: Problem, ctx: Context
) -> ExitedResponse:
    """Leave at the first transition at which the moving variance is below `settings.variance`.

    A trial is one token and no answer: its confidence is exp(-entropy), its answer is empty, and
    its grade `failed`, so that it is in no denominator.
    """
    close = ctx.text("entropy_probe")

    async def probe(cut: int) -> TrialResult:
        prefix = ctx.put_after((*path.prompt_ids, *path.ids[:cut]), close)
        if len(prefix) >= ctx.engine.context:
            return TrialResult(Trial(cut, 0.0, "", "failed", 0), "")
        [read] = await ctx.engine.complete(prefix, READ)
        if read.finish_reason == "failed" or not read.top_logprobs:
            error = read.error or f"engine for {ctx.engine.model!r} gave no logprobs"
            return TrialResult(Trial(cut, 0.0, "", "failed", len(read.token_ids)), error)
        confidence = math.exp(-entropy_of(read.top_logprobs[0]))
        return TrialResult(Trial(cut, confidence, "", "failed", len(read.token_ids)), "")

    return await leave_at_transition(
        path, settings, ctx, probe, partial(settled, settings), len(ctx.encode(close))
    )


def settled(settings: ExitSettings, trials: Sequence[Trial]) -> bool:
    """Whether the moving variance of the entropy, in nats squared, is below the limit."""
    values = [-math.log(trial.confidence) for trial in trials if trial.confidence]
    return moving_variance(values, settings.smoothing) < settings.variance


def moving_variance(values: Sequence[float], smoothing: float) -> float:
    """Exponentially weighted mean of squared deviations from the moving mean.

    Deviations count from the second value on, the newest with weight `smoothing`; the weights are
    scaled to a sum of 1. Infinite while there are fewer than 1 / `smoothing` of them.
    """
    if smoothing <= 0 or len(values) - 1 < 1 / smoothing:
        return math.inf
    mean, variance, weight = values[0], 0.0, 0.0
    for value in values[1:]:
        mean += smoothing * (value - mean)
        variance += smoothing * ((value - mean) ** 2 - variance)
        weight += smoothing * (1 - weight)
    return variance / weight
