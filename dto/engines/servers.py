"""Spread requests over several servers of one model (`model.server: [URL, …]`).

A request goes to the server that has read the longest part of its prompt before, so that the
rollouts of one trajectory meet one prefix cache; a prompt that no server knows goes to the one with
the fewest requests under way. So a slow server gets fewer of them. Requests of a server that has
ended go to the others, and it is asked every few seconds whether it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import TYPE_CHECKING, NoReturn

from dto.engines.openai import OpenAIEngine
from dto.engines.shared import unbranched
from dto.errors import EngineError
from dto.protocols import Chunk, Completion, Prompt, Sampling, TokenIds
from dto.usage import Usage, charge

if TYPE_CHECKING:
    from dto.recipe import ModelSettings

logger = logging.getLogger("dto")

BLOCK = 64
"""Tokens of a prompt that are looked up together, as prefix caches keep whole blocks."""
KNOWN_BLOCKS = 200_000
"""Blocks that are remembered; the least recently used are forgotten."""
SHARED = 0.5
"""Least share of a prompt that its server knows; below it, the least busy server is better."""
SLACK = 8
"""Requests that the server of a prompt may be ahead of the least busy one, besides half of its."""
CHECK_SECONDS = 5.0
"""How often a server that has ended is asked whether it is back."""


class ServersEngine:
    """Serves between entering and leaving, on one event loop; see :class:`OpenAIEngine`."""

    def __init__(self, settings: ModelSettings, name: str) -> None:
        """Prepare an engine for each server. Raises EngineError as :class:`OpenAIEngine` does."""
        assert isinstance(settings.server, tuple)
        if len(set(settings.server)) < len(settings.server):
            raise EngineError("model.server names a server twice: name each once")
        self._urls = settings.server
        self._engines = [
            OpenAIEngine(settings.model_copy(update={"server": url}), name) for url in self._urls
        ]
        first = self._engines[0]
        self.model, self.tokenizer, self.shape = name, first.tokenizer, first.shape
        self.context, self.capabilities = first.context, first.capabilities
        self._busy = [0] * len(self._engines)
        self._down: dict[int, asyncio.Task[None]] = {}
        self._blocks: OrderedDict[int, int] = OrderedDict()
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> ServersEngine:
        """Probe all servers. Raises EngineError if one is down, or differs from the others."""
        for url, engine in zip(self._urls, self._engines, strict=True):
            try:
                await self._opened.enter_async_context(engine)
            except BaseException as error:
                await self._opened.aclose()
                if isinstance(error, EngineError):
                    raise EngineError(f"{url}: {error}") from None
                raise
        first, *others = self._engines
        for url, engine in zip(self._urls[1:], others, strict=True):
            if engine.capabilities != first.capabilities:
                await self._opened.aclose()
                raise EngineError(
                    f"{url} can do {engine.capabilities}, {self._urls[0]} {first.capabilities}: "
                    "start all servers alike"
                )
        self.capabilities = first.capabilities
        self.context = min(engine.context for engine in self._engines)
        for engine in self._engines:
            engine.context = self.context
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close all connections; pending requests come back as failed."""
        for task in self._down.values():
            task.cancel()
        await asyncio.gather(*self._down.values(), return_exceptions=True)
        await self._opened.aclose()

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        """Sample n times on one server, and on another if that has ended. See the protocol."""
        tried: set[int] = set()
        while True:
            with self._server(prompt, tried) as place:
                completions = await self._engines[place].complete(prompt, sampling, n)
            failed = sum(each.finish_reason == "failed" for each in completions)
            if not failed or not await self._has_ended(place, tried):
                return completions
            _take_back(failed, sum(len(each.token_ids) for each in completions))

    async def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk]:
        """Stream one sample, from another server if the first ends before its first token."""
        tried: set[int] = set()
        begun = again = False
        while not begun or again:
            with self._server(prompt, tried) as place:
                async with aclosing(self._engines[place].stream(prompt, sampling)) as chunks:
                    async for chunk in chunks:
                        failed = chunk.finish_reason == "failed" and not begun
                        again = failed and await self._has_ended(place, tried)
                        if not again:
                            begun = True
                            yield chunk
            if again:
                _take_back(1)

    def branched(self) -> NoReturn:
        """Raise EngineError: a server does not support it."""
        raise unbranched(self.model)

    async def score(self, prompt: TokenIds, continuation: TokenIds) -> tuple[float, ...]:
        """Logprobs of the continuation's tokens; see :meth:`OpenAIEngine.score`."""
        tried: set[int] = set()
        while True:
            try:
                with self._server(prompt, tried) as place:
                    return await self._engines[place].score(prompt, continuation)
            except EngineError:
                if not await self._has_ended(place, tried):
                    raise
            _take_back(1)

    @contextmanager
    def _server(self, prompt: Prompt, tried: set[int]) -> Iterator[int]:
        """Choose the server for a request, which is under way until the block ends."""
        blocks = list(_blocks(prompt))
        place = self._place(blocks, tried)
        for block in blocks:
            self._blocks[block] = place
            self._blocks.move_to_end(block)
        while len(self._blocks) > KNOWN_BLOCKS:
            self._blocks.popitem(last=False)
        self._busy[place] += 1
        try:
            yield place
        finally:
            self._busy[place] -= 1

    def _place(self, blocks: Sequence[int], tried: set[int]) -> int:
        """The server for a prompt, of those that are up; of those not tried, if none is."""
        left = [place for place in range(len(self._engines)) if place not in tried]
        up = [place for place in left if place not in self._down] or left
        least = min(up, key=lambda place: self._busy[place])
        for count in range(len(blocks), 0, -1):
            place = self._blocks.get(blocks[count - 1], -1)
            if place >= 0:
                known = count >= SHARED * len(blocks) and place in up
                room = self._busy[place] <= 1.5 * self._busy[least] + SLACK
                return place if known and room else least
        return least

    async def _has_ended(self, place: int, tried: set[int]) -> bool:
        """Whether the server of a failed request has ended and another can be asked."""
        tried.add(place)
        if len(tried) == len(self._engines) or await self._engines[place].answers():
            return False
        if place not in self._down:
            logger.warning(
                "model     %s has ended: its requests go on elsewhere", self._urls[place]
            )
            self._down[place] = asyncio.create_task(self._watch(place))
        return True

    async def _watch(self, place: int) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if await self._engines[place].answers():
                logger.warning("model     %s is back", self._urls[place])
                del self._down[place]
                return


def _blocks(prompt: Prompt) -> Iterator[int]:
    """A hash of each beginning of a prompt that ends with a whole block, and of the whole."""
    known = 0
    for start in range(0, len(prompt), BLOCK):
        part = prompt[start : start + BLOCK]
        known = hash((known, *(each if isinstance(each, int) else repr(each) for each in part)))
        yield known


def _take_back(failed: int, unused: int = 0) -> None:
    """Take back the failure of requests that another server answers; tokens stay counted."""
    charge(Usage(requests=-failed, failed=-failed, wasted=unused))
