"""One response under way: the policy of `evaluate` on a path that shows itself as it grows.

Nothing is decided here. :class:`Live` runs the same `policy.leave` as the stage `evaluate`, on a
path that streams each request, so a served response has the tokens of an evaluated one wherever the
engine samples them alike.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from dto.context import Context
from dto.engines.shared import completion_of
from dto.exits import answer_on
from dto.exits.path import ExitedResponse, ResponsePath
from dto.grading.extract import final_answer, trial_answer
from dto.grading.grader import Grader
from dto.policies.without_trials import boxed_answer
from dto.protocols import Chunk, Completion, Graded, Sampling
from dto.records import Problem, Trial
from dto.rollouts import answer_inducer
from dto.serving.records import Answering, Event, Left, Reply, Thinking, Tokens, Tried
from dto.settings import ExitPolicy
from dto.text import decode_response, first_stop
from dto.usage import metered

BOXED_TOKENS = 32
"""The most tokens of a bare boxed answer, where an answer was asked for and none came."""
NO_GOLD = "no_gold_answer"
V = TypeVar("V")


class Ungraded(Grader):
    """The grader of questions without a gold answer: it reads answers, and grades none."""

    async def grade_conclusion(
        self, conclusion: str, gold: str, rule: str, question: str = ""
    ) -> Graded:
        """The answer that a conclusion states."""
        return Graded("failed", final_answer(conclusion, rule) or "", NO_GOLD)

    async def grade_trial(self, text: str, gold: str, rule: str, question: str = "") -> Graded:
        """The answer in the braces of a trial."""
        return Graded("failed", trial_answer(text) or "", NO_GOLD)

    async def grade_answer(self, answer: str, gold: str, rule: str, question: str = "") -> Graded:
        """The answer itself."""
        return Graded("failed", answer, NO_GOLD)


class _ShownPath(ResponsePath):
    """A path that tells `show` what is generated, as it is."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        ctx: Context,
        sampling: Sampling,
        show: Callable[[Event], None],
    ) -> None:
        super().__init__(prompt_ids, ctx, sampling)
        self._show, self._stops = show, sampling.stop
        self.stopped = False  # at a stop text in the answer
        self._held = ""  # text that may be the beginning of a tag
        self.over = self.closed  # whether `Left` was shown
        self.confidence: float | None = None  # of the last trial
        self.thought = self.answered = ""  # the text shown so far

    async def advance(
        self, stop: tuple[str, ...] = (), limit: int | None = None, logprobs: int | None = None
    ) -> Completion:
        """Continue as the base class does, by a stream."""
        return await self._streamed(*self._request(stop, limit, logprobs), self._take)

    async def conclude(self, prefix: tuple[int, ...], sampling: Sampling) -> Completion:
        """Sample the conclusion, by a stream."""
        return await self._streamed(prefix, sampling, lambda chunk: self.show_answer(chunk.text))

    async def concluded(
        self, cut: int, reason: str = "policy", close: str | None = None
    ) -> ExitedResponse:
        """Conclude as the base class does; the thinking is over."""
        self.show_left(reason, cut, self.ctx.text("early_close") if close is None else close)
        return await super().concluded(cut, reason, close)

    def tried(self, trial: Trial) -> None:
        """Show a trial."""
        self.confidence = trial.confidence
        self._show(Tried(trial))

    async def _streamed(
        self, prompt: tuple[int, ...], sampling: Sampling, take: Callable[[Chunk], None]
    ) -> Completion:
        chunks = []
        async with aclosing(self.ctx.engine.stream(prompt, sampling)) as stream:
            async for chunk in stream:
                take(chunk)
                chunks.append(chunk)
                if self.stopped:
                    break
        last = replace(chunks[-1], finish_reason="stop") if self.stopped else chunks[-1]
        return completion_of(joined([*chunks[:-1], last]))

    def _take(self, step: Chunk) -> None:
        super()._take(step)
        if self.over:
            self.show_answer(step.text)
            return
        text, tags = self._held + step.text, self.tags
        self._held = ""
        if not self.thought:  # some models write the opening tag themselves
            text = text.lstrip().removeprefix(tags.open).lstrip()
        if self.closed:
            text, _, answer = text.rpartition(tags.close)
            self._show_thinking(text)
            self.show_left("closed", len(self.ids), tags.close)
            self.show_answer(answer)
            return
        if self.finish is None:
            possible = (tags.close,) if self.thought else (tags.open, tags.close)
            self._held = _beginning(text, possible)
        self._show_thinking(text.removesuffix(self._held))

    def _show_thinking(self, text: str) -> None:
        if text:
            self.thought += text
            self._show(Thinking(text))

    def show_left(self, reason: str, position: int, closing: str = "") -> None:
        """Show that the thinking is over, once."""
        if not self.over:
            self.over = True
            sure = self.confidence if reason == "policy" else None
            self._show(Left(reason, position, sure, closing))

    def show_answer(self, text: str, anew: bool = False) -> None:
        """Show text of the answer, up to the first stop text."""
        if self.stopped:
            return
        text, self._held = self._held + text, ""
        if self._stops and not anew:
            before = max(0, len(self.answered) - max(map(len, self._stops)))
            stop = first_stop(self.answered + text, self._stops, before)
            if stop is not None:
                text, self.stopped, self.finish = text[: stop[0] - len(self.answered)], True, "stop"
            else:
                self._held = _beginning(text, self._stops)
                text = text.removesuffix(self._held)
        if text:
            self.answered = text if anew else self.answered + text
            self._show(Answering(text, anew))


