"""Send requests to an OpenAI-compatible server: limit concurrency, retry, count tokens.

The `openai` package retries temporary errors (429, 5xx, timeouts, broken connections) with
exponential backoff and jitter, and honours Retry-After (a request that must wait for more than two
minutes fails).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import openai
from openai import AsyncOpenAI, AsyncStream

from dto.engines.shared import Cost
from dto.errors import EngineError
from dto.recipe import ModelSettings

OPENAI = "https://api.openai.com/v1"
ABORT_TOKENS = 32
"""Tokens that a server may still generate after a stream was closed here.

This is an allowance, since no server reports it; vLLM stops a few steps after the connection ends.
"""
_REASON_CHARS = 600
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0  # seconds
_Reply = TypeVar("_Reply")


class RequestError(Exception):
    """A failed request. `reason` quotes the server, so pass it through `Transport.clean`.

    `status` is the HTTP status of a refusal. It is None if the server did not refuse; then it may
    have generated tokens that were never read. `broke`: the connection broke during a stream.
    `unreachable`: there was none.
    """

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        broke: bool = False,
        unreachable: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.broke = broke
        self.unreachable = unreachable


class Transport:
    """The client of one server; at most `concurrency` requests run at a time, others wait."""

    def __init__(self, settings: ModelSettings) -> None:
        """Raises EngineError for OpenAI's own server without a key."""
        self.server = str(settings.server or OPENAI)
        self.key_name = settings.api_key
        self._key = os.environ.get(settings.api_key, "")
        if not self._key and settings.server is None:
            raise EngineError(
                f"environment variable {settings.api_key} is not set: put OpenAI's API key there, "
                "name another variable in model.api_key, or set model.server"
            )
        self._settings = settings
        self._tasks: set[asyncio.Task[Any]] = set()
        self.open()

    def open(self) -> None:
        """Create a client; it connects at the first request."""
        self._client = AsyncOpenAI(
            base_url=self.server,
            api_key=self._key or "none",
            timeout=self._settings.timeout,
            max_retries=self._settings.retries,
        )
        self._slots = asyncio.Semaphore(self._settings.concurrency)

    async def close(self) -> None:
        """Close all connections; pending requests are cancelled."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    async def models(self) -> Any:
        """The server's list of models. An unreachable server is not asked again.

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

    async def post(self, path: str, body: dict[str, Any], cost: Cost | None = None) -> Any:
        """Post a request and return the parsed JSON; cancelling closes the connection.

        Raises RequestError.
        """
        cost = cost or Cost()

        async def reply() -> Any:
            whole: Any = await self._client.post(path, cast_to=object, body=body)
            cost.ended = True
            _count(cost, whole)
            return whole

        return await self._in_turn(reply, cost)

    async def stream(
        self, path: str, body: dict[str, Any], cost: Cost, take: Callable[[Any], bool]
    ) -> None:
        """Pass the events of a streamed reply to `take`, until it returns true or they end.

        Cancelling closes the connection. Events are read as fast as they arrive, even if their
        consumer is slow. A reply that breaks before its first event is requested again. Raises
        RequestError, also from `take`.
        """
        retries = self._settings.retries

        async def read() -> None:
            for tried in range(retries + 1):
                client = self._client.with_options(max_retries=retries - tried)
                events: AsyncStream[object] = await client.post(
                    path, cast_to=object, body=body, stream=True, stream_cls=AsyncStream[object]
                )
                begun = False
                try:
                    async with events:
                        async for event in events:
                            begun = True
                            _count(cost, event)
                            if take(event):
                                return
                    cost.ended = True
                    return
                except Exception as error:
                    if begun or tried == retries or not _broke(error):
                        failure = self._error(error)
                        failure.broke = begun and _broke(error)
                        raise failure from None
                await backoff(tried)

        await self._in_turn(read, cost)

    async def _in_turn(self, work: Callable[[], Awaitable[_Reply]], cost: Cost) -> _Reply:
        """Run a request when a slot is free, in a task that `close` can cancel.

        Raises RequestError.
        """

        async def turn() -> _Reply:
            async with self._slots:
                cost.begun = True
                return await work()

        task = asyncio.create_task(turn())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise
            raise RequestError("the engine was closed") from None
        except Exception as error:
            failure = self._error(error)
            if failure.status is not None:
                cost.begun = False  # a refused request computes nothing
            raise failure from None

    def _error(self, error: Exception) -> RequestError:
        status, unreachable = None, False
        if isinstance(error, RequestError):
            return error
        if isinstance(error, openai.APITimeoutError):
            reason = f"no answer from {self.server} in {self._settings.timeout:g} s (model.timeout)"
        elif isinstance(error, openai.APIStatusError):
            status = error.status_code
            reason = f"{self.server} answered {status}: {_message(error.body) or error.message}"
        elif isinstance(error, openai.APIConnectionError):
            cause = error.__cause__ or error
            reason = f"connection to {self.server} failed: {cause or type(cause).__name__}"
            unreachable = True
        elif isinstance(error, openai.APIError):
            reason = f"{self.server} broke off: {_message(error.body) or error.message}"
        elif isinstance(error, ValueError):
            reason = f"{self.server} sent invalid JSON: {error}"
        else:
            reason = f"request to {self.server} failed: {type(error).__name__}: {error}"
        return RequestError(reason, status, unreachable=unreachable)

    def clean(self, text: str) -> str:
        """Shorten a text to one line and remove the API key, which the server may have echoed."""
        if self._key:
            text = text.replace(self._key, "[API key]")
        return " ".join(text.split())[:_REASON_CHARS]


async def backoff(tried: int) -> None:
    """Wait before the next attempt, like the `openai` package."""
    wait = min(_FIRST_WAIT * 2.0**tried, _LONGEST_WAIT)
    await asyncio.sleep(wait * random.uniform(0.75, 1.0))


def _count(cost: Cost, reply: Any) -> None:
    """Add the token counts that the server reports in a reply or event, if any."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    if not isinstance(usage, dict):
        return
    details = usage.get("prompt_tokens_details")
    counts = usage | (details if isinstance(details, dict) else {})
    prompt, cached, generated = (
        count if isinstance(count := counts.get(key), int) else 0
        for key in ("prompt_tokens", "cached_tokens", "completion_tokens")
    )
    cost.prompt, cost.cached = prompt or cost.prompt, cached
    cost.generated = max(cost.generated, generated)


def _broke(error: Exception) -> bool:
    """Whether the connection broke or timed out, rather than the server refusing."""
    if isinstance(error, openai.APIConnectionError):
        return True
    return not isinstance(error, openai.APIError | ValueError | RequestError)


def _message(body: object) -> str:
    """The message of an error body, wherever the server puts it."""
    while isinstance(body, dict):
        values = cast("dict[str, object]", body)
        body = values.get("error") or values.get("message") or values.get("detail") or str(values)
    return body if isinstance(body, str) else ""
