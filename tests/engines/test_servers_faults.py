"""Servers that end, hang, refuse or differ: their requests go on elsewhere, and nothing is lost."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dto.engines import open_engine, places, servers
from dto.engines.servers import ServersEngine
from dto.engines.transformers import TransformersEngine
from dto.errors import DtoError, EngineError
from dto.pipeline import open_run, run_stages
from dto.protocols import Chunk, Sampling
from dto.recipe import ModelSettings, make_recipe
from dto.runs.reader import RunReader
from dto.usage import Usage, metered
from tests.engines.model_server import ModelServer
from tests.engines.served import Served
from tests.engines.server import ANSWER, Bad, Dialect, Server, serve
from tests.engines.test_servers import prompt, settings

SAMPLING = Sampling(max_tokens=100, temperature=0.0, top_p=1.0)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(servers, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(places, "ANSWER_SECONDS", 0.2)


@asynccontextmanager
async def opened(
    nano: Served, count: int = 2, **changes: Any
) -> AsyncGenerator[tuple[ServersEngine, list[Server]]]:
    async with AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(serve("vllm", nano.tokenizer)) for _ in range(count)
        ]
        made = open_engine(settings([server.url for server in started], **changes))
        assert isinstance(made, ServersEngine)
        engine = await stack.enter_async_context(made)
        for server in started:
            server.requests.clear()
        yield engine, started


async def ask(engine: ServersEngine, numbers: range, n: int = 1) -> Usage:
    """Ask a question for each number at once; all must be answered as if nothing had happened."""
    with metered() as usage:
        asked = (engine.complete(prompt(number), SAMPLING, n) for number in numbers)
        replies = await asyncio.gather(*asked)
    assert all(each.text == ANSWER for reply in replies for each in reply)
    assert (usage.requests, usage.failed) == (len(numbers) * n, 0)
    kept = sum(len(each.token_ids) for reply in replies for each in reply)
    assert usage.generated - usage.wasted == kept
    return usage


async def text_of(engine: ServersEngine, number: int) -> tuple[str, list[Chunk]]:
    async with aclosing(engine.stream(prompt(number), SAMPLING)) as chunks:
        received = [chunk async for chunk in chunks]
    return "".join(chunk.text for chunk in received), received


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def questions(server: Server) -> int:
    """How often a server was asked whether it is up."""
    return sum(request.path == "/models" for request in server.requests)


async def test_a_server_that_refuses_connections_and_comes_back(
    nano: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(nano) as (engine, (first, second)):
        first.die()
        usage = await ask(engine, range(40), 2)
        assert usage.wasted == 0  # a refused connection computes nothing
        assert caplog.text.count("has ended") == 1
        assert (await text_of(engine, 3))[0] == ANSWER
        await first.start()
        await until(lambda: "is back" in caplog.text)
        first.requests.clear()
        second.requests.clear()
        await ask(engine, range(60, 80))
        assert min(len(first.requests), len(second.requests)) >= 4
        lost, kept = engine.shared()
        assert (lost["deaths"], kept["deaths"], kept["lost"]) == (1, 0, 0) and lost["lost"] >= 2
        assert lost["requests"] + kept["requests"] == 80 + 1 + 20


async def test_a_server_that_ends_while_it_answers(nano: Served) -> None:
    """What was read of its replies counts as wasted, and is sampled again."""
    async with opened(nano) as (engine, (first, second)):
        first.pause = second.pause = 0.02
        streams = [asyncio.create_task(text_of(engine, number)) for number in range(8)]
        asked = asyncio.create_task(ask(engine, range(20, 40)))
        await until(lambda: first.under_way > 4)
        await asyncio.sleep(0.2)
        first.die()
        usage = await asked
        assert usage.wasted > 0
        for text, received in await asyncio.gather(*streams):
            assert text == ANSWER and received[-1].finish_reason == "stop"
            ids = [token for chunk in received for token in chunk.token_ids]
            assert ids == [*first.encode(ANSWER), nano.tokenizer.eos_token_id]


async def test_a_stream_that_another_server_would_continue_differently_fails(
    nano: Served,
) -> None:
    async with opened(nano) as (engine, started):
        for server in started:
            server.pause = 0.02
        with metered() as usage:
            stream = asyncio.create_task(text_of(engine, 1))
            await until(lambda: any(server.under_way for server in started))
            await asyncio.sleep(0.2)
            first, other = sorted(started, key=lambda server: -server.under_way)
            other.answer = "6, since it differs"
            first.die()
            _, received = await stream
        assert received[-1].finish_reason == "failed"
        assert "sampled different tokens" in received[-1].error
        assert (usage.requests, usage.failed) == (1, 1)


@pytest.mark.parametrize("wholly", [True, False], ids=["hangs", "one request hangs"])
async def test_a_server_that_hangs(
    nano: Served, wholly: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that accepts and answers nothing is found; a slow request is not taken from one."""
    async with opened(nano) as (engine, (first, second)):
        first.stands_still = wholly
        if not wholly:
            first.pause = 0.02  # the whole answer takes longer than SILENT_SECONDS
            first.bad.append(Bad(hangs=True, events=3))
        asked = asyncio.create_task(ask(engine, range(12)))
        if wholly:
            await asked
            assert caplog.text.count("has ended") == 1 and "said nothing" in caplog.text
            assert questions(second) == 0 and questions(first) < 12
            return
        await asyncio.wait([asked], timeout=1.5)
        assert not asked.done() and "has ended" not in caplog.text
        assert 1 <= questions(first) <= 12  # one for each time of silence, not for each request
        first.die()
        await asked


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_server_that_refuses_for_a_while(nano: Served, status: int) -> None:
    async with opened(nano) as (engine, (first, second)):
        refusal = {"error": {"message": "later"}}
        first.bad.extend(Bad(status, refusal, {"retry-after": "1"}) for _ in range(30))
        usage = await ask(engine, range(20))
        assert usage.wasted == 0
        asked = len(first.requests)
        assert asked < 20 and questions(first) == 0
        await ask(engine, range(100, 108))
        assert len(first.requests) == asked  # it is left alone as long as it wants
        first.bad.clear()
        for turn in range(100):  # several refusals in a row make the pause longer
            await asyncio.sleep(0.2)
            await ask(engine, range(200 + 20 * turn, 220 + 20 * turn))
            if len(first.requests) > asked:
                break
        assert len(first.requests) > asked and len(second.requests) >= 28


