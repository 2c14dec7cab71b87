"""Dynamic early exit (2504.15895, section 3).

At each transition the model gives a trial answer; either the thinking is closed and the model
concludes, or the trial is thrown away and the path goes on (`dto.exits.loop`). Modes differ in what
a trial asks and how its confidence is computed; `compat` is `dto.policies.compat`.

Departs from the paper: on an engine whose noise depends on seed and position the path goes on with
exactly the tokens that it would have had without the pause, so that rows with and without the
policy are paired until the exit; tokens of trials and withdrawn cues are counted; no answer is
forced near the limit (`budget` does that).
"""

from __future__ import annotations

from collections.abc import Sequence

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.exits.loop import (
    Decide,
    TrialResult,
    ask,
    confidence,
    leave_at_transition,
    trial_result,
    try_answer,
)
from dto.exits.path import ExitedResponse, ResponsePath
from dto.recipe import ExitSettings
from dto.records import Problem, Trial
from dto.rollouts import answer_inducer
from dto.text import decode_response

PRO_INDUCERS = tuple(f"trial_pro_{number}" for number in (1, 2, 3, 4))


async def deer(
    path: ResponsePath, settings: ExitSettings, problem: Problem, ctx: Context
) -> ExitedResponse:
    """Leave at the first transition whose trial answer has a confidence above the threshold.

    Modes: `fixed` tries `settings.inducer` with `settings.confidence`; `qwen3` and `pro` are
    described at `_qwen3` and `combine`, and bring their own confidence; `compat` is a policy of its
    own (`dto.policies.compat`).
    """
    names = PRO_INDUCERS if settings.mode == "pro" else (f"trial_{settings.inducer}",)
    inducers = [answer_inducer(name, ctx) for name in names]

    async def probe(cut: int) -> TrialResult:
        kept = path.ids[:cut]
        if settings.mode == "qwen3":
            return await _qwen3(path.prompt_ids, kept, inducers[0], settings, problem, ctx)
        answers = await gather_bounded(
            try_answer(path.prompt_ids, kept, inducer, settings, problem, ctx)
            for inducer in inducers
        )
        return combine(answers)

    read = sum(len(ctx.encode(text)) for text in inducers)
    return await leave_at_transition(path, settings, ctx, probe, decide(settings), read)


def decide(settings: ExitSettings) -> Decide:
    """Leave where the last trial's confidence is above the threshold."""
    return lambda trials: trials[-1].confidence > settings.threshold


def combine(answers: Sequence[TrialResult]) -> TrialResult:
    """One trial of several inducers (DEER-PRo): mean confidence less its mean absolute deviation.

    Answer and grade are those of the most confident inducer, of the first among equals; tokens are
    those of all. Of one answer the confidence is its own.
    """
    sure = [each.trial.confidence for each in answers]
    mean = sum(sure) / len(sure)
    deviation = sum(abs(each - mean) for each in sure) / len(sure)
    best = max((each.trial for each in answers), key=lambda trial: trial.confidence)
    trial = Trial(
        position=best.position,
        confidence=max(0.0, mean - deviation),
        answer=best.answer,
        grade=best.grade,
        tokens=sum(each.trial.tokens for each in answers),
    )
    return TrialResult(trial, next((each.error for each in answers if each.error), ""))


async def _qwen3(
    prompt_ids: Sequence[int],
    kept: Sequence[int],
    inducer: str,
    settings: ExitSettings,
    problem: Problem,
    ctx: Context,
) -> TrialResult:
    """The trial of the published Qwen3 script: it ends at `</think>`.

    Confidence is the geometric mean (`dto.exits.loop`), and 0 unless `</think>` follows
    within `settings.trial_tokens` tokens (published: 20).
    """
    answer, ends = await ask(
        (*prompt_ids, *kept), inducer, settings.trial_tokens, problem, ctx, stop=(ctx.tags.close,)
    )
    sure = 0.0
    if ctx.tags.close in decode_response(ctx.tokenizer, answer.token_ids, ctx.tags):
        sure = confidence("geometric", answer.text, ends, answer.logprobs or ())
    return trial_result(len(kept), sure, answer)
