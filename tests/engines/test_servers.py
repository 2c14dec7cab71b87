"""Several servers of one model: prefixes stay together, load is spread, the dead are passed by."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import pytest

from dto.engines import open_engine, servers
from dto.engines.affinity import BLOCK
from dto.engines.servers import BOUND, SLACK, ServersEngine
from dto.errors import EngineError
from dto.protocols import Sampling
from dto.recipe import ModelSettings, make_recipe
from dto.redact import NO_SERVER, Redaction, without_servers
from dto.usage import metered
from tests.engines.served import Served
from tests.engines.server import ANSWER, Bad, Server, serve

SAMPLING = Sampling(max_tokens=100, temperature=0.0, top_p=1.0)


def settings(urls: Sequence[str], **changes: Any) -> ModelSettings:
    given = {"engine": "openai", "name": "nano", "server": list(urls), "retries": 0}
    return ModelSettings.model_validate(given | changes)


@asynccontextmanager
async def opened(
    nano: Served, count: int = 2
) -> AsyncGenerator[tuple[ServersEngine, list[Server], list[AsyncExitStack]]]:
    """An engine over servers, each of which ends when its stack is closed."""
    async with AsyncExitStack() as all_of_them:
        stacks, started = [], []
        for _ in range(count):
            stack = await all_of_them.enter_async_context(AsyncExitStack())
            started.append(await stack.enter_async_context(serve("vllm", nano.tokenizer)))
            stacks.append(stack)
        made = open_engine(settings([server.url for server in started]))
        assert isinstance(made, ServersEngine)
        engine = await all_of_them.enter_async_context(made)
        for server in started:
            server.requests.clear()
        yield engine, started, stacks


def prompt(*parts: int) -> list[int]:
    """A whole block of tokens for each number."""
    return [20 + (7 * part + place * (part + 1)) % 200 for part in parts for place in range(BLOCK)]


async def test_questions_are_spread(nano: Served) -> None:
    async with opened(nano) as (engine, (first, second), _):
        asked = (engine.complete(prompt(number), SAMPLING) for number in range(40))
        replies = await asyncio.gather(*asked)
        assert [reply[0].text for reply in replies] == [ANSWER] * 40
        assert len(first.requests) == len(second.requests) == 20


async def test_rollouts_of_a_trajectory_meet_one_cache(nano: Served) -> None:
    """Prefixes that grow by a block, of 12 trajectories, in any order and at the same time."""
    async with opened(nano) as (engine, started, _):
        for length in range(1, 6):
            prefixes = [prompt(number, *range(50, 50 + length)) for number in range(12)]
            asked = [engine.complete(prefix, SAMPLING, 2) for prefix in (*prefixes, *prefixes)]
            await asyncio.gather(*asked)
        where: dict[int, Counter[int]] = {}
        for place, server in enumerate(started):
            for request in server.requests:
                where.setdefault(request.body["prompt"][0], Counter())[place] += 1
        assert len(where) == 12
        together = sum(max(counts.values()) for counts in where.values())
        assert together >= 0.95 * sum(sum(counts.values()) for counts in where.values())


async def test_a_system_prompt_does_not_keep_questions_together(nano: Served) -> None:
    async with opened(nano) as (engine, (first, second), _):
        for number in range(20):
            await engine.complete(prompt(1, 100 + number, 130 + number), SAMPLING)
        waiting = [engine.complete(prompt(1, 60 + n, 90 + n), SAMPLING) for n in range(20)]
        await asyncio.gather(*waiting)
        assert min(len(first.requests), len(second.requests)) >= 8


async def test_a_busy_server_lends_its_prefix(nano: Served) -> None:
    """No more than SLACK requests, and half, are ahead of the other server."""
    async with opened(nano) as (engine, (first, second), _):
        first.pause = second.pause = 0.01
        await asyncio.gather(*(engine.complete(prompt(5), SAMPLING) for _ in range(60)))
        few, many = sorted((len(first.requests), len(second.requests)))
        assert few >= 10 and many <= 1.5 * few + SLACK + 1


async def test_a_faster_server_gets_more(nano: Served) -> None:
    async with opened(nano) as (engine, (slow, fast), _):
        slow.pause, fast.pause = 0.02, 0.002
        limit = asyncio.Semaphore(8)

        async def ask(number: int) -> None:
            async with limit:
                await engine.complete(prompt(number), SAMPLING)

        await asyncio.gather(*map(ask, range(60)))
        assert len(fast.requests) > 1.5 * len(slow.requests) > 0


async def test_requests_of_a_dead_server_go_on_and_it_comes_back(
    nano: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(servers, "CHECK_SECONDS", 0.05)
    async with opened(nano) as (engine, (first, _), stacks):
        port = int(first.url.split(":")[2].split("/")[0])
        await stacks[0].aclose()
        with metered() as usage:
            asked = (engine.complete(prompt(number), SAMPLING, 2) for number in range(10))
            replies = await asyncio.gather(*asked)
            async with aclosing(engine.stream(prompt(3), SAMPLING)) as chunks:
                text = "".join([chunk.text async for chunk in chunks])
        assert all(each.text == ANSWER for reply in replies for each in reply) and text == ANSWER
        assert (usage.requests, usage.failed) == (21, 0)  # as if the server had never been asked
        assert caplog.text.count("has ended") == 1
        listening = await asyncio.start_server(first.connected, "127.0.0.1", port)
        first.requests.clear()
        for _ in range(100):
            await asyncio.sleep(0.05)
            if "is back" in caplog.text:
                break
        first.requests.clear()
        await asyncio.gather(*(engine.complete(prompt(n), SAMPLING) for n in range(60, 80)))
        assert len(first.requests) == 10
        listening.close()


async def test_without_any_server_requests_fail(nano: Served) -> None:
    async with opened(nano) as (engine, _, stacks):
        for stack in stacks:
            await stack.aclose()
        with metered() as usage:
            (reply,) = await engine.complete(prompt(1), SAMPLING)
        assert reply.finish_reason == "failed" and "connection" in reply.error
        assert (usage.requests, usage.failed) == (1, 1)
        with pytest.raises(EngineError, match="score"):
            await engine.score(prompt(1), prompt(2))


async def test_a_refusal_is_no_death(nano: Served) -> None:
    async with opened(nano) as (engine, (first, second), _):
        first.bad.append(Bad(400, {"error": {"message": "no such thing"}}))
        second.bad.append(Bad(400, {"error": {"message": "no such thing"}}))
        (reply,) = await engine.complete(prompt(1), SAMPLING)
        assert reply.finish_reason == "failed" and "no such thing" in reply.error
        assert len(first.requests) + len([r for r in second.requests if r.path != "/models"]) <= 2


async def test_servers_that_cannot_be_used_together(nano: Served) -> None:
    async with serve("vllm", nano.tokenizer) as good, serve("text", nano.tokenizer) as other:
        with pytest.raises(EngineError, match=r"start all servers alike"):
            async with open_engine(settings([good.url, other.url], tokenizer=None)):
                pass
        dead = "http://127.0.0.1:9/v1"
        with pytest.raises(EngineError, match=r"127\.0\.0\.1:9"):
            async with open_engine(settings([good.url, dead])):
                pass
        with pytest.raises(EngineError, match="twice"):
            open_engine(settings([good.url, good.url]))


def test_addresses_are_not_published() -> None:
    urls = ["http://gpu-1.lab.example:8000/v1", "http://gpu-2.lab.example:8000/v1"]
    model = {"name": "m", "engine": "openai", "server": urls}
    recipe = make_recipe({"name": "r", "model": model}, {}, "test")
    shared = Redaction.of(recipe).text(f"no answer from {urls[0]} or {urls[1]}")
    assert "lab.example" not in shared
    assert without_servers(recipe.model_dump(mode="json"))["model"]["server"] == NO_SERVER
