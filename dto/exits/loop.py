"""From transitions to an exit: what every policy that makes trials has in common.

Two forms give the same rows. Sequential: the main path stops at each transition and waits for the
trial (2504.15895, section 3). Overlapped: it is one stream that never waits, and trials are forked
on its prefix; this is the paper's branch-parallel decoding on a stock engine. In shadow mode, of
either form, trials are made and kept, and the path is never left.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from dto.context import Context
from dto.exits.monitor import Monitor, Transition
from dto.exits.path import ExitedResponse, Path
from dto.exits.trial import TrialResult
from dto.recipe import ExitSettings
from dto.records import Trial

AT_ONCE = 4
"""Trials of one response under way at a time; further ones wait, the main path does not."""

Probe = Callable[[int], Coroutine[Any, Any, TrialResult]]
"""A trial after so many response tokens. It depends on them alone, never on order or timing."""
Decide = Callable[[Sequence[Trial]], bool]
"""Given all trials so far, in order of position: leave at the last one's?"""


async def leave_at_transition(
    path: Path,
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
    monitor = Monitor(path.tokenizer, settings, ctx.tags)
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


async def _paused(path: Path, monitor: Monitor, search: Search, probe: Probe) -> Transition | None:
    while path.thinking and not search.over:
        step = await path.advance(**monitor.pause())
        ended = path.finish is not None
        for found in monitor.scan(step.token_ids, step.top_logprobs, ended=ended):
            if search.due(found.cut) and search.leaves(await probe(found.cut)):
                return found
    return None


async def _overlapped(
    path: Path, monitor: Monitor, search: Search, probe: Probe
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
