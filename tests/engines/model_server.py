"""A vLLM-like server on loopback whose tokens come from a model, by our own engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dto.engines.transformers import TransformersEngine
from dto.protocols import Completion, Sampling
from dto.recipe import ModelSettings
from tests.engines.server import Request, Server

SAMPLED = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "seed",
           "logprobs")  # fmt: skip


class ModelServer(Server):
    """Token ids in and out, as vLLM's completions; `name` is what it calls the model."""

    def __init__(self, engine: TransformersEngine, name: str) -> None:
        super().__init__("vllm", engine.tokenizer)
        self.engine = engine
        self.models = {"data": [{"id": name, "root": name, "max_model_len": engine.context}]}

    async def answered(self, request: Request) -> tuple[int, Any]:
        if request.path != "/completions":
            return self.respond(request)
        body = request.body
        prompt = body["prompt"]
        prompt = list(self.encode(prompt)) if isinstance(prompt, str) else prompt
        sampling = Sampling(
            **{key: body[key] for key in SAMPLED if key in body},
            stop=tuple(body.get("stop") or ()),
            stop_token_ids=tuple(body.get("stop_token_ids") or ()),
            banned=tuple(map(int, body.get("logit_bias") or {})),
        )
        completions = await self.engine.complete(prompt, sampling, body.get("n", 1))
        choices = [self.chosen(*each) for each in enumerate(completions)]
        if "prompt_logprobs" in body:
            scores = await self.engine.score(prompt[:1], prompt[1:])
            pairs = zip(prompt[1:], scores, strict=True)
            rows = [None, *({str(token): {"logprob": score}} for token, score in pairs)]
            choices[0]["prompt_logprobs"] = rows
        generated = sum(len(each.token_ids) for each in completions)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": generated}
        return 200, {"choices": choices, "usage": usage}

    def chosen(self, index: int, completion: Completion) -> dict[str, Any]:
        ids = list(completion.token_ids)
        choice = {"index": index, "finish_reason": completion.finish_reason, "text": "",
                  "token_ids": ids, "stop_reason": completion.stop}  # fmt: skip
        if completion.logprobs is not None:
            tops = completion.top_logprobs or [{} for _ in ids]
            choice["logprobs"] = {
                "token_logprobs": list(completion.logprobs),
                "top_logprobs": [
                    {f"token_id:{token}": score for token, score in top.items()} for top in tops
                ],
            }
        return choice

    def events(self, body: dict[str, Any], reply: dict[str, Any]) -> list[Any]:
        """One event for each choice, as with a large `stream_interval`; then the usage."""
        events: list[Any] = [{"choices": [choice]} for choice in reply["choices"]]
        if "stream_options" in body:
            events.append({"choices": [], "usage": reply["usage"]})
        return [*events, "[DONE]"]

    @property
    def asked(self) -> int:
        """Completions that were asked for."""
        return sum(request.path == "/completions" for request in self.requests)


@contextmanager
def serving(model: str, name: str = "", port: int = 0) -> Iterator[ModelServer]:
    """A server of `model` in a thread, for code that blocks or starts its own loop."""
    ready, ended = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    servers: list[ModelServer] = []

    async def run() -> None:
        async with TransformersEngine(ModelSettings(name=model), model) as engine:
            server = ModelServer(engine, name or model)
            server.url = f"http://127.0.0.1:{port}/v1" if port else ""
            await server.start()
            servers.append(server)
            ready.set()
            await ended.wait()
            assert server.listening is not None
            server.listening.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    try:
        if not ready.wait(60):
            raise RuntimeError(f"no server of {model}")
        yield servers[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(30)
        loop.close()
