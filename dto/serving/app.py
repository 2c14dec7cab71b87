"""The HTTP server: OpenAI's endpoints in front of an open model, with early exit.

A response is an ASGI application of its own, since it has to notice a client that left or stopped
reading while the model works.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dto.errors import DtoError
from dto.serving.live import Live
from dto.serving.metrics import Metrics
from dto.serving.model import NO_EXIT, Question, Serving
from dto.serving.records import Answering, Event, Left, Reply
from dto.serving.wire import Ask, Chat, Choice, Form, RequestError, Text, as_event, parse
from dto.settings import ExitPolicy, open_policy

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

logger = logging.getLogger("dto")

STALLED_SECONDS = 30.0
"""How long a client may leave a stream unread before it is given up."""
RETRY_SECONDS = 1
"""What a client is told to wait when the queue is full."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server takes on.

    `live` requests run at once and `queue` more wait; further ones get status 429. `body` is in
    bytes, `seconds` the longest that a request may take, queue included.
    """

    live: int = 64
    queue: int = 256
    body: int = 4 * 2**20
    seconds: float = 600.0


@dataclass(slots=True)
class Desk:
    """The requests under way, and what decides how they are answered.

    `exits` are the policies that a request can name; the first one serves requests that name none.
    """

    serving: Serving
    exits: Mapping[str, ExitPolicy]
    limits: Limits
    key: str = ""
    metrics: Metrics = field(default_factory=Metrics)
    live: dict[str, list[Live]] = field(default_factory=dict)
    waiting: int = 0
    slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.limits.live)

    def allow(self, authorization: str) -> None:
        """Raise RequestError 401 unless the request has the key, if there is one."""
        given = authorization.removeprefix("Bearer ").strip().encode()
        if self.key and not hmac.compare_digest(given, self.key.encode()):
            raise RequestError(401, "the API key is missing or wrong")

    def policy(self, ask: Ask) -> ExitPolicy:
        """The exit that a request asks for. Raises RequestError 400 for one that there is not."""
        wanted, default = ask.early_exit, next(iter(self.exits.values()))
        if ask.thinking_token_budget is not None:
            wanted = {"policy": "budget", "budget": ask.thinking_token_budget}
        elif wanted is None and isinstance(ask, Chat) and ask.reasoning_effort in self.exits:
            wanted = ask.reasoning_effort
        if wanted is None or wanted is True:
            return default
        if wanted is False or wanted in ("off", "none"):
            return NO_EXIT
        if isinstance(wanted, str):
            if wanted not in self.exits:
                raise RequestError(
                    400, f"there is no exit {wanted!r}: use {', '.join(self.exits)}, or off",
                    "early_exit",
                )  # fmt: skip
            return self.exits[wanted]
        base = default.changed() if "policy" not in wanted else {}
        if ":" in str(wanted.get("policy")):
            raise RequestError(400, "a request names no import path", "early_exit.policy")
        try:
            return open_policy({"name": "request", **base, **wanted})
        except ValueError as error:
            raise RequestError(400, " ".join(str(error).split()), "early_exit") from None

    async def begin(self, ask: Ask, question: Question) -> list[Live]:
        """The responses to a request, not yet begun. Raises RequestError 400 as `Serving.ask`."""
        served = self.serving
        if ask.model not in (None, served.name):
            raise RequestError(404, f"there is no model {ask.model!r}: use {served.name}", "model")
        drawn, policy = ask.sampling(), self.policy(ask)
        try:
            prompt = await asyncio.to_thread(served.prompt, question)  # long ones take a while
            first = served.ask(prompt, policy, **drawn)
            seeds = range(first.seed + 1, first.seed + ask.n)
            return [
                first,
                *(served.ask(prompt, policy, **drawn | {"seed": seed}) for seed in seeds),
            ]
        except DtoError as error:
            raise RequestError(400, str(error)) from None

    @asynccontextmanager
    async def admitted(self, name: str, responses: list[Live]) -> AsyncGenerator[None]:
        """Wait for a slot, and hold it. Raises RequestError 429 if too many wait already."""
        if self.slots.locked() and self.waiting >= self.limits.queue:
            raise RequestError(429, "too many requests wait: try again", retry=RETRY_SECONDS)
        self.waiting += 1
        try:
            await self.slots.acquire()
        finally:
            self.waiting -= 1
        self.live[name] = responses
        try:
            yield
        finally:
            del self.live[name]
            self.slots.release()

    def answer(self, name: str) -> bool:
        """Make a request answer now; whether its thinking was still open."""
        if name not in self.live:
            raise RequestError(404, f"no request {name!r} is under way")
        return any([response.answer_now() for response in self.live[name]])


async def _merged(responses: Sequence[Live]) -> AsyncGenerator[tuple[int, Event]]:
    """The events of all choices as they come, with the index of the choice."""
    queue: asyncio.Queue[tuple[int, Event] | BaseException | None] = asyncio.Queue()

    async def read(index: int, response: Live) -> None:
        try:
            async with aclosing(response.events()) as events:
                async for event in events:
                    queue.put_nowait((index, event))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(read(*numbered)) for numbered in enumerate(responses)]
    try:
        open_ones = len(tasks)
        while open_ones:
            match await queue.get():
                case None:
                    open_ones -= 1
                case BaseException() as error:
                    raise error
                case said:
                    yield said
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class _Exchange:
    """The answer to one request, as an ASGI application."""

    def __init__(self, desk: Desk, ask: Ask, form: Form, responses: list[Live]) -> None:
        self._desk, self._ask, self._form, self._responses = desk, ask, form, responses
        self._started = False
        self._begun = time.perf_counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._serve(send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait(
                {work, gone},
                timeout=self._desk.limits.seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if work.done():
                work.result()
            elif gone.done():
                self._desk.metrics.requests.labels(499).inc()
            else:
                work.cancel()
                await asyncio.wait({work})
                seconds = self._desk.limits.seconds
                await self._fail(send, RequestError(504, f"the response took over {seconds:g} s"))
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.wait({work, gone})

    async def _serve(self, send: Send) -> None:
        desk = self._desk
        try:
            async with desk.admitted(self._form.id, self._responses):
                await (self._stream(send) if self._ask.stream else self._whole(send))
        except RequestError as error:
            await self._fail(send, error)
        except DtoError as error:
            await self._fail(send, RequestError(502, str(error)))
        except Exception as error:
            logger.exception("serve: request %s", self._form.id)
            await self._fail(send, RequestError(500, f"{type(error).__name__} in the server"))
        else:
            desk.metrics.requests.labels(200).inc()

    async def _choices(self, heard: Callable[[int, Event], Awaitable[None]]) -> list[Choice]:
        """Pass all events to `heard`; return the choices. Raises RequestError if one failed."""
        choices: dict[int, Choice] = {}
        closing = [""] * len(self._responses)
        heard_any = False
        async with aclosing(_merged(self._responses)) as events:
            async for index, event in events:
                if not heard_any:
                    heard_any = True
                    self._desk.metrics.first_token.observe(time.perf_counter() - self._begun)
                if isinstance(event, Reply):
                    self._desk.metrics.count(event)
                    if event.finish_reason == "failed":
                        raise RequestError(502, f"the engine failed: {event.error}")
                    text = event.thinking + closing[index] + event.answer
                    choices[index] = Choice(index, event, text)
                elif isinstance(event, Left):
                    closing[index] = event.closing
                await heard(index, event)
        return [choices[index] for index in sorted(choices)]

    async def _whole(self, send: Send) -> None:
        async def heard(index: int, event: Event) -> None:
            """Nothing is sent before the end."""

        body = json.dumps(self._form.whole(await self._choices(heard)), ensure_ascii=False)
        await self._send(send, _start(200, "application/json"))
        await self._send(send, {"type": "http.response.body", "body": body.encode()})

    async def _stream(self, send: Send) -> None:
        form = self._form

        async def write(data: Mapping[str, Any] | str, more: bool = True) -> None:
            piece = {"type": "http.response.body", "body": as_event(data), "more_body": more}
            await self._send(send, piece)

        async def heard(index: int, event: Event) -> None:
            if isinstance(event, Answering) and event.anew:
                event = Answering(f"\n\n{event.text}")
            if isinstance(event, Reply):
                await write(form.last(Choice(index, event, "")))
            elif (piece := form.piece(index, event)) is not None:
                await write(piece)

        await self._send(send, _start(200, "text/event-stream; charset=utf-8"))
        if form.chat:
            for index in range(len(self._responses)):
                await write(form.first(index))
        choices = await self._choices(heard)
        options = self._ask.stream_options
        if options is not None and options.include_usage:
            await write(form.usage(choices))
        await write("[DONE]", more=False)

    async def _fail(self, send: Send, error: RequestError) -> None:
        self._desk.metrics.requests.labels(error.status).inc()
        if not self._started:
            await self._send(send, _start(error.status, "application/json", error.retry))
            body = json.dumps(error.as_json()).encode()
        else:
            body = as_event(error.as_json()) + as_event("[DONE]")
        await self._send(send, {"type": "http.response.body", "body": body})

    async def _send(self, send: Send, message: Any) -> None:
        """Send a message. Ends the exchange if the client does not read."""
        self._started = True
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                await send(message)
        except TimeoutError:
            raise asyncio.CancelledError(f"the client of {self._form.id} reads nothing") from None


def _start(status: int, kind: str, retry: int | None = None) -> dict[str, Any]:
    headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-cache")]
    if retry is not None:
        headers.append((b"retry-after", str(retry).encode()))
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, most: int) -> bytes:
    """The body of a request. Raises RequestError 413 for one that is too large."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise RequestError(413, f"the body has more than {most:,} bytes")
    return body


