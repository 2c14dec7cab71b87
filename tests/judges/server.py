"""A chat server that answers requests for verdicts as a test wants it, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.engines.server import Request, Server

Reply = Callable[[str, list[int]], str | int]
"""(what the judge is asked, numbers of the patterns to judge) -> its words, or an HTTP status."""


def numbers_of(question: str) -> list[int]:
    found = re.search(r"Judge patterns (\d+) to (\d+),", question)
    assert found is not None
    return list(range(int(found[1]), int(found[2]) + 1))


def verdicts(numbers: list[int], kind: str = "redundant") -> str:
    """A reply as it should be."""
    entries = {str(number): {"reason": f"as {number} is", "verdict": kind} for number in numbers}
    return json.dumps(entries)


class JudgeServer(Server):
    """Serves the model `judge`; `asked` holds the requests for verdicts."""

    def __init__(self, tokenizer: Any, reply: Reply) -> None:
        super().__init__("chat", tokenizer)
        self.models = {"data": [{"id": "judge"}]}
        self.reply_to = reply
        self.asked: list[Request] = []
        self.generated = 0

    def respond(self, request: Request) -> tuple[int, Any]:
        question = request.body["messages"][-1]["content"] if request.body else ""
        if "<pattern " not in question:
            return super().respond(request)
        self.asked.append(request)
        reply = self.reply_to(question, numbers_of(question))
        if isinstance(reply, int):
            return reply, {"error": {"message": "the judge is ill"}}
        limit = request.body["max_tokens"]
        ids = [*self.encode(reply), self.tokenizer.eos_token_id]
        finish = "stop" if len(ids) <= limit else "length"
        choice = self.choice(0, ids[:limit], finish, request.body)
        self.generated += len(ids[:limit])
        usage = {"prompt_tokens": 1000, "completion_tokens": len(ids[:limit])}
        return 200, {"choices": [choice], "usage": usage}


@contextmanager
def judging(tokenizer: Any, reply: Reply) -> Iterator[JudgeServer]:
    """A server on an event loop of its own, in a thread: a run may have the main one."""
    server = JudgeServer(tokenizer, reply)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(server.connected, "127.0.0.1", 0)

    async def end() -> None:
        listening.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    try:
        listening = asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        yield server
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
