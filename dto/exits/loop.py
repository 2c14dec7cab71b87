"""From transitions to an exit: what every policy that makes trials has in common.

Two forms give the same rows. Sequential: the main path stops at each transition and waits for the
trial (2504.15895, section 3). Overlapped: it is one stream that never waits, and trials are forked
on its prefix; this is the paper's branch-parallel decoding on a stock engine. In shadow mode, of
either form, trials are made and kept, and the path is never left.

A trial answer departs from the published code: greedy instead of a sample at temperature 1 without
a seed, and it ends where its braces balance instead of at the first `}`. Inducer and thinking are
joined as :mod:`dto.text` says, not encoded anew as one text.

Its confidence (section 3, confidence evaluator): trials are greedy, so each token's probability is
that of the most likely one. The published code takes the mean over tokens 2 … n: it drops the
opening brace and keeps the closing one, which hides the one token that carries a short answer. Ours
(`answer`) takes the answer's own tokens alone.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NamedTuple

from dto.context import Context
from dto.exits.monitor import Monitor, Transition
from dto.exits.path import ExitedResponse, ResponsePath
from dto.protocols import Sampling
from dto.recipe import Confidence, ExitSettings
from dto.records import Problem, Span, Trial
from dto.rollouts import BOX, Answer, complete_answers
from dto.text import INSIDE_CHARACTER, char_ends, closing_brace


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


AT_ONCE = 4
"""Trials of one response under way at a time; further ones wait, the main path does not."""

Probe = Callable[[int], Coroutine[Any, Any, TrialResult]]
"""A trial after so many response tokens. It depends on them alone, never on order or timing."""
Decide = Callable[[Sequence[Trial]], bool]
"""Given all trials so far, in order of position: leave at the last one's?"""


async def leave_at_transition(
    path: ResponsePath,
    settings: ExitSettings,
    ctx: Context,
    probe: Probe,
    decide: Decide,
    inducer_tokens: int = 0,
) -> ExitedResponse:
    """Leave at the first transition, in order of position, for which `decide` is true.

    A path that is never left runs to the model's own end; a trial that goes wrong fails the
    response. After an exit trial and cue are thrown away, and the model writes its conclusion
    behind the prompt `early_close`. Trials are made where `settings` allow it: not before
    `min_thinking` tokens, nor within `cooldown` tokens of the trial before, nor while trials took
    more than `trial_share` of the tokens so far (1: whatever they took), and at most `max_trials`.

    With `settings.overlap` an exit aborts the main path and later trials: their tokens are wasted
    and in no row, so that rows are those of the sequential form wherever the main path's tokens do
    not depend on pauses (greedy, or a resumable engine).
    """
    search = Search(settings, decide)
    monitor = Monitor(path.tokenizer, settings, ctx.tags, ctx.recipe.languages)
    run = _overlapped if settings.overlap else _paused
    exit_at = await run(path, monitor, search, probe)
    if search.error:  # how far the path had come depends on the form
        response = ExitedResponse.failed(len(path.prompt_ids), search.error)
    elif exit_at is None:
        response = await path.finished()
    else:
        path.rewind(exit_at.seen)
        response = await path.concluded(exit_at.cut, ctx.text("early_close"), "policy")
    return replace(
        response,
        trials=tuple(search.trials),
        inducer_tokens=inducer_tokens,
        would_leave=search.would_leave,
    )


class Search:
    """Which transitions become trials, and what they decide; asked in order of position.

    `would_leave` is the index of the trial at which the policy leaves, shadow mode or not, -1 for
    none. `error` says what was wrong with the trial that ended the search.
    """

    def __init__(self, settings: ExitSettings, decide: Decide) -> None:
        self.trials: list[Trial] = []
        self.would_leave = -1
        self.error = ""
        self.capped = settings.trial_share < 1
        self._settings = settings
        self._decide = decide
        self._begun = 0
        self._last = 0

    @property
    def over(self) -> bool:
        """Whether no further trial is made."""
        return bool(self.error) or self._begun >= self._settings.max_trials

    def due(self, cut: int) -> bool:
        """Whether a trial is made there; if so it counts as begun."""
        settings = self._settings
        if self.over or cut < settings.min_thinking:
            return False
        if self._begun and cut - self._last < settings.cooldown:
            return False
        spent = sum(trial.tokens for trial in self.trials)
        if self.capped and spent > settings.trial_share * cut:
            return False
        self._begun += 1
        self._last = cut
        return True

    def leaves(self, tried: TrialResult) -> bool:
        """Take in a trial: whether the path is left there."""
        self.trials.append(tried.trial)
        if tried.error:
            self.error = f"trial answer: {tried.error}"
        elif self.would_leave < 0 and self._decide(self.trials):
            self.would_leave = len(self.trials) - 1
            return not self._settings.shadow
        return False


async def _paused(
    path: ResponsePath, monitor: Monitor, search: Search, probe: Probe
) -> Transition | None:
    while path.thinking and not search.over:
        step = await path.advance(**monitor.pause())
        ended = path.finish is not None
        for found in monitor.scan(step.token_ids, step.top_logprobs, ended=ended):
            if search.due(found.cut) and search.leaves(await probe(found.cut)):
                return found
    return None


async def _overlapped(
    path: ResponsePath, monitor: Monitor, search: Search, probe: Probe
) -> Transition | None:
    news = asyncio.Event()
    seen: deque[Transition] = deque()
    trials: deque[tuple[Transition, asyncio.Task[TrialResult]]] = deque()
    # What share trials took is known only when they are done.
    at_once = 1 if search.capped else AT_ONCE

    async def read() -> None:
        async with aclosing(path.stream(monitor.logprobs)) as chunks:
            async for chunk in chunks:
                if search.over:
                    continue
                ended = path.finish is not None
                seen.extend(monitor.scan(chunk.token_ids, chunk.top_logprobs, ended=ended))
                if seen:
                    news.set()

    async def race(tasks: asyncio.TaskGroup) -> Transition | None:
        main = tasks.create_task(read())
        main.add_done_callback(lambda _: news.set())
        while not search.error:
            while seen and len(trials) < at_once:
                found = seen.popleft()
                if search.due(found.cut):
                    trial = tasks.create_task(probe(found.cut))
                    trial.add_done_callback(lambda _: news.set())
                    trials.append((found, trial))
            if trials and trials[0][1].done():
                found, trial = trials.popleft()
                if search.leaves(trial.result()):
                    break
            elif main.done() and not seen and not trials:
                return None
            else:
                await news.wait()
                news.clear()
        main.cancel()
        for _, trial in trials:
            trial.cancel()
        return None if search.error else found

    if not path.thinking:
        return None
    try:
        async with asyncio.TaskGroup() as tasks:
            return await race(tasks)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