def app(desk: Desk) -> Starlette:
    """The web application of a desk; its engine must be open on the same event loop."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = RequestError(
                error.status_code, f"{request.method} {request.url.path}: {error.detail}"
            )
        assert isinstance(error, RequestError)
        desk.metrics.requests.labels(error.status).inc()
        headers = {} if error.retry is None else {"retry-after": str(error.retry)}
        return JSONResponse(error.as_json(), error.status, headers)

    def form(ask: Ask) -> Form:
        chat = isinstance(ask, Chat)
        name = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        return Form(name, desk.serving.name, chat, int(time.time()), ask.include_trials)

    async def asked(request: Request, kind: type[Ask]) -> Any:
        desk.allow(request.headers.get("authorization", ""))
        ask = parse(await _body(request, desk.limits.body), kind)
        if ask.beyond:
            raise RequestError(
                400,
                f"{', '.join(ask.beyond)}: the engine in this process does not support it; serve "
                "the model with vllm serve and put dto in front",
                ask.beyond[0],
            )
        return ask

    async def chat(request: Request) -> Any:
        ask = await asked(request, Chat)
        messages = [message.plain() for message in ask.messages]
        return _Exchange(desk, ask, form(ask), await desk.begin(ask, messages))

    async def text(request: Request) -> Any:
        ask = await asked(request, Text)
        if isinstance(ask.prompt, list) and any(isinstance(part, str) for part in ask.prompt):
            if len(ask.prompt) > 1:
                raise RequestError(400, "one prompt for each request", "prompt")
            prompt: Any = ask.prompt[0]
        else:
            prompt = ask.prompt
        if isinstance(prompt, str):
            prompt = desk.serving.ctx.tokenizer.encode(prompt)
        if not prompt:
            raise RequestError(400, "the prompt is empty", "prompt")
        return _Exchange(desk, ask, form(ask), await desk.begin(ask, prompt))

    async def answer(request: Request) -> Response:
        desk.allow(request.headers.get("authorization", ""))
        name = request.path_params["name"]
        return JSONResponse({"id": name, "answering": desk.answer(name)})

    async def models(request: Request) -> Response:
        desk.allow(request.headers.get("authorization", ""))
        served = desk.serving
        model = {
            "id": served.name, "object": "model", "created": 0, "owned_by": "dto",
            "max_model_len": served.ctx.engine.context, "exits": [*desk.exits],
        }  # fmt: skip
        return JSONResponse({"object": "list", "data": [model]})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "live": len(desk.live), "waiting": desk.waiting})

    async def metrics(request: Request) -> Response:
        desk.metrics.live.set(len(desk.live))
        desk.metrics.waiting.set(desk.waiting)
        return Response(desk.metrics.text(), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", text, methods=["POST"]),
            Route("/v1/requests/{name}/answer", answer, methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        exception_handlers={RequestError: refused, HTTPException: refused},
    )
