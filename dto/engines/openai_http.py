"""Requests to an OpenAI-compatible server: how many at once, how often tried, what they cost.

The `openai` package retries what may pass (429, 5xx, timeouts, connections that break), with
exponential backoff and jitter, and waits as long as Retry-After says (a request that is told to
wait for more than two minutes has failed).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import openai
from openai import AsyncOpenAI, AsyncStream

from dto.errors import EngineError
from dto.protocols import Sampling
from dto.recipe import ModelSettings
from dto.usage import ModelShape, Usage, attention_flops, charge, forward_flops

if TYPE_CHECKING:
    pass

OPENAI = "https://api.openai.com/v1"
_REASON_CHARS = 600
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0  # seconds


class RequestError(Exception):
    """A request that was given up, and why: in the server's words, so `Transport.clean` it.

    `status` is the HTTP status of a refusal, None when there was none: then the server may have
    generated tokens that nobody read. `broke`: the connection broke while a stream was read.
    """

    def __init__(self, reason: str, status: int | None = None, broke: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.broke = broke


class Transport:
    """One client of one server; `concurrency` requests are under way at a time, others wait."""

    def __init__(self, settings: ModelSettings) -> None:
        """Raises EngineError for OpenAI's own server without a key."""
        self.server = settings.server or OPENAI
        self.timeout = settings.timeout
        self._retries = settings.retries
        self.key_name = settings.api_key
        self._key = os.environ.get(settings.api_key, "")
        if not self._key and settings.server is None:
            raise EngineError(
                f"environment variable {settings.api_key} is not set: put OpenAI's API key there, "
                "name another variable in model.api_key, or set model.server"
            )
        self._concurrency = settings.concurrency
        self._tasks: set[asyncio.Task[Any]] = set()
        self.open()

    def open(self) -> None:
        """Make a client; it connects when it is asked for something."""
        self._client = AsyncOpenAI(
            base_url=self.server,
            api_key=self._key or "none",
            timeout=self.timeout,
            max_retries=self._retries,
        )
        self._slots = asyncio.Semaphore(self._concurrency)

    async def close(self) -> None:
        """Close all connections; requests under way are given up."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    async def models(self) -> Any:
        """What the server says that it serves. A server that cannot be reached is not asked twice.

        Raises RequestError.
        """
        for client in (self._client.with_options(max_retries=0), self._client):
            try:
                return await client.get("/models", cast_to=object)
            except openai.APIConnectionError as error:
                raise self._error(error) from None
            except Exception as error:
                failure = self._error(error)
        raise failure

    async def post(
        self, path: str, body: dict[str, Any], begun: asyncio.Event | None = None
    ) -> Any:
        """The reply as it was parsed from JSON; cancelling closes the connection.

        `begun` is set when the request has got its turn. Raises RequestError.
        """

        async def request() -> Any:
            async with self._slots:
                if begun is not None:
                    begun.set()
                return await self._client.post(path, cast_to=object, body=body)

        task = self._start(request())
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise
            raise RequestError("the engine was closed") from None
        except Exception as error:
            raise self._error(error) from None
        finally:
            task.cancel()

    @asynccontextmanager
    async def events(
        self, path: str, body: dict[str, Any], begun: asyncio.Event | None = None
    ) -> AsyncIterator[Events]:
        """The events of a streamed reply; leaving closes the connection.

        They are read as fast as they come, so that a reader that pauses neither holds up the server
        nor hides from itself what has been generated.
        """
        events = Events()

        async def pump() -> None:
            try:
                async with self._slots:
                    if begun is not None:
                        begun.set()
                    async with aclosing(self._streamed(path, body, events)) as streamed:
                        async for event in streamed:
                            events.put(event)
                events.put(None)
            except asyncio.CancelledError:
                events.put(RequestError("the engine was closed"))
                raise
            except Exception as error:
                failure = self._error(error)
                failure.broke = events.any and _broke(error)
                events.put(failure)

        task = self._start(pump())
        try:
            yield events
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _streamed(
        self, path: str, body: dict[str, Any], events: Events
    ) -> AsyncGenerator[Any]:
        """Events; a reply that breaks before its first one is asked for again."""
        for left in range(self._retries, -1, -1):
            client = self._client.with_options(max_retries=left)
            stream: AsyncStream[object] = await client.post(
                path, cast_to=object, body=body, stream=True, stream_cls=AsyncStream[object]
            )
            try:
                async with stream:
                    async for event in stream:
                        yield event
                return
            except Exception as error:
                if events.any or left == 0 or not _broke(error):
                    raise
            await backoff(self._retries - left)

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _error(self, error: Exception) -> RequestError:
        if isinstance(error, RequestError):
            return error
        status = None
        if isinstance(error, openai.APITimeoutError):
            reason = f"no answer from {self.server} in {self.timeout:g} s (model.timeout)"
        elif isinstance(error, openai.APIStatusError):
            status = error.status_code
            reason = f"{self.server} answered {status}: {_message(error.body) or error.message}"
        elif isinstance(error, openai.APIConnectionError):
            cause = error.__cause__ or error
            reason = f"connection to {self.server} failed: {cause or type(cause).__name__}"
        elif isinstance(error, openai.APIError):
            reason = f"{self.server} broke off: {_message(error.body) or error.message}"
        elif isinstance(error, ValueError):
            reason = f"{self.server} sent what is not JSON: {error}"
        else:
            reason = f"request to {self.server} failed: {type(error).__name__}: {error}"
        return RequestError(reason, status)

    def clean(self, text: str) -> str:
        """One line of bounded length without the API key, which a server may have echoed."""
        if self._key:
            text = text.replace(self._key, "[API key]")
        return " ".join(text.split())[:_REASON_CHARS]


class Events:
    """What a streamed reply has brought so far; taken one by one."""

    def __init__(self) -> None:
        self.any = False
        self._queue: asyncio.Queue[object] = asyncio.Queue()

    def put(self, event: object) -> None:
        """Add an event; None is the end, a RequestError a bad one."""
        self.any = self.any or not isinstance(event, RequestError | None)
        self._queue.put_nowait(event)

    async def __aiter__(self) -> AsyncGenerator[Any]:
        """Events until the end. Raises RequestError."""
        while (event := await self._queue.get()) is not None:
            if isinstance(event, RequestError):
                raise event
            yield event

    def left(self) -> list[Any]:
        """Events that came and were not taken."""
        items = []
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if item is not None and not isinstance(item, RequestError):
                items.append(item)
        return items


async def backoff(tried: int) -> None:
    """Wait before the next attempt, as the `openai` package does."""
    wait = min(_FIRST_WAIT * 2.0**tried, _LONGEST_WAIT)
    await asyncio.sleep(wait * random.uniform(0.75, 1.0))


def _broke(error: Exception) -> bool:
    """Whether the connection broke or timed out, as against a reply that says no."""
    if isinstance(error, openai.APIConnectionError):
        return True
    return not isinstance(error, openai.APIError | ValueError)


def _message(body: object) -> str:
    """The words of an error body, wherever a server puts them."""
    while isinstance(body, dict):
        values = cast("dict[str, object]", body)
        body = values.get("error") or values.get("message") or values.get("detail") or str(values)
    return body if isinstance(body, str) else ""


def choices_of(reply: Any) -> list[dict[str, Any]]:
    """The choices of a reply or an event; none of an event that only counts.

    Raises RequestError for what is neither.
    """
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if choices is None and counts_of(reply) is not None:
        return []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise RequestError(f"the server sent what is no completion: {reply!r}")
    return choices


def choice_of(reply: Any) -> dict[str, Any]:
    """The only choice of a reply. Raises RequestError."""
    choices = choices_of(reply)
    if len(choices) != 1:
        raise RequestError(f"the server sent {len(choices)} completions, not one")
    return choices[0]


@dataclass(frozen=True, slots=True)
class Counts:
    """Usage as a server reports it; 0 for what it does not say."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0


