"""A trial answer on a prefix of the main path (2504.15895, section 3: trial answer inducer).

Departs from the published code: greedy instead of a sample at temperature 1 without a seed, and the
answer ends where its braces balance instead of at the first `}`. Inducer and thinking are joined as
:mod:`dto.text` says, not encoded anew as one text.

Its confidence (section 3, confidence evaluator): trials are greedy, so each token's probability is
that of the most likely one. The published code takes the mean over tokens 2 … n: it drops the
opening brace and keeps the closing one, which hides the one token that carries a short answer. Ours
(`answer`) takes the answer's own tokens alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from dto.context import Context
from dto.protocols import Sampling
from dto.recipe import ExitSettings
from dto.records import Problem, Span, Trial
from dto.rollouts import BOX, Answer, complete_answers
from dto.text import INSIDE_CHARACTER, char_ends, closing_brace

Confidence = Literal["answer", "mean", "geometric", "min"]


def answer_span(text: str) -> Span | None:
    r"""The characters between the braces of a trial's text, which begins at `\boxed`.

    None where no brace follows the box, or where it never closes.
    """
    brace = len(text) - len(text.removeprefix(BOX).lstrip())
    if text[brace : brace + 1] != "{":
        return None
    end = closing_brace(text, brace)
    return None if end is None else Span(brace + 1, end)


def confidence(
    kind: Confidence, text: str, ends: Sequence[int], logprobs: Sequence[float]
) -> float:
    r"""A number in [0, 1]; 0 for an empty answer and for one whose brace never closes.

    `answer`: the joint probability of the tokens that hold a character of the answer: of a digit
    its own probability, of a longer answer that of saying exactly this. `mean`, `geometric` and
    `min`: over the tokens after the opening brace, the closing one included, as published.

    Args:
        kind: which one.
        text: from `\boxed` on, the part of it that the inducer brings included.
        ends: for each generated token the offset in `text` at which it ends, -1 inside a character.
        logprobs: theirs, under the model.
    """
    answer = answer_span(text)
    if answer is None or not text[answer.start : answer.end].strip():
        return 0.0
    own: list[float] = []
    inside: list[float] = []
    character: list[float] = []  # tokens whose last one completes a character
    start = 0
    for end, logprob in zip(ends, logprobs, strict=True):
        character.append(logprob)
        if end < 0:
            continue
        if text[max(start, answer.start) : min(end, answer.end)].strip():
            own += character
        if start <= answer.end and end > answer.start:
            inside += character
        start, character = end, []
    if kind == "answer":
        return math.exp(sum(own))
    if kind == "mean":
        return sum(map(math.exp, inside)) / len(inside)
    if kind == "geometric":
        return math.exp(sum(inside) / len(inside))
    return math.exp(min(inside))


class TrialResult(NamedTuple):
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
) -> TrialResult:
    """Ask for the answer after `kept` tokens of the response, and grade what came.

    The answer has at most `settings.trial_tokens` tokens. Its grade decides nothing: it is kept so
    that confidence can be set against correctness. Confidence is 0 on an engine without logprobs.
    """
    answer, ends = await ask((*prompt_ids, *kept), inducer, settings.trial_tokens, problem, ctx)
    sure = 0.0
    if answer.logprobs is not None:
        sure = confidence(settings.confidence, answer.text, ends, answer.logprobs)
    return trial_result(len(kept), sure, answer)


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


def trial_result(position: int, sure: float, answer: Answer) -> TrialResult:
    """The record of a trial after `position` response tokens."""
    trial = Trial(position, sure, answer.answer, answer.grade, len(answer.token_ids))
    return TrialResult(trial, answer.reason if answer.finish_reason == "failed" else "")
