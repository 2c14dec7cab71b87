"""A trial answer on a prefix of the main path (2504.15895, section 3: trial answer inducer).

Departs from the published code: greedy instead of a sample at temperature 1 without a seed, and the
answer ends where its braces balance instead of at the first `}`. Inducer and thinking are joined as
:mod:`dto.joins` says, not encoded anew as one text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dto.answers import BOX, Answer, complete_answers
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
    """Ask for the answer after `kept` tokens of the response, and grade what came.

    The answer has at most `settings.trial_tokens` tokens. Its grade decides nothing: it is kept so
    that confidence can be set against correctness. Confidence is 0 on an engine without logprobs.
    """
    answer, ends = await ask((*prompt_ids, *kept), inducer, settings.trial_tokens, problem, ctx)
    sure = 0.0
    if answer.logprobs is not None:
        sure = confidence(settings.confidence, answer.text, ends, answer.logprobs)
    return tried(len(kept), sure, answer)


async def ask(
    prefix: Sequence[int],
    inducer: str,
    max_tokens: int,
    problem: Problem,
    ctx: Context,
    stop: tuple[str, ...] = (),
) -> tuple[Answer, list[int]]:
    """One greedy answer, and where its tokens end in `Answer.text` (-1 inside a character).

    `stop` ends it instead of its closing brace.
    """
    known = ctx.engine.capabilities.logprobs is not None
    sampling = Sampling(
        max_tokens, temperature=0.0, top_p=1.0, stop=stop, logprobs=0 if known else None
    )
    [answer] = await complete_answers(prefix, inducer, problem, ctx, sampling)
    head = len(inducer) - inducer.rindex(BOX)
    ends = [
        end if end == INSIDE_CHARACTER else head + end
        for end in char_ends(ctx.tokenizer, answer.token_ids)
    ]
    return answer, ends


def tried(position: int, sure: float, answer: Answer) -> Tried:
    """The record of a trial after `position` response tokens."""
    trial = Trial(position, sure, answer.answer, answer.grade, len(answer.token_ids))
    return Tried(trial, answer.reason if answer.finish_reason == "failed" else "")
