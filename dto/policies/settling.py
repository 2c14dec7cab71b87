"""Leave when trials settle: their answers (consistency), or the entropy of the next one (entropy).

Both read, beside the keys that they name, those of `dto.exits.loop` and `dto.exits.monitor`, which
say where trials are made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial

from dto.context import Context
from dto.exits.loop import TrialResult, leave_at_transition, try_answer
from dto.exits.monitor import ENTROPY_LOGPROBS
from dto.exits.monitor import entropy as entropy_of
from dto.exits.path import ExitedResponse, ResponsePath
from dto.protocols import Sampling
from dto.recipe import ExitSettings
from dto.records import Problem, Trial
from dto.rollouts import answer_inducer

DOUBT = re.compile(r"\b(?:wait|hold|but|okay|hmm+)\b", re.IGNORECASE)


async def consistency(
    path: ResponsePath, settings: ExitSettings, problem: Problem, ctx: Context
) -> ExitedResponse:
    r"""Leave at the first transition at which the last `settings.agree` trial answers are equal.

    Dynasor's certaindex for chains (2412.20993, section 3), which probes every so many tokens: that
    is `monitor: tokens` with `every`. Reads `agree`, `inducer`, `confidence` and `trial_tokens`.

    Departs from the published code: trials are greedy and end at their brace; answers are compared
    as the grader's fast path does, not as strings; doubt is a word of its own (the published search
    for `no` and `but` in any place refuses `\notin` and `attribute`) and `no` is not one of them,
    since it is an answer. Confidence is stored, and decides nothing.
    """
    inducer = answer_inducer(f"trial_{settings.inducer}", ctx)

    async def probe(cut: int) -> TrialResult:
        return await try_answer(path.prompt_ids, path.ids[:cut], inducer, settings, problem, ctx)

    decide = partial(agreed, settings, rule=problem.rule, same=ctx.grader.same)
    return await leave_at_transition(path, settings, ctx, probe, decide, len(ctx.encode(inducer)))


def agreed(
    settings: ExitSettings,
    trials: Sequence[Trial],
    same: Callable[[str, str, str], bool],
    rule: str = "math",
) -> bool:
    """Whether the last `settings.agree` trials give one answer, none of them empty or in doubt.

    `same` is the grader's: answers whose equality would take algebra to decide are not equal.
    """
    answers = [trial.answer for trial in trials[-settings.agree :]]
    return (
        len(answers) == settings.agree
        and all(answer and not DOUBT.search(answer) for answer in answers)
        and all(same(answers[-1], answer, rule) for answer in answers)
    )


READ = Sampling(max_tokens=1, temperature=0.0, top_p=1.0, logprobs=ENTROPY_LOGPROBS)


async def entropy(
    path: ResponsePath, settings: ExitSettings, problem: Problem, ctx: Context
) -> ExitedResponse:
    """Leave when the entropy after `</think>` has settled (EAT, 2509.26522, section 3).

    At each transition the prompt `entropy_probe` closes the thinking, and the entropy of the token
    that would follow is read. Its moving variance falls when further thinking no longer changes the
    answer; below `settings.variance` the thinking is left. Reads `smoothing` and `variance` (the
    monitor's `entropy` is another quantity: that of a step's first token). A trial is one token and
    no answer: its confidence is exp(-entropy), its answer is empty, and its grade `failed`, so that
    it is in no denominator.

    Departs from the published code: entropy is a lower bound from the 20 most likely tokens; the
    moving variance starts without a value instead of at 0, and counts from 1 / `smoothing`
    differences on instead of after 25 lines, so that short chains can be left too.
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
