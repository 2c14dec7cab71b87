"""A small OpenAI-compatible server on loopback that can be told to misbehave.

It answers every prompt with one text, in one of three dialects: `vllm` (token ids), `text`
(completions only, no token ids) and `chat`. Replies are real HTTP and can be cut anywhere.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

ANSWER = "7 plus 8 ends in 5. So \\boxed{5} it is. Or {6}?"
Dialect = Literal["vllm", "text", "chat"]


@dataclass(frozen=True)
class Bad:
    """One misbehaviour: a status with a body, or a reply that is `cut` or `hangs`.

    Of a stream so many events are sent before it does; `body` replaces the right one.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    events: int = 0
    cut: bool = False
    hangs: bool = False


@dataclass
class Request:
    """What was asked, when, and whether the client left before the end."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float
    left: bool = False


class Server:
    """Serves until the block of :func:`serve` ends. `bad` holds what the next requests get."""

    def __init__(self, dialect: Dialect, tokenizer: Any) -> None:
        self.dialect = dialect
        self.tokenizer = tokenizer
        self.answer = ANSWER
        self.models: Any = {"data": [{"id": "nano", "max_model_len": 512}, {"id": "other"}]}
        self.refuses: dict[str, Any] = {}
        """Fields that are answered with 400, unless they have this value."""
        self.keeps_schema = True
        self.adds_bos = False
        self.pause = 0.0
        """Seconds between the events of a stream, and before any other reply."""
        self.bad: deque[Bad] = deque()
        self.requests: list[Request] = []
        self.under_way = self.peak = 0
        self.url = ""
        self.listening: asyncio.Server | None = None
        self.writers: set[asyncio.StreamWriter] = set()
        self.stands_still = False
        """Whether it accepts requests and answers none, not even those for its models."""

    async def start(self) -> None:
        """Listen, at the port of an earlier start if there was one."""
        port = int(self.url.split(":")[2].split("/")[0]) if self.url else 0
        self.listening = await asyncio.start_server(self.connected, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self.listening.sockets[0].getsockname()[1]}/v1"

    def die(self) -> None:
        """End as a killed process does: all connections break, and new ones are refused."""
        assert self.listening is not None
        self.listening.close()
        for writer in tuple(self.writers):
            writer.transport.abort()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                headers = {
                    key.lower(): value for key, _, value in (line.partition(": ") for line in lines)
                }
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                path = first.split(" ")[1]
                path = path.removeprefix("/v1") if path.startswith("/v1/") else f"?{path}"
                body = json.loads(raw) if raw else {}
                now = asyncio.get_running_loop().time()
                request = Request(path, body, headers, now)
                self.requests.append(request)
                self.under_way += 1
                self.peak = max(self.peak, self.under_way)
                leaving = asyncio.create_task(reader.read(1))
                working = asyncio.create_task(self.reply(request, writer))
                done, _ = await asyncio.wait(
                    (leaving, working), return_when=asyncio.FIRST_COMPLETED
                )
                self.under_way -= 1
                request.left = working not in done
                working.cancel()
                leaving.cancel()
                await asyncio.gather(working, leaving, return_exceptions=True)
                return  # one request a connection
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    async def reply(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if self.stands_still:
            await asyncio.sleep(3600)
        bad = self.bad.popleft() if self.bad and request.path != "/models" else Bad()
        if bad.body is not None:
            status, body = bad.status, bad.body
        else:
            status, body = await self.answered(request)
        streams = bool(request.body.get("stream")) and status == 200 and bad.body is None
        kind = "text/event-stream" if streams else "application/json"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        length = {} if streams else {"content-length": str(len(data))}
        headers = {"content-type": kind, "connection": "close", **length, **bad.headers}
        if streams:
            headers["transfer-encoding"] = "chunked"
        lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
        head = f"HTTP/1.1 {status} -\r\n{lines}\r\n".encode()
        if not streams:
            await asyncio.sleep(3600 if bad.hangs else self.pause)
            writer.write(head + (data[: len(data) // 2] if bad.cut else data))
            await writer.drain()
            return
        writer.write(head)
        for index, event in enumerate(self.events(request.body, body)):
            if (bad.cut or bad.hangs) and index == bad.events:
                await asyncio.sleep(3600 if bad.hangs else 0.01)
                return
            await asyncio.sleep(self.pause)
            line = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
            writer.write(b"%x\r\n%s\r\n" % (len(line), line))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def answered(self, request: Request) -> tuple[int, Any]:
        return self.respond(request)

    def respond(self, request: Request) -> tuple[int, Any]:
        body = request.body
        if request.path == "/models":
            return 200, self.models
        wanted = "/chat/completions" if self.dialect == "chat" else "/completions"
        if request.path != wanted:
            return 404, {"error": {"message": "no such path"}}
        if self.dialect == "text" and not isinstance(body["prompt"], str):
            return 400, {"error": {"message": "prompt must be text"}}
        for name, value in self.refuses.items():
            if name in body and body[name] != value:
                return 400, {"error": {"message": f"Unsupported parameter: '{name}'"}}
        text = self.answer
        if "response_format" in body and self.keeps_schema:
            text = '{"number": 5}'
        ids = [*self.encode(text), self.tokenizer.eos_token_id]
        ids = [i for i in ids if str(i) not in body.get("logit_bias", {})]
        limit = body.get("max_tokens", body.get("max_completion_tokens", 16))
        ids, finish = ids[:limit], "stop" if len(ids) <= limit else "length"
        choices = [self.choice(index, ids, finish, body) for index in range(body.get("n", 1))]
        return 200, {"choices": choices, "usage": self.usage(body, len(ids))}

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: list[int]) -> str:
        shown = ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids
        return str(self.tokenizer.decode(shown, skip_special_tokens=False))

    def usage(self, body: dict[str, Any], generated: int) -> dict[str, Any]:
        prompt = body.get("prompt")
        length = len(self.encode(prompt) if isinstance(prompt, str) else prompt or [0] * 9)
        return {"prompt_tokens": length + self.adds_bos, "completion_tokens": generated}

    def choice(
        self, index: int, ids: list[int], finish: str | None, body: dict[str, Any]
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": finish}
        if self.dialect == "chat":
            kind = "delta" if body.get("stream") else "message"
            return choice | {kind: {"role": "assistant", "content": self.decode(ids)}}
        choice["text"] = self.decode(ids)
        if self.dialect == "vllm":
            choice |= {"token_ids": ids, "stop_reason": None}
            if body.get("logprobs") is not None:
                choice["logprobs"] = {
                    "token_logprobs": [-0.5] * len(ids),
                    "top_logprobs": [{f"token_id:{token}": -0.5} for token in ids],
                }
        return choice

    def events(self, body: dict[str, Any], reply: dict[str, Any]) -> list[Any]:
        """The reply token by token, then its usage."""
        events: list[Any] = []
        for choice in reply["choices"]:
            ids = choice.get("token_ids")
            if ids is None:
                text = choice.get("text", choice.get("delta", {}).get("content"))
                ids = self.encode(text)
            last = len(ids) - 1
            for at, token in enumerate(ids):
                finish = choice["finish_reason"] if at == last else None
                piece = self.choice(choice["index"], [token], finish, body)
                events.append({"choices": [piece]})
        if "stream_options" in body:
            events.append({"choices": [], "usage": reply["usage"]})
        return [*events, "[DONE]"]


@asynccontextmanager
async def serve(dialect: Dialect, tokenizer: Any) -> AsyncGenerator[Server]:
    server = Server(dialect, tokenizer)
    await server.start()
    try:
        yield server
    finally:
        if server.listening is not None:
            server.listening.close()
