"""One of several servers: its load, its speed, and whether it can be asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from dto.engines.openai import OpenAIEngine
from dto.engines.openai_http import pause
from dto.protocols import Chunk

MEMORY_SECONDS = 60.0
"""Speeds are measured over about the last so many seconds of work."""
ANSWER_SECONDS = 10.0
"""How long the answer to that may take."""
LONGEST_WAIT = 120.0
"""The longest wait for a server that asks to be tried again later."""

_T = TypeVar("_T")


class FallenSilent(Exception):
    """The server of a request answers nothing any more."""


@dataclass(slots=True)
class Share:
    """What one server did in a stage.

    `seconds` is the time in which it had requests under way. `lost` requests went on elsewhere, or
    failed. `cached` is the part of the `prompt` tokens that came from its cache.
    """

    server: str
    requests: int = 0
    prompt: int = 0
    cached: int = 0
    generated: int = 0
    seconds: float = 0.0
    lost: int = 0
    deaths: int = 0


class Place:
    """A server: its engine, its load and speed, and whether it can be asked."""

    def __init__(self, index: int, url: str, engine: OpenAIEngine) -> None:
        self.index, self.url, self.engine = index, url, engine
        self.share = Share(url)
        self.busy = 0
        self.waits: set[asyncio.Timeout] = set()
        self.watch: asyncio.Task[None] | None = None  # while it is down
        self.resting = 0.0  # until when it wants no requests
        self.reason = ""
        self._faults, self._fault_at = 0, 0.0  # in a row
        self._counted = self.begun = 0.0
        self._seconds = self._tokens = 0.0  # recent ones

    @property
    def ready(self) -> bool:
        """Whether it can be asked now."""
        return self.watch is None and self.resting <= time.monotonic()

    @property
    def speed(self) -> float | None:
        """Tokens finished per second of work; None before the first."""
        return self._tokens / self._seconds if self._tokens and self._seconds else None

    @contextmanager
    def serving(self, samples: int) -> Iterator[None]:
        """Count samples as under way until the block ends."""
        self._count_time()
        if not self.busy:
            self.begun = self._counted
        self.busy += samples
        try:
            yield
        finally:
            self._count_time()
            self.busy -= samples

    def _count_time(self) -> None:
        now = time.monotonic()
        if self.busy:
            self.share.seconds += now - self._counted
            self._seconds += now - self._counted
        self._counted = now
        if self._seconds > 2 * MEMORY_SECONDS:
            self._seconds, self._tokens = self._seconds / 2, self._tokens / 2

    def answered(self, chunks: Sequence[Chunk], generated: int | None = None) -> None:
        """Count samples that it has finished; `generated` tokens, if not those of the chunks."""
        self._faults = 0
        if generated is None:
            generated = sum(len(chunk.token_ids) for chunk in chunks)
        self._tokens += generated
        share = self.share
        share.requests += len(chunks)
        share.prompt += sum(chunk.prompt_tokens for chunk in chunks)
        share.cached += sum(chunk.cached_tokens for chunk in chunks)
        share.generated += generated

    def failed(self, start: float, reason: str, wait: float, overloaded: bool) -> None:
        """Let it rest after a failure, for longer if several came one after the other."""
        self.reason = reason
        now = time.monotonic()
        if start >= self._fault_at:  # else it began before the last one, and is the same
            self._faults, self._fault_at = self._faults + 1, now
        rounds = self._faults - (1 if overloaded else 2)
        wait = max(wait, pause(rounds) if rounds >= 0 else 0.0)
        self.resting = max(self.resting, now + min(wait, LONGEST_WAIT))

    async def answers(self) -> bool:
        """Ask whether it is up."""
        return await self.engine.transport.answers(ANSWER_SECONDS)


async def waiting(place: Place, request: Awaitable[_T]) -> _T:
    """Await a request's reply, until its server is found to have fallen silent."""
    try:
        async with asyncio.timeout(None) as wait:
            place.waits.add(wait)
            try:
                return await request
            finally:
                place.waits.discard(wait)
    except TimeoutError:
        raise FallenSilent from None
