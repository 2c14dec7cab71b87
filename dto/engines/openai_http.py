"""Send requests to an OpenAI-compatible server: limit concurrency, retry, count tokens.

The `openai` package retries temporary errors (429, 5xx, timeouts, broken connections) with
exponential backoff and jitter, and honours Retry-After (a request that must wait for more than two
minutes fails).
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from types import MappingProxyType
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
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_Reply = TypeVar("_Reply")


class RequestError(Exception):
    """A failed request. `reason` quotes the server, so pass it through `Transport.clean`.

    `status` is the HTTP status of a refusal. It is None if the server did not refuse; then it may
    have generated tokens that were never read. `broke`: the connection broke during a stream.
    `unreachable`: there was none. `refused`: it could not even be opened. `wait`: seconds after
    which the server wants to be asked again, 0 if it does not say.
    """

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        broke: bool = False,
        unreachable: bool = False,
        refused: bool = False,
        wait: float = 0.0,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.broke = broke
        self.unreachable = unreachable
        self.refused = refused
        self.wait = wait

    @property
    def of_server(self) -> bool:
        """Whether another server of the same model may answer the request."""
        return self.status is None or self.status not in (400, 413, 422)

    @property
    def passes(self) -> bool:
        """Whether the same server may answer later: it is down, starting or overloaded."""
        return self.status is None or self.status in (408, 429) or self.status >= 500


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
        self.heard = self._fault_at = 0.0  # when the server last said something, and failed
        self._fault: RequestError | None = None
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
                raise self._noted(error) from None
            except Exception as error:
                failure = self._noted(error)
        raise failure

    async def answers(self, seconds: float) -> bool:
        """Whether the server is up, by one request. One that refuses the question is."""
        client = self._client.with_options(max_retries=0, timeout=seconds)
        try:
            await client.get("/models", cast_to=object)
        except openai.APIStatusError as error:
            return error.status_code < 500
        except Exception:
            return False
        self.heard = time.monotonic()
        return True

    def fault_since(self, start: float) -> RequestError | None:
        """The last failure of the server, not of a request alone, since a monotonic time."""
        return self._fault if self._fault_at >= start else None

    async def post(
        self,
        path: str,
        body: dict[str, Any],
        cost: Cost | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Any:
        """Post a request and return the parsed JSON; cancelling closes the connection.

        Raises RequestError.
        """
        cost = cost or Cost()

        async def reply() -> Any:
            whole: Any = await self._client.post(
                path, cast_to=object, body=body, options={"headers": headers}
            )
            cost.ended = True
            _count(cost, whole)
            return whole

        return await self._in_turn(reply, cost)

    async def stream(
        self,
        path: str,
        body: dict[str, Any],
        cost: Cost,
        take: Callable[[Any], bool],
        headers: Mapping[str, str] = NO_HEADERS,
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
                    path,
                    cast_to=object,
                    body=body,
                    options={"headers": headers},
                    stream=True,
                    stream_cls=AsyncStream[object],
                )
                begun = False
                try:
                    async with events:
                        async for event in events:
                            begun = True
                            self.heard = time.monotonic()
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
            reply = await task
            self.heard = time.monotonic()
            return reply
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise
            raise RequestError("the engine was closed") from None
        except Exception as error:
            failure = self._noted(error)
            if failure.status is not None or failure.refused:
                cost.begun = False  # a refused request computes nothing
            raise failure from None

    def _noted(self, error: Exception) -> RequestError:
        failure = self._error(error)
        if failure.of_server:
            self._fault, self._fault_at = failure, time.monotonic()
        return failure

    def _error(self, error: Exception) -> RequestError:
        status, unreachable, refused, wait = None, False, False, 0.0
        if isinstance(error, RequestError):
            return error
        if isinstance(error, openai.APITimeoutError):
            reason = f"no answer from {self.server} in {self._settings.timeout:g} s (model.timeout)"
        elif isinstance(error, openai.APIStatusError):
            status, wait = error.status_code, _retry_after(error.response.headers)
            reason = f"{self.server} answered {status}: {_message(error.body) or error.message}"
        elif isinstance(error, openai.APIConnectionError):
            cause = error.__cause__ or error
            reason = f"connection to {self.server} failed: {cause or type(cause).__name__}"
            unreachable, refused = True, type(cause).__name__ == "ConnectError"  # httpx, httpx2
        elif isinstance(error, openai.APIError):
            reason = f"{self.server} broke off: {_message(error.body) or error.message}"
        elif isinstance(error, ValueError):
            reason = f"{self.server} sent invalid JSON: {error}"
        else:
            reason = f"request to {self.server} failed: {type(error).__name__}: {error}"
        return RequestError(reason, status, False, unreachable, refused, wait)

    def clean(self, text: str) -> str:
        """Shorten a text to one line and remove the API key, which the server may have echoed."""
        if self._key:
            text = text.replace(self._key, "[API key]")
        return " ".join(text.split())[:_REASON_CHARS]


def pause(tried: int) -> float:
    """Seconds to wait before the next attempt, like the `openai` package."""
    return min(_FIRST_WAIT * 2.0**tried, _LONGEST_WAIT) * random.uniform(0.75, 1.0)


async def backoff(tried: int) -> None:
    """Wait before the next attempt."""
    await asyncio.sleep(pause(tried))


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


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds until the time in a reply's Retry-After, which may be a number or a date; 0: none."""
    text = headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        with suppress(ValueError):
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


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
