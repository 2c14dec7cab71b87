"""Spread requests over several servers of one model (`model.server: [URL, …]`).

A request goes to the server that has read the longest part of its prompt before, so that the
rollouts of one trajectory meet one prefix cache, unless that server has more under way than its
share (consistent hashing with bounded loads, 1608.01350, with prefixes in place of hashes). Any
other goes to the server that is expected to finish it first, by the tokens that each has finished
per second. Requests of a server that fails or falls silent go to the others. Seeds belong to
requests, so results do not depend on which server answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

from dto.engines.affinity import Prefixes, blocks_of
from dto.engines.openai import OpenAIEngine
from dto.engines.openai_http import pause
from dto.engines.places import LONGEST_WAIT, FallenSilent, Place, Share, waiting
from dto.engines.shared import completion_of, unbranched
from dto.engines.spliced import Differs, Spliced
from dto.errors import EngineError
from dto.protocols import Chunk, Completion, Prompt, Sampling, TokenIds
from dto.usage import Usage, charge

if TYPE_CHECKING:
    from dto.recipe import ModelSettings

logger = logging.getLogger("dto")

BOUND = 1.25
"""Requests that the server of a prompt may have under way, relative to its share of all."""
SLACK = 4
"""Further requests that it may have, so that few requests stay together."""
DIFFERS = "its server failed, and another one sampled different tokens"
SLOWEST = 1 / 8
"""Least speed of a server relative to the fastest that is assumed, so that it is measured again."""
CHECK_SECONDS = 5.0
"""How often a server that has ended is asked whether it is back, at first; at last every minute."""
SILENT_SECONDS = 30.0
"""How long a server with requests under way may say nothing before it is asked whether it is up."""


class ServersEngine:
    """Serves between entering and leaving, on one event loop; see :class:`OpenAIEngine`."""

    def __init__(self, settings: ModelSettings, name: str) -> None:
        """Prepare an engine for each server. Raises EngineError as :class:`OpenAIEngine` does."""
        assert isinstance(settings.server, tuple)
        if len(set(settings.server)) < len(settings.server):
            raise EngineError("model.server names a server twice: name each once")
        self._settings = settings
        # A failed request is tried elsewhere first, so an engine does not try it again itself.
        made = (
            OpenAIEngine(settings.model_copy(update={"server": url, "retries": 0}), name)
            for url in settings.server
        )
        pairs = zip(settings.server, made, strict=True)
        self._places = [Place(index, url, engine) for index, (url, engine) in enumerate(pairs)]
        self._first = self._places[0]
        engine = self._first.engine
        self.model, self.tokenizer, self.shape = name, engine.tokenizer, engine.shape
        self.context, self.capabilities = engine.context, engine.capabilities
        self.most_attempts = len(self._places) + settings.retries
        self._prefixes = Prefixes()
        self._guard: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ServersEngine:
        """Probe all servers; those that are down join when they are up.

        Raises EngineError if all are down, and if one differs from the others.
        """
        if self._guard is not None:
            raise EngineError(f"engine for {self.model!r} is already serving: enter it once")
        for place in self._places:
            place.engine.transport.open()
        try:
            await self._probe_all()
        except BaseException:
            await self._close()
            raise
        self._guard = asyncio.create_task(self._find_silent())
        return self

    async def _probe_all(self) -> None:
        start = time.monotonic()
        probes = (place.engine.probe() for place in self._places)
        errors = await asyncio.gather(*probes, return_exceptions=True)
        up: list[Place] = []
        for place, error in zip(self._places, errors, strict=True):
            fault = place.engine.transport.fault_since(start)
            if error is None:
                up.append(place)
            elif isinstance(error, EngineError):
                place.reason = str(error)
                if fault is None or not fault.passes:
                    others = (other.url for other in self._places if other is not place)
                    raise EngineError(
                        f"{place.url} cannot be used beside {', '.join(others)}: {error}"
                    )
            else:
                raise error
        if not up:
            raise EngineError("; ".join(f"{place.url}: {place.reason}" for place in self._places))
        self._first = up[0]
        self.context, self.capabilities = up[0].engine.context, up[0].engine.capabilities
        for place in up:
            self._check_alike(place)
        for place in self._places:
            if place not in up:
                logger.warning("model     %s does not answer yet: %s", place.url, place.reason)
                place.watch = asyncio.create_task(self._watch(place, ended=True))

    def _check_alike(self, place: Place) -> None:
        """Raise EngineError if a server differs from the first one that was up."""
        first, engine = self._first.url, place.engine
        if engine.capabilities != self.capabilities:
            raise EngineError(
                f"{place.url} can do {engine.capabilities}, {first} {self.capabilities}: "
                "start all servers alike"
            )
        if engine.context != self.context:
            raise EngineError(
                f"{place.url} takes at most {engine.context:,} tokens, {first} "
                f"{self.context:,}: start all servers with the same --max-model-len, or set "
                f"model.context to {min(engine.context, self.context)}"
            )

    async def __aexit__(self, *exc: object) -> None:
        """Close all connections; pending requests come back as failed."""
        await self._close()

    async def _close(self) -> None:
        tasks = [self._guard, *(place.watch for place in self._places)]
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._guard = None
        for place in self._places:
            await place.engine.__aexit__(None, None, None)

    def shared(self) -> list[dict[str, Any]]:
        """What each server did since the last call, as :class:`Share`."""
        done = [asdict(place.share) for place in self._places]
        for place in self._places:
            place.share = Share(place.url)
        return done

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        """Sample n times on one server, and on another if that fails. See the protocol."""
        attempts = _Attempts(self, prompt)
        while place := await attempts.place():
            silent, failures = False, 0
            completions: list[Completion] = []
            with place.serving(n):
                try:
                    request = place.engine.complete(prompt, sampling, n)
                    completions = await waiting(place, request)
                except FallenSilent:
                    silent = True
                failures = sum(each.finish_reason == "failed" for each in completions)
                if completions and not failures:
                    place.answered(completions)
            if not silent and (not failures or not attempts.went_wrong(place)):
                return completions
            _take_back(n, failures, sum(len(each.token_ids) for each in completions))
            place.share.lost += n
        return [completion_of(self._give_up(n))] * n

    async def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk]:
        """Stream one sample; if its server fails, another samples it again with the same seed.

        Tokens that were already given are left out. If the other server samples different ones
        (servers of unlike hardware may), the stream fails.
        """
        attempts = _Attempts(self, prompt)
        spliced = Spliced()
        while place := await attempts.place():
            spliced.begin()
            received, failed = 0, None
            with place.serving(1):
                async with aclosing(place.engine.stream(prompt, sampling)) as chunks:
                    while failed is None:
                        try:
                            chunk = await waiting(place, anext(chunks))
                        except FallenSilent:
                            break
                        if chunk.finish_reason == "failed":
                            failed = chunk
                            break
                        received += len(chunk.token_ids)
                        try:
                            if new := spliced.new(chunk):
                                yield new
                        except Differs:
                            charge(Usage(failed=1))
                            yield Chunk((), "", "failed", error=f"{DIFFERS} ({place.url})")
                            return
                        if chunk.finish_reason is not None:
                            place.answered([chunk], received)
                            return
            if failed is not None and not attempts.went_wrong(place):
                yield failed
                return
            _take_back(1, failed is not None, received)
            place.share.lost += 1
        yield self._give_up(1)

    def branched(self) -> NoReturn:
        """Raise EngineError: a server does not support it."""
        raise unbranched(self.model)

    async def score(self, prompt: TokenIds, continuation: TokenIds) -> tuple[float, ...]:
        """Logprobs of the continuation's tokens; see :meth:`OpenAIEngine.score`."""
        attempts = _Attempts(self, (*prompt, *continuation))
        while place := await attempts.place():
            silent = False
            with place.serving(1):
                try:
                    return await waiting(place, place.engine.score(prompt, continuation))
                except FallenSilent:
                    silent = True
                except EngineError:
                    if not attempts.went_wrong(place):
                        raise
            _take_back(1, not silent)
            place.share.lost += 1
        raise EngineError(f"score: {self._give_up(1).error}")

    def _give_up(self, samples: int) -> Chunk:
        charge(Usage(requests=samples, failed=samples))
        return Chunk((), "", "failed", error=self._reasons())

    def _reasons(self) -> str:
        reasons = (f"{each.url}: {each.reason or 'was not tried'}" for each in self._places)
        return f"no server answered: {'; '.join(reasons)}"

    def choose(self, blocks: Sequence[int], tried: set[int]) -> Place | None:
        """The server for a prompt, of those that are ready and were not tried."""
        ready = [place for place in self._places if place.ready and place.index not in tried]
        if not ready:
            return None
        known = [place.speed for place in self._places if place.speed is not None]
        most = max(known, default=1.0)
        speed = {place.index: max(place.speed or most, SLOWEST * most) for place in ready}

        def seconds(place: Place) -> float:
            return (place.busy + 1) / speed[place.index]

        chosen = min(ready, key=seconds)
        readers = self._prefixes.find(blocks) or 0
        if among := [place for place in ready if readers >> place.index & 1]:
            reader = min(among, key=seconds)
            share = sum(place.busy for place in ready) * speed[reader.index] / sum(speed.values())
            if reader.busy <= BOUND * share + SLACK:
                chosen = reader
        self._prefixes.add(blocks, chosen.index)
        return chosen

    async def wait(self, rounds: int) -> bool:
        """Wait until a server may be ready; false if a request has waited often enough."""
        if rounds >= self._settings.retries or self._guard is None:
            return False
        seconds = pause(rounds)
        resting = [place.resting for place in self._places if place.watch is None]
        if resting:
            seconds = max(seconds, min(min(resting) - time.monotonic(), LONGEST_WAIT))
        await asyncio.sleep(seconds)
        return True

    def is_fault(self, place: Place, start: float) -> bool:
        """Whether a request failed by its server's fault; then the server rests, or is watched."""
        fault = place.engine.transport.fault_since(start)
        if fault is None or self._guard is None:
            return False
        reason = place.engine.transport.clean(fault.reason)
        place.failed(start, reason, fault.wait, fault.status in (429, 503))
        if fault.status is None:
            self._suspect(place)
        return True

    def _suspect(self, place: Place) -> None:
        """Send nothing to a server until it answers."""
        if place.watch is None:
            place.watch = asyncio.create_task(self._watch(place))

    async def _watch(self, place: Place, ended: bool = False) -> None:
        """Ask a server whether it is up, less and less often, until it is and can be used."""
        seconds, said = CHECK_SECONDS, ""
        while True:
            if not ended and await place.answers():
                break
            if not ended:
                ended = True
                place.share.deaths += 1
                logger.warning(
                    "model     %s has ended: its requests go on elsewhere (%s)",
                    place.url, place.reason,
                )  # fmt: skip
                self._prefixes.forget(place.index)
                for wait in tuple(place.waits):
                    wait.reschedule(0.0)
            await asyncio.sleep(seconds)
            seconds = min(1.5 * seconds, max(60.0, CHECK_SECONDS))
            if await place.answers():
                try:
                    await place.engine.probe()
                    self._check_alike(place)
                    logger.warning("model     %s is back", place.url)
                    break
                except EngineError as error:
                    if str(error) != said:
                        said = str(error)
                        logger.warning("model     %s cannot be used: %s", place.url, said)
        place.watch, place.resting = None, 0.0 if ended else place.resting

    async def _find_silent(self) -> None:
        """Watch servers that have requests under way and have said nothing for a while."""
        while True:
            await asyncio.sleep(min(CHECK_SECONDS, SILENT_SECONDS))
            since = time.monotonic() - SILENT_SECONDS
            for place in self._places:
                if place.busy and max(place.begun, place.engine.transport.heard) < since:
                    place.reason = f"it has said nothing for {SILENT_SECONDS:g} s"
                    self._suspect(place)


class _Attempts:
    """The servers for one request, one after another, all of them again after a while."""

    def __init__(self, servers: ServersEngine, prompt: Prompt) -> None:
        self._servers = servers
        self._blocks = blocks_of(prompt)
        self._tried: set[int] = set()
        self._rounds, self._start = 0, 0.0
        self._left = servers.most_attempts

    async def place(self) -> Place | None:
        """The next server; None if all were asked often enough."""
        while True:
            self._start = time.monotonic()
            if self._left and (chosen := self._servers.choose(self._blocks, self._tried)):
                self._left -= 1
                self._tried.add(chosen.index)
                return chosen
            if not self._left or not await self._servers.wait(self._rounds):
                return None
            self._rounds += 1
            self._tried.clear()

    def went_wrong(self, place: Place) -> bool:
        """Whether the last server failed, rather than the request."""
        return self._servers.is_fault(place, self._start)


def _take_back(samples: int, failed: int | bool, unused: int = 0) -> None:
    """Take back the failure of samples that another server answers; their tokens are wasted."""
    charge(Usage(requests=-samples, failed=-failed, wasted=unused))
