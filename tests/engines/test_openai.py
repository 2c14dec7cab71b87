"""The openai engine on a server that misbehaves, and on servers that can do little."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from dto.engines import open_engine
from dto.engines.openai_http import ABORT_TOKENS
from dto.errors import DtoError, EngineError
from dto.pipeline import STAGES
from dto.protocols import Chunk, Completion, Engine, Message, Sampling
from dto.recipe import ModelSettings, Recipe
from dto.resources import Resources as Opened
from dto.runs.reader import RunReader
from dto.usage import metered
from tests.engines.served import Served
from tests.engines.server import ANSWER, Bad, Dialect, Server, serve

PROMPT = list(range(20, 40))
ASK: list[Message] = [{"role": "user", "content": "Which digit?"}]
SAMPLING = Sampling(max_tokens=100, temperature=0.0, top_p=1.0)
SCHEMA = {"type": "object", "properties": {"number": {"type": "integer"}}}
KEY = "sk-secret-0123456789"


def settings(url: str, **changes: Any) -> ModelSettings:
    given = {"engine": "openai", "name": "nano", "server": url, "retries": 2, "timeout": 20.0}
    return ModelSettings.model_validate(given | changes)


@asynccontextmanager
async def opened(
    dialect: Dialect, nano: Served, **changes: Any
) -> AsyncGenerator[tuple[Engine, Server]]:
    """An engine that has found out about its server."""
    async with (
        serve(dialect, nano.tokenizer) as server,
        open_engine(settings(server.url, **changes)) as engine,
    ):
        server.requests.clear()
        server.peak = 0
        yield engine, server


async def streamed(engine: Engine, sampling: Sampling = SAMPLING) -> list[Chunk]:
    async with aclosing(engine.stream(PROMPT, sampling)) as stream:
        return [chunk async for chunk in stream]


async def one(engine: Engine, sampling: Sampling = SAMPLING) -> Completion:
    (completion,) = await engine.complete(PROMPT, sampling)
    return completion


PASSING = {
    "rate limit": Bad(429, {"error": {"message": "slower"}}, {"retry-after": "1"}),
    "error": Bad(500, {"error": {"message": "oops"}}),
    "overload": Bad(503, b"<html>busy</html>"),
    "cut": Bad(cut=True, events=3),
    "cut at once": Bad(cut=True),
}
EVENTS = {"content-type": "text/event-stream"}
LASTING = {
    "refusal": (Bad(400, {"error": {"message": "no such thing"}}), "answered 400: no such thing"),
    "detail": (Bad(422, {"detail": "odd"}), "answered 422: odd"),
    "truncated JSON": (
        Bad(body=b'{"choices": [{"text": "4'),
        "invalid JSON|finish reason",
    ),
    "truncated event": (
        Bad(body=b'data: {"cho\n\n', headers=EVENTS),
        "invalid JSON|a completion",
    ),
    "garbage": (Bad(body={"text": "5"}), "a completion|finish reason"),
    "garbled event": (
        Bad(body=b'data: {"text": "5"}\n\n', headers=EVENTS),
        "a completion",
    ),
    "plain text": (
        Bad(body=b"5", headers={"content-type": "text/plain"}),
        "a completion|reason",
    ),
    "filtered": (
        Bad(body={"choices": [{"text": "", "finish_reason": "content_filter"}]}),
        "content_filter|finish reason",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSING)
async def test_what_may_pass_is_tried_again(nano: Served, name: str) -> None:
    async with opened("vllm", nano) as (engine, server):
        server.bad.append(PASSING[name])
        with metered() as usage:
            found = await one(engine)
        assert (found.text, found.finish_reason) == (ANSWER, "stop")
        first, second = server.requests
        assert first.body == second.body
        if name == "rate limit":  # backoff alone waits for half a second at most
            assert second.at - first.at > 0.9
        assert usage.failed == 0
        assert usage.wasted == (3 + ABORT_TOKENS + 64 if name == "cut" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["vllm", "text"])
@pytest.mark.parametrize("name", LASTING)
async def test_everything_else_is_a_failed_completion(
    nano: Served, name: str, dialect: Dialect
) -> None:
    bad, reason = LASTING[name]
    async with opened(dialect, nano) as (engine, server):
        server.bad.append(bad)
        with metered() as usage:
            failed = await one(engine)
            fine = await one(engine)
        assert failed.finish_reason == "failed" and failed.token_ids == ()
        assert re.search(reason, failed.error) and "\n" not in failed.error
        assert len(server.requests) == 2 and usage.failed == 1  # it was not tried again
        assert fine.text == ANSWER


@pytest.mark.slow
async def test_retries_are_bounded(nano: Served) -> None:
    async with opened("vllm", nano, retries=1) as (engine, server):
        server.bad.extend([Bad(500, {"error": {"message": "ill"}})] * 3)
        failed = await one(engine)
        assert "answered 500: ill" in failed.error and len(server.requests) == 2


async def test_a_stream_cut_in_the_middle_is_not_begun_again(nano: Served) -> None:
    async with opened("vllm", nano) as (engine, server):
        server.bad.append(Bad(cut=True, events=4))
        with metered() as usage:
            *chunks, last = await streamed(engine)
        ids = [token for chunk in chunks for token in chunk.token_ids]
        assert ids == server.encode(ANSWER)[:4]
        assert last.finish_reason == "failed" and "failed" in last.error
        assert len(server.requests) == 1
        assert (usage.failed, usage.generated, usage.wasted) == (1, 4 + ABORT_TOKENS, ABORT_TOKENS)


async def test_a_stream_without_an_end_is_no_answer(nano: Served) -> None:
    async with opened("text", nano) as (engine, server):
        body = b'data: {"choices": [{"index": 0, "text": "7", "finish_reason": null}]}\n\n'
        server.bad.append(Bad(body=body, headers=EVENTS))
        *_, last = await streamed(engine)
        assert last.finish_reason == "failed" and "finish reason" in last.error


@pytest.mark.slow
@pytest.mark.parametrize(("dialect", "events"), [("vllm", 0), ("vllm", 3), ("text", 0)])
async def test_a_hang_ends_with_the_timeout(nano: Served, dialect: Dialect, events: int) -> None:
    async with opened(dialect, nano, timeout=1.0, retries=0) as (engine, server):
        server.bad.append(Bad(hangs=True, events=events))
        with metered() as usage:
            failed = await one(engine)
        assert "no answer" in failed.error and "model.timeout" in failed.error
        assert 0 < usage.wasted == usage.generated <= SAMPLING.max_tokens  # it may have gone on
        assert (await one(engine)).text == ANSWER


@pytest.mark.parametrize("dialect", ["vllm", "text"])
async def test_the_key_is_sent_and_never_shown(
    nano: Served,
    dialect: Dialect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    echo = f"{'.' * 585}Authorization: Bearer {KEY}"  # wherever the message is cut off
    async with opened(dialect, nano, api_key="MY_KEY") as (engine, server):
        for bad in (
            Bad(400, {"error": {"message": echo}}),
            Bad(401, {"error": {"message": f"Bearer {KEY}"}}),
            Bad(403, f"Bearer {KEY}".encode()),
            Bad(body={"error": {"message": f"Bearer {KEY}"}}),
            Bad(body={"choices": [{"index": 0, "finish_reason": f"Bearer {KEY}"}]}),
            Bad(body=f'data: {{"choices": "Bearer {KEY}"}}\n\n'.encode(), headers=EVENTS),
        ):
            server.bad.extend([bad] * 2)
            failed = await one(engine)
            *_, last = await streamed(engine)
            assert failed.finish_reason == last.finish_reason == "failed"
            assert KEY[:10] not in failed.error + last.error
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert KEY not in repr(engine) + repr(vars(engine))
    async with serve("vllm", nano.tokenizer) as server:
        server.models = {"data": []}
        server.bad.extend([Bad(401, {"error": {"message": f"Bearer {KEY} is wrong"}})] * 9)
        with pytest.raises(EngineError, match="MY_KEY") as error:
            async with open_engine(settings(server.url, api_key="MY_KEY")):
                pass
        assert KEY not in str(error.value)
    assert KEY not in caplog.text and caplog.text


async def test_text_is_cut_at_the_stop_and_encoded(nano: Served) -> None:
    async with opened("text", nano) as (engine, server):
        assert not engine.capabilities.token_prompts
        whole, stopped, short = [
            await one(engine, replace(SAMPLING, stop=stop, max_tokens=most))
            for stop, most in (((), 100), (("}", "{6"), 100), ((), 5))
        ]
        chunks = await streamed(engine, replace(SAMPLING, stop=("}",)))
        assert server.requests[0].body["prompt"] == nano.tokenizer.decode(PROMPT)
        ids = server.encode(ANSWER)
        assert (whole.text, whole.finish_reason, whole.ids_from) == (ANSWER, "stop", "encoded")
        assert list(whole.token_ids) == [*ids, nano.tokenizer.eos_token_id]
        assert (short.text, short.finish_reason) == (nano.tokenizer.decode(ids[:5]), "length")
        cut = ANSWER[: ANSWER.index("}") + 1]
        assert (stopped.text, stopped.stop, stopped.finish_reason) == (cut, "}", "stop")
        assert list(stopped.token_ids) == server.encode(cut)
        assert "".join(chunk.text for chunk in chunks) == cut
        assert [token for chunk in chunks for token in chunk.token_ids] == list(stopped.token_ids)
        assert (chunks[-1].finish_reason, chunks[-1].stop) == ("stop", "}")
        samples = await engine.complete(PROMPT, replace(SAMPLING, seed=7), 3)
        assert [sample.text for sample in samples] == [ANSWER] * 3
        assert sorted(request.body["seed"] for request in server.requests[-3:]) == [7, 8, 9]


async def test_what_a_text_server_cannot_do_is_refused(nano: Served) -> None:
    async with opened("text", nano) as (engine, server):
        for change in (
            {"logprobs": 0},
            {"banned": (5,)},
            {"stop_token_ids": (5,)},
            {"top_k": 3},
            {"min_p": 0.1},
        ):
            with pytest.raises(EngineError):
                await engine.complete(PROMPT, replace(SAMPLING, **change))  # type: ignore[arg-type]
            with pytest.raises(EngineError):
                await streamed(engine, replace(SAMPLING, **change))  # type: ignore[arg-type]
        with pytest.raises(EngineError):
            await engine.score(PROMPT, PROMPT)
        assert not server.requests


async def test_filters_and_penalties_reach_a_server_that_takes_them(nano: Served) -> None:
    asked = replace(SAMPLING, temperature=1.0, presence_penalty=0.5)
    async with opened("vllm", nano) as (engine, server):
        await one(engine, replace(asked, top_k=20, min_p=0.1))
        body = server.requests[-1].body
        assert (body["top_k"], body["min_p"], body["presence_penalty"]) == (20, 0.1, 0.5)
        await one(engine)
        body = server.requests[-1].body  # sent all the same: the model's own defaults never count
        assert (body["top_k"], body["min_p"], body["presence_penalty"]) == (0, 0.0, 0.0)
    async with opened("text", nano) as (engine, server):
        await one(engine, asked)
        assert server.requests[-1].body["presence_penalty"] == 0.5
        await one(engine)
        assert "presence_penalty" not in server.requests[-1].body


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "settings_of", "dialect", "said"),
    [
        ("sample", {"top_k": 20}, "text", "sample: the server of 'nano' .* top_k .*here 20"),
        ("evaluate", {"min_p": 0.1}, "text", "evaluate: .* min_p .* 0.1"),
        ("sample", {"presence_penalty": 1.5}, "text", "sample: .* presence_penalty .here 1.5"),
        ("sample", {"top_k": 20, "presence_penalty": 1.5}, "vllm", None),
        ("sample", {}, "text", None),
    ],
)
async def test_what_a_server_cannot_sample_is_refused_at_the_start(
    nano: Served,
    group: str,
    settings_of: dict[str, Any],
    dialect: Dialect,
    said: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "dto")
    async with serve(dialect, nano.tokenizer) as server:
        server.refuses = {"presence_penalty": 0.0}
        if dialect == "vllm":
            server.refuses = {}
        recipe = Recipe.model_validate(
            {"name": "x", "model": settings(server.url), group: settings_of}
        )
        async with Opened(RunReader("x", recipe)) as serving:
            if said is None:
                await serving.context(STAGES["sample"], "base")
                told = "presence_penalty counts only the tokens of one request" in caplog.text
                assert told == ("presence_penalty" in settings_of)
            else:
                with pytest.raises(EngineError, match=said):
                    await serving.context(STAGES["sample"], "base")


async def test_template_arguments_go_to_a_chat_server_or_are_refused(nano: Served) -> None:
    arguments = {"enable_thinking": False}
    async with opened("chat", nano, name="other", template=arguments) as (engine, server):
        await engine.complete(ASK, SAMPLING)
        assert server.requests[-1].body["chat_template_kwargs"] == arguments
    async with opened("chat", nano, name="other") as (engine, server):
        await engine.complete(ASK, SAMPLING)
        assert "chat_template_kwargs" not in server.requests[-1].body
    async with serve("chat", nano.tokenizer) as server:
        server.refuses = {"chat_template_kwargs": None}
        with pytest.raises(
            EngineError, match=r"model.template: .* accepts no arguments for a chat"
        ):
            async with open_engine(settings(server.url, name="other", template=arguments)):
                pass
    own = ModelSettings(engine="openai", name="gpt", template=arguments)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"model.template: OpenAI's own server"):
        open_engine(own)


@pytest.mark.parametrize("engine", ["transformers", "openai"])
async def test_a_typo_in_the_template_is_found_before_any_work(nano: Served, engine: str) -> None:
    async with serve("vllm", nano.tokenizer) as server:
        model = settings(server.url, engine=engine, template={"enable_thinkin": True})
        async with Opened(RunReader("x", Recipe(name="x", model=model))) as serving:
            with pytest.raises(DtoError, match="has no argument 'enable_thinkin'"):
                await serving.context(STAGES["sample"], "base")
            with pytest.raises(DtoError, match="has no argument 'enable_thinkin'"):
                await serving.context(STAGES["segment"], "base")
        assert not server.requests


async def test_a_bos_is_not_doubled(nano: Served) -> None:
    async with serve("text", nano.tokenizer) as server:
        server.adds_bos = True
        engine = open_engine(settings(server.url))
        assert engine.tokenizer is not None
        engine.tokenizer.bos_token_id = PROMPT[0]
        async with engine:
            await one(engine)
        assert server.requests[-1].body["prompt"] == nano.tokenizer.decode(PROMPT[1:])


async def test_chat_without_a_tokenizer(nano: Served) -> None:
    async with opened("chat", nano, name="other") as (engine, server):
        assert engine.tokenizer is None and engine.capabilities.json_schema
        with metered() as usage:
            (answer,) = await engine.complete(ASK, SAMPLING)
        assert (answer.text, answer.token_ids, answer.prompt_tokens) == (ANSWER, (), 9)
        assert (usage.prompt, usage.wasted) == (9, 0) and usage.generated > 9
        (answer,) = await engine.complete(ASK, replace(SAMPLING, json_schema=SCHEMA))
        assert answer.text == '{"number": 5}'
        assert server.requests[-1].body["response_format"]["json_schema"]["schema"] == SCHEMA
        (answer,) = await engine.complete(ASK, replace(SAMPLING, stop=("{",)))
        assert (answer.text, answer.stop) == (ANSWER[: ANSWER.index("{") + 1], "{")
        with pytest.raises(EngineError, match="messages"):
            await engine.complete(PROMPT, SAMPLING)
        assert engine.capabilities.messages_only
        recipe = Recipe(name="x", model=settings(server.url, name="other"))
        async with Opened(RunReader("x", recipe)) as serving:
            with pytest.raises(EngineError, match="served as chat"):
                await serving.context(STAGES["sample"], "base")


async def test_a_schema_that_is_ignored_is_no_capability(nano: Served) -> None:
    async with serve("chat", nano.tokenizer) as server:
        server.keeps_schema = False
        async with open_engine(settings(server.url, name="other")) as engine:
            with pytest.raises(EngineError, match="JSON"):
                await engine.complete(ASK, replace(SAMPLING, json_schema=SCHEMA))


async def test_fields_that_a_server_refuses(nano: Served) -> None:
    async with serve("chat", nano.tokenizer) as server:
        server.refuses = {"max_tokens": None, "temperature": 1.0, "stream_options": None}
        async with open_engine(settings(server.url, name="other")) as engine:
            server.requests.clear()
            (answer,) = await engine.complete(ASK, replace(SAMPLING, temperature=1.0))
            assert answer.text == ANSWER
            assert server.requests[0].body["max_completion_tokens"] == SAMPLING.max_tokens
            with pytest.raises(EngineError, match="temperature = 0"):
                await engine.complete(ASK, SAMPLING)


async def test_requests_under_way_are_bounded(nano: Served) -> None:
    async with opened("vllm", nano, concurrency=3) as (engine, server):
        server.pause = 0.002
        done = await asyncio.gather(*(one(engine) for _ in range(12)))
        assert [completion.text for completion in done] == [ANSWER] * 12
        assert server.peak == 3


async def test_giving_up_closes_the_connection(nano: Served) -> None:
    async with opened("vllm", nano, concurrency=1) as (engine, server):
        server.pause = 0.02
        with metered() as usage:
            async with aclosing(engine.stream(PROMPT, SAMPLING)) as stream:
                async for chunk in stream:
                    assert chunk.token_ids
                    break
            task = asyncio.create_task(one(engine))
            while len(server.requests) < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled() and usage.requests == 2
        assert usage.generated - usage.wasted == 1
        server.pause = 0.0
        assert (await one(engine)).text == ANSWER  # the only slot is free
        assert [request.left for request in server.requests] == [True, True, False]


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_reader_that_pauses_holds_nothing_up(nano: Served, leaves: bool) -> None:
    async with opened("vllm", nano) as (engine, server):
        chunks: list[Chunk] = []
        with metered() as usage:
            async with aclosing(engine.stream(PROMPT, SAMPLING)) as stream:
                async for chunk in stream:
                    chunks.append(chunk)
                    while server.under_way:
                        await asyncio.sleep(0.01)
                    if leaves:
                        break
        ids = [*server.encode(ANSWER), nano.tokenizer.eos_token_id]
        taken = [token for chunk in chunks for token in chunk.token_ids]
        assert taken == ids[: len(taken)] and (leaves or taken == ids)
        assert usage.generated - usage.wasted == len(taken)
        assert leaves == bool(usage.wasted) and usage.generated >= len(ids)


async def test_leaving_the_engine_fails_what_is_under_way(nano: Served) -> None:
    async with serve("vllm", nano.tokenizer) as server:
        engine = open_engine(settings(server.url))
        async with engine:
            server.bad.extend([Bad(hangs=True, events=2)] * 2)
            asked = len(server.requests)
            tasks = [asyncio.create_task(one(engine)), asyncio.create_task(streamed(engine))]
            while len(server.requests) < asked + 2:
                await asyncio.sleep(0.01)
        completion, chunks = await asyncio.gather(*tasks)
        assert isinstance(completion, Completion) and "closed" in completion.error
        assert chunks[-1].finish_reason == "failed"
        with pytest.raises(EngineError, match="not serving"):
            await one(engine)
        async with engine:  # and it can serve again
            assert (await one(engine)).text == ANSWER


WRONG = {
    "model": ({"name": "nanny"}, "does not serve model 'nanny'; it serves nano, other"),
    "context": ({"context": 513}, "at most 512: lower it"),
    "down": ({"server": "http://127.0.0.1:9/v1"}, "connection to .* failed.*start the server"),
    "url": ({"server": "localhost:8000"}, "http://"),
    "secret": ({"server": "http://me:hush@localhost/v1"}, "model.api_key"),
    "key": ({"server": None, "api_key": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
    "tokenizer": ({"tokenizer": "/no/such/folder"}, "model.tokenizer '/no/such/folder'"),
    "path": ({"api": "chat"}, "does not answer — chat: .* no such path"),
    "no tokenizer": ({"name": "other", "api": "completions"}, "model.tokenizer"),
    "how to start it": ({"server": "http://127.0.0.1:9/v1"}, "`VLLM_MAX_STOP.* vllm serve nano "),
    "how to name it": ({"name": "nanny"}, "nano, other — set model.name to one of these"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_wrong_is_said_at_the_start(nano: Served, name: str) -> None:
    changes, reason = WRONG[name]
    async with serve("vllm", nano.tokenizer) as server:
        with pytest.raises((EngineError, ValueError), match=reason) as error:
            async with open_engine(settings(server.url, **changes)):
                pass
        assert "hush" not in str(error.value)
        assert isinstance(error.value, ValueError) or "\n" not in str(error.value)


async def test_another_tokenizer_is_noticed(nano: Served) -> None:
    async with serve("vllm", nano.tokenizer) as server:
        real = server.choice
        server.choice = lambda *args: real(*args) | {"prompt_token_ids": [1, 2]}  # type: ignore[method-assign]
        with pytest.raises(EngineError, match="different ids"):
            async with open_engine(settings(server.url)):
                pass
