"""Trials at reasoning transitions, and the exit: the loop of all policies that make trials.

Two forms give the same rows. Sequential: the main path stops at each transition and waits for the
trial (2504.15895, section 3). Overlapped: the main path is one stream that never waits, and trials
are forked from its prefix; this is the paper's branch-parallel decoding on a stock engine.

Departures from the published code: a trial answer is greedy instead of an unseeded sample at
temperature 1, and it ends where its braces balance instead of at the first `}`. Inducer and
thinking are joined as :mod:`dto.text` describes, not encoded again as one text.

Confidence (section 3, confidence evaluator): trials are greedy, so each token's probability is that
of the most likely token. The published code takes the mean over tokens 2 … n: it drops the opening
brace and keeps the closing one, which hides the only token of a short answer. Ours (`answer`) uses
the answer's own tokens only.
"""

from __future__ import annotations

import asyncio
import math
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from dto.context import Context
from dto.exits.monitor import ENTROPY_LOGPROBS, Monitor, Transition
from dto.exits.path import ExitedResponse, ResponsePath
from dto.protocols import Engine, Sampling
from dto.records import Problem, Span, Trial
from dto.rollouts import BOX, Answer, complete_answers
from dto.settings import Confidence, Count, ExitPolicy, MonitorSettings, Probability
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
    r"""Compute the confidence of a trial answer, in [0, 1]; 0 if it is empty or never closed.

    `answer` is the joint probability of the tokens that contain a character of the answer: for one
    digit its own probability, for a longer answer that of exactly this text. `mean`, `geometric`
    and `min` are taken over the tokens after the opening brace, including the closing one, as
    published.

    Args:
        kind: the formula.
        text: the text from `\boxed` on, including the part that the inducer brings.
        ends: for each generated token the offset in `text` at which it ends, -1 inside a character.
        logprobs: the logprob of each generated token under the model.
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
    """A trial, and the error of its request; empty if there was none."""

    trial: Trial
    error: str


async def try_answer(
    path: ResponsePath,
    cut: int,
    inducer: str,
    problem: Problem,
    ctx: Context,
    max_tokens: int,
    kind: Confidence,
) -> TrialResult:
    """Ask for the answer after the first `cut` tokens of the response, and grade it.

    The grade decides nothing: it is stored so that confidence can be compared with correctness.
    The confidence is 0 on an engine without logprobs.
    """
    answer, ends = await ask(path.prefix(cut), inducer, max_tokens, problem, ctx)
    sure = 0.0
    if answer.logprobs is not None:
        sure = confidence(kind, answer.text, ends, answer.logprobs)
    return trial_result(cut, sure, answer)


async def ask(
    prefix: Sequence[int],
    inducer: str,
    max_tokens: int,
    problem: Problem,
    ctx: Context,
    stop: tuple[str, ...] = (),
) -> tuple[Answer, list[int]]:
    """Sample one greedy answer; return it and the offsets in `Answer.text` where its tokens end.

    An offset is -1 inside a character. The answer ends at its closing brace, or at `stop` if given.
    """
    has_logprobs = ctx.engine.capabilities.logprobs is not None
    sampling = Sampling(
        max_tokens, temperature=0.0, top_p=1.0, stop=stop, logprobs=0 if has_logprobs else None
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
    ids = answer.token_ids
    trial = Trial(position, sure, answer.answer, answer.grade, len(ids), ids, answer.text)
    return TrialResult(trial, answer.reason if answer.finish_reason == "failed" else "")


AT_ONCE = 4
"""Trials of one response that run at the same time; further ones wait, the main path does not."""

Same = Callable[[str, str], bool]
"""Whether two answers to the problem are equal."""


class TrialPolicy(MonitorSettings, ExitPolicy):
    """A policy that makes trials at the transitions of the thinking, and leaves at one of them.

    Subclasses say what a trial is (`inducers`, `trial`) and which one to leave at (`decide`). There
    is no trial before `min_thinking` tokens, within `cooldown` tokens of the trial before, while
    trials took more than the share `trial_share` of the tokens so far (1: no limit), or after
    `max_trials`. With `overlap` the main path does not wait for trials (`branches`: on an engine
    that decodes both as one sequence). With `shadow` trials are made and stored, but the path is
    never left.
    """

    overlap: Literal[False, True, "branches"] = False
    shadow: bool = False
    min_thinking: Annotated[int, Field(ge=0)] = 0  # tokens before the first trial
    cooldown: Annotated[int, Field(ge=0)] = 0  # tokens between two trials
    max_trials: Count = 50
    trial_share: Probability = 1.0  # most trial tokens by tokens so far

    @abstractmethod
    def inducers(self, ctx: Context) -> list[str]:
        """The texts that a trial puts after the thinking."""

    @abstractmethod
    async def trial(
        self, path: ResponsePath, cut: int, inducers: Sequence[str], problem: Problem, ctx: Context
    ) -> TrialResult:
        """Make the trial after the first `cut` tokens of the response.

        It depends on these tokens alone, not on order or timing.
        """

    @abstractmethod
    def decide(self, trials: Sequence[Trial], same: Same) -> bool:
        """Whether to leave at the last of all trials so far, which are in order of position."""

    def most_thinking(self, max_tokens: int) -> int | None:
        """The tokens of a response at which open thinking is closed; None: it is left open."""
        return None

    def check(self, engine: Engine) -> None:
        """Raise EngineError, before any work, if the engine lacks a needed feature."""
        super().check(engine)
        if self.overlap == "branches":
            engine.branched()
        if self.monitor == "entropy":
            self.require_top_logprobs("monitor entropy", engine)

    def require_top_logprobs(self, part: str, engine: Engine) -> None:
        """Raise EngineError unless the engine gives what an entropy is computed from."""
        need = f"{part} needs the {ENTROPY_LOGPROBS} top logprobs of each token"
        self.require(need, (engine.capabilities.logprobs or 0) >= ENTROPY_LOGPROBS, engine)

    async def leave(self, path: ResponsePath, problem: Problem, ctx: Context) -> ExitedResponse:
        """Leave at the first transition, in order of position, for which `decide` is true.

        A path that is never left runs to the model's own end; a failed trial fails the response.
        At an exit, trial and cue are discarded, the prompt `early_close` closes the thinking, and
        the model writes its conclusion.

        With `overlap` an exit aborts the main path and later trials. Their tokens are wasted and in
        no row, so rows equal those of the sequential form wherever the main path's tokens do not
        depend on pauses (greedy, or a resumable engine).
        """
        engine = ctx.engine
        async with engine.branched() if self.overlap == "branches" else nullcontext(engine) as used:
            path.ctx = ctx = replace(ctx, engine=used)
            inducers = self.inducers(ctx)
            search = Search(self, partial(ctx.grader.same, rule=problem.rule), path.tried)
            monitor = Monitor(path.tokenizer, self, ctx.tags, ctx.recipe.languages)
            run = _overlapped if self.overlap else _paused
            whole = path.sampling.max_tokens
            limit = self.most_thinking(whole)
            path.limited(limit)
            exit_at: Transition | None = None
            if limit != 0:
                exit_at = await run(
                    path, monitor, search, lambda cut: self.trial(path, cut, inducers, problem, ctx)
                )
            if limit and exit_at is None and not search.error:
                await path.think()
            forced = path.limited(whole)
            if search.error:  # how far the path had come depends on the form
                response = ExitedResponse.failed(len(path.prompt_ids), search.error)
            elif exit_at is None and forced:
                response = await path.concluded(path.border(), "budget")
            elif exit_at is None:
                response = await path.finished()
            else:
                path.rewind(exit_at.seen)
                response = await path.concluded(exit_at.cut)
        return replace(
            response,
            trials=tuple(search.trials),
            inducer_tokens=sum(len(ctx.encode(text)) for text in inducers),
            would_leave=search.would_leave,
        )


class Search:
    """Choose the transitions that become trials, and decide on each, in order of position.

    `would_leave` is the index of the trial at which the policy leaves, in shadow mode or not; -1
    for none. `error` is the error of the trial that ended the search.
    """

    def __init__(
        self, policy: TrialPolicy, same: Same, tried: Callable[[Trial], object] = lambda trial: None
    ) -> None:
        self.trials: list[Trial] = []
        self.would_leave = -1
        self.error = ""
        self.capped = policy.trial_share < 1
        self._policy = policy
        self._same, self._tried = same, tried
        self._begun = 0
        self._last = 0

    @property
    def over(self) -> bool:
        """Whether the search has ended: after an error, or after `max_trials` trials."""
        return bool(self.error) or self._begun >= self._policy.max_trials

    def due(self, cut: int) -> bool:
        """Whether a trial is made after `cut` tokens; if so, it counts as begun."""
        policy = self._policy
        if self.over or cut < policy.min_thinking:
            return False
        if self._begun and cut - self._last < policy.cooldown:
            return False
        spent = sum(trial.tokens for trial in self.trials)
        if self.capped and spent > policy.trial_share * cut:
            return False
        self._begun += 1
        self._last = cut
        return True

    def leaves(self, result: TrialResult) -> bool:
        """Add a trial; return whether the path is left there."""
        self.trials.append(result.trial)
        self._tried(result.trial)
        if result.error:
            self.error = f"trial answer: {result.error}"
        elif self.would_leave < 0 and self._policy.decide(self.trials, self._same):
            self.would_leave = len(self.trials) - 1
            return not self._policy.shadow
        return False


Probe = Callable[[int], Coroutine[Any, Any, TrialResult]]
"""Makes the trial after so many response tokens."""


async def _paused(
    path: ResponsePath, monitor: Monitor, search: Search, probe: Probe
) -> Transition | None:
    while path.thinking and not search.over:
        step = await path.advance(**monitor.pause())
        ended = path.finish is not None
        for transition in monitor.scan(step.token_ids, step.top_logprobs, ended=ended):
            if search.due(transition.cut) and search.leaves(await probe(transition.cut)):
                return transition
    return None


async def _overlapped(
    path: ResponsePath, monitor: Monitor, search: Search, probe: Probe
) -> Transition | None:
    news = asyncio.Event()
    seen: deque[Transition] = deque()
    trials: deque[tuple[Transition, asyncio.Task[TrialResult]]] = deque()
    # The share of trial tokens is known only once a trial has ended.
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
                transition = seen.popleft()
                if search.due(transition.cut):
                    trial = tasks.create_task(probe(transition.cut))
                    trial.add_done_callback(lambda _: news.set())
                    trials.append((transition, trial))
            if trials and trials[0][1].done():
                transition, trial = trials.popleft()
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
        return None if search.error else transition

    if not path.thinking:
        return None
    try:
        async with asyncio.TaskGroup() as tasks:
            return await race(tasks)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
