"""A trial answer on a prefix of the main path (2504.15895, section 3: trial answer inducer).

Departs from the published code: greedy instead of a sample at temperature 1 without a seed, and the
answer ends where its braces balance instead of at the first `}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dto.answers import BOX, complete_answers
from dto.context import Context
from dto.engines.base import Sampling
from dto.exits.confidence import confidence
from dto.recipe import ExitSettings
from dto.records import Problem, Trial
from dto.text import INSIDE_CHARACTER, char_ends


class Tried(NamedTuple):
    """A trial, and what went wrong with its request, if anything."""

    trial: Trial
    error: str


async def try_answer(
    prompt_ids: Sequence[int],
    kept: Sequence[int],
    inducer: str,
    settings: ExitSettings,
    problem: Problem,
    ctx: Context,
) -> Tried:
    """Ask for the answer after `kept` tokens of thinking, and grade what came.

    The answer has at most `settings.trial_tokens` tokens. Its grade decides nothing: it is kept so
    that confidence can be set against correctness.
    """
    [answer] = await complete_answers(
        (*prompt_ids, *kept),
        inducer,
        problem,
        ctx,
        Sampling(max_tokens=settings.trial_tokens, temperature=0.0, top_p=1.0, logprobs=0),
    )
    head = len(inducer) - inducer.rindex(BOX)
    ends = [
        end if end == INSIDE_CHARACTER else head + end
        for end in char_ends(ctx.tokenizer, answer.token_ids)
    ]
    trial = Trial(
        position=len(kept),
        confidence=confidence(settings.confidence, answer.text, ends, answer.logprobs or ()),
        answer=answer.answer,
        grade=answer.grade,
        tokens=len(answer.token_ids),
    )
    return Tried(trial, answer.reason if answer.finish_reason == "failed" else "")