def counts_of(reply: Any) -> Counts | None:
    """The usage in a reply or an event, None when there is none."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    found = usage.get("prompt_tokens"), cached, usage.get("completion_tokens")
    return Counts(*(count if isinstance(count, int) else 0 for count in found))


ABORT_TOKENS = 32
"""What a server may still generate for a stream between its closing here and its end there.

An allowance, since nobody reports it: vLLM stops within a few steps of the connection's end.
"""


@dataclass(slots=True)
class Cost:
    """Grows with the reply.

    `prompt`, `cached` and `begun` are of each sample, `generated` and `kept` of all together.
    `begun`: the server was asked, and did not refuse. `ended`: it generates no more.
    """

    prompt: int
    cached: int = 0
    generated: int = 0
    kept: int = 0
    failed: bool = False
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    def count(self, counts: Counts | None) -> None:
        """Take over what the server counted, where it did."""
        if counts is not None:
            self.prompt = counts.prompt or self.prompt
            self.cached = counts.cached
            self.generated = max(self.generated, counts.generated)

    def charge(self, shape: ModelShape | None, sampling: Sampling, n: int, unseen: int) -> None:
        """Charge n samples to the ledger.

        Of a request that was given up, `unseen` further tokens of each sample, at most those that
        were asked for, count as generated: an upper bound.
        """
        usage = Usage(requests=n, failed=n * self.failed)
        if self.begun.is_set():
            if not self.ended:
                most = max(self.generated, n * sampling.max_tokens)
                self.generated = min(self.generated + n * unseen, most)
            usage.prompt, usage.cached = n * self.prompt, n * self.cached
            usage.generated, usage.wasted = self.generated, max(0, self.generated - self.kept)
            end = self.prompt + max(0, -(-self.generated // n) - 1)
            usage.attention_flops = n * attention_flops(shape, self.cached, end)
            usage.model_flops = n * forward_flops(shape, self.cached, end)
        charge(usage)