def _beginning(text: str, tags: Sequence[str]) -> str:
    """The end of a text that may be the beginning of one of the tags; empty if it cannot be."""
    longest = max(map(len, tags)) - 1
    ends = (text[-size:] for size in range(min(longest, len(text)), 0, -1))
    return next((end for end in ends if any(tag.startswith(end) for tag in tags)), "")


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """The chunks of a whole stream as one."""
    last = chunks[-1]
    return replace(
        last,
        token_ids=tuple(chain.from_iterable(chunk.token_ids for chunk in chunks)),
        text="".join(chunk.text for chunk in chunks),
        logprobs=_all(chunk.logprobs for chunk in chunks),
        top_logprobs=_all(chunk.top_logprobs for chunk in chunks),
    )


def _all(parts: Iterable[tuple[V, ...] | None]) -> tuple[V, ...] | None:
    """All values; None if a part has none."""
    known = list(parts)
    return None if None in known else tuple(chain.from_iterable(part or () for part in known))


class Live:
    """A response under way. Read `events` once; `answer_now` may come from anywhere on its loop.

    `sampling.stop` ends the answer, never the thinking; the stop text is left out.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        policy: ExitPolicy,
        ctx: Context,
        sampling: Sampling,
        problem: Problem,
    ) -> None:
        self._policy, self._problem = policy, problem
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._asked = asyncio.Event()
        self._path = _ShownPath(prompt_ids, ctx, sampling, self._put)
        self.seed = sampling.seed
        self._started = time.perf_counter()
        self._first_answer: float | None = None

    def answer_now(self) -> bool:
        """End the thinking: the model answers with what it has. False if it is over already."""
        if self._path.over or self._path.finish is not None:
            return False
        self._asked.set()
        return True

    async def events(self) -> AsyncGenerator[Event]:
        """The events as they come, a :class:`Reply` last. Closing it cancels all requests.

        Raises EngineError as the engine does for requests that it does not support.
        """
        work = asyncio.create_task(self._respond())
        work.add_done_callback(lambda _: self._events.put_nowait(None))
        try:
            while (event := await self._events.get()) is not None:
                yield event
            yield work.result()
        finally:
            work.cancel()
            with suppress(asyncio.CancelledError, Exception):  # it was raised above
                await work

    def _put(self, event: Event) -> None:
        if isinstance(event, Answering) and self._first_answer is None:
            self._first_answer = time.perf_counter() - self._started
        self._events.put_nowait(event)

    async def _respond(self) -> Reply:
        path = self._path
        with metered() as usage:
            leaving = asyncio.create_task(answer_on(path, self._problem, self._policy, path.ctx))
            asked = asyncio.create_task(self._asked.wait())
            try:
                await asyncio.wait({leaving, asked}, return_when=asyncio.FIRST_COMPLETED)
                if asked.done() and not leaving.done() and not path.over and path.finish is None:
                    leaving.cancel()
                    await asyncio.wait({leaving})
                    response = await _answered_now(path, self._problem)
                else:
                    response = await leaving
            finally:
                for task in (leaving, asked):
                    task.cancel()
        self._show_rest(response)
        return self._reply(response, max(0, usage.generated - _generated(response)))

    def _show_rest(self, response: ExitedResponse) -> None:
        """Show what no stream has shown: the answer of a policy with requests of its own."""
        path = self._path
        path.show_left(response.exit_reason, len(response.leading_ids + response.thinking_ids))
        if not path.stopped and response.conclusion != path.answered:
            begun = response.conclusion.startswith(path.answered)
            rest = response.conclusion[len(path.answered) :] if begun else response.conclusion
            path.show_answer(rest, anew=not begun)

    def _reply(self, response: ExitedResponse, wasted: int) -> Reply:
        path = self._path
        thinking = decode_response(path.tokenizer, response.thinking_ids, path.tags)
        exit_trial = response.trials[response.would_leave] if response.would_leave >= 0 else None
        return Reply(
            thinking=thinking,
            answer=(answer := path.answered if path.stopped else response.conclusion),
            boxed=final_answer(answer, self._problem.rule),
            exit_reason=response.exit_reason,
            finish_reason=response.finish_reason,
            confidence=None if exit_trial is None else exit_trial.confidence,
            trials=response.trials,
            tokens=Tokens(
                prompt=response.prompt_tokens,
                thinking=len(response.thinking_ids),
                trial=sum(trial.tokens for trial in response.trials),
                answer=response.answer_tokens,
                inserted=len(response.inserted_ids),
                withdrawn=response.withdrawn,
                wasted=wasted,
            ),
            seconds=time.perf_counter() - self._started,
            seconds_to_answer=self._first_answer,
            response=response,
            error=response.error,
        )


def _generated(response: ExitedResponse) -> int:
    return len(response.thinking_ids) + response.answer_tokens + response.trial_tokens


async def _answered_now(path: _ShownPath, problem: Problem) -> ExitedResponse:
    """Leave the thinking where it is, conclude, and box an answer if none comes.

    The boxed answer may exceed the limit of the response, by `BOXED_TOKENS`.
    """
    cut = path.whole(path.border())
    response = await path.concluded(cut, "asked")
    if response.exit_reason == "failed" or (response.complete and response.conclusion.strip()):
        return response
    ctx = path.ctx
    inducer = answer_inducer("trial_closed", ctx)
    boxed = await boxed_answer(path, response, cut, inducer, BOXED_TOKENS, problem, ctx)
    return replace(boxed, exit_reason="failed" if boxed.error else "asked")