async def test_all_servers_refuse_and_one_answers_later(nano: Served) -> None:
    async with opened(nano, retries=3) as (engine, started):
        loop = asyncio.get_running_loop()
        for server in started:
            refusal = {"error": {"message": "later"}}
            server.bad.extend(Bad(503, refusal, {"retry-after": "1"}) for _ in range(2))
        before = loop.time()
        await ask(engine, range(4))
        assert loop.time() - before >= 0.9


async def test_requests_fail_with_all_reasons_when_all_servers_end(nano: Served) -> None:
    async with opened(nano) as (engine, started):
        for server in started:
            server.die()
        with metered() as usage:
            (reply,) = await engine.complete(prompt(1), SAMPLING)
            _, received = await text_of(engine, 2)
        for error in (reply.error, received[-1].error):
            assert all(server.url in error for server in started) and "connection" in error
        assert (usage.requests, usage.failed, usage.generated) == (2, 2, 0)
        with pytest.raises(EngineError, match="score"):
            await engine.score(prompt(1), prompt(2))


async def test_a_server_that_is_down_at_the_start_joins_later(
    nano: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve("vllm", nano.tokenizer) as first, serve("vllm", nano.tokenizer) as late:
        late.die()
        async with open_engine(settings([first.url, late.url])) as engine:
            assert isinstance(engine, ServersEngine) and "does not answer yet" in caplog.text
            await ask(engine, range(4))
            await late.start()
            await until(lambda: "is back" in caplog.text)
            late.requests.clear()
            await ask(engine, range(20, 40))
            assert late.requests
    dead = ["http://127.0.0.1:9/v1", "http://127.0.0.1:19/v1"]
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9/.*; http://127\.0\.0\.1:19/"):
        async with open_engine(settings(dead)):
            pass


async def test_a_server_that_comes_back_as_another_stays_out(
    nano: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(nano) as (engine, (first, _)):
        first.die()
        await ask(engine, range(4))
        first.models = {"data": [{"id": "nano", "max_model_len": 256}]}
        await first.start()
        await until(lambda: "cannot be used" in caplog.text)
        first.requests.clear()
        await ask(engine, range(20))
        assert not [request for request in first.requests if request.path != "/models"
                    and request.body["max_tokens"] == 100]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"models": {"data": [{"id": "other"}]}}, "does not serve model 'nano'"),
        ({"models": {"data": [{"id": "nano", "max_model_len": 256}]}}, "at most 256 tokens"),
        ({"vocabulary": [9]}, "encode 'Name a number.' as different ids"),
        ({"dialect": "text"}, "start all servers alike"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_servers_that_differ_are_refused(
    nano: Served, change: dict[str, Any], reason: str
) -> None:
    change = dict(change)
    dialect: Dialect = change.pop("dialect", "vllm")
    async with serve("vllm", nano.tokenizer) as good, serve(dialect, nano.tokenizer) as other:
        if ids := change.pop("vocabulary", None):
            real = other.choice
            other.choice = lambda *args: real(*args) | {"prompt_token_ids": ids}  # type: ignore[method-assign]
        vars(other).update(change)
        with pytest.raises(EngineError) as refused:
            async with open_engine(settings([good.url, other.url])):
                pass
    message = str(refused.value)
    assert reason in message and good.url in message and other.url in message


async def test_one_session_for_what_begins_alike(nano: Served) -> None:
    """Routers of a fleet are told which requests belong together."""
    async with serve("vllm", nano.tokenizer) as server:
        one = ModelSettings(engine="openai", name="nano", server=server.url)
        async with open_engine(one) as engine:
            server.requests.clear()
            for length in (0, 1, 2):
                for number in range(3):
                    await engine.complete(prompt(number, *range(50, 50 + length)), SAMPLING)
        sessions: dict[int, set[str]] = {}
        for request in server.requests:
            key = request.headers["x-session-id"]
            assert request.headers["x-smg-routing-key"] == key
            sessions.setdefault(request.body["prompt"][0], set()).add(key)
        assert [len(keys) for keys in sessions.values()] == [1, 1, 1]
        assert len(set.union(*sessions.values())) == 3


RECIPE = {
    "name": "spread",
    "model": {"name": "nano", "engine": "openai", "retries": 1},
    "problems": {"train": 12},
    "sample": {"samples": 2, "temperature": 1.0, "top_p": 1.0, "max_tokens": 160},
    "window": 8,
}


def sampled(
    path: Path, urls: list[str], play: Callable[[list[ModelServer]], Coroutine[Any, Any, None]]
) -> RunReader:
    """Run `sample` on two servers of nano, beside what a test plays with them."""

    async def beside(work: Coroutine[Any, Any, None]) -> None:
        async with TransformersEngine(ModelSettings(name="nano"), "nano") as engine:
            started = [ModelServer(engine, "nano") for _ in urls]
            for server, url in zip(started, urls, strict=True):
                server.url = url
                await server.start()
            playing = asyncio.create_task(play(started))
            try:
                await work
            finally:
                playing.cancel()
                for server in started:
                    server.die()

    recipe = make_recipe(RECIPE, {"model.server": urls}, "test")
    run = open_run(path, recipe)
    try:
        run_stages(run, ["problems", "sample"], lambda work: asyncio.run(beside(work)))
    finally:
        run.close()
    return RunReader(path, recipe)


@pytest.fixture(scope="module")
def urls() -> list[str]:
    """Addresses that are free."""
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    found = [f"http://127.0.0.1:{holder.getsockname()[1]}/v1" for holder in holders]
    for holder in holders:
        holder.close()
    return found


async def nothing(started: list[ModelServer]) -> None:
    pass


@pytest.mark.slow
def test_a_run_whose_servers_die(
    tmp_path: Path, urls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The table is that of a run in which nothing happened, after one dies, and after both do."""

    async def one_dies(started: list[ModelServer]) -> None:
        await until(lambda: started[0].asked > 16)  # probes are among them
        started[0].die()
        await until(lambda: started[1].asked > 18)
        await started[0].start()

    async def both_die(started: list[ModelServer]) -> None:
        await until(lambda: started[0].asked > 16)
        for server in started:
            server.die()

    caplog.set_level(logging.INFO, "dto")
    calm = sampled(tmp_path / "calm", urls, nothing)
    hit = sampled(tmp_path / "hit", urls, one_dies)
    with pytest.raises(DtoError) as ended:
        sampled(tmp_path / "ended", urls, both_die)
    assert all(url in str(ended.value) for url in urls), ended.value
    assert "finished rows are kept" in str(ended.value)
    again = sampled(tmp_path / "ended", urls, nothing)
    table = (calm.path / "sample" / "rows.parquet").read_bytes()
    spent = [run.manifest("sample") or {} for run in (calm, hit, again)]
    for run, done in zip((calm, hit, again), spent, strict=True):
        assert (run.path / "sample" / "rows.parquet").read_bytes() == table
        usage = done["usage"]
        assert usage["generated"] - usage["wasted"] == spent[0]["usage"]["generated"]
    assert spent[1]["usage"]["failed"] == 0
    shares = spent[0]["servers"]
    assert [share["server"] for share in shares] == urls
    assert sum(share["generated"] for share in shares) == spent[0]["usage"]["generated"]
    assert sum(share["requests"] for share in shares) == spent[0]["usage"]["requests"] == 24
    assert all(share["requests"] >= 4 and share["seconds"] > 0 for share in shares)
    assert spent[1]["servers"][0]["deaths"] == 1
    assert "tokens/s" in caplog.text
