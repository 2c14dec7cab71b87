"""Several servers of one model: prefixes stay together, load is spread, the dead are passed by."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from typing import Any

from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from dto.engines import open_engine
from dto.engines.affinity import BLOCK, Prefixes, blocks_of
from dto.engines.servers import BOUND, SLACK, SLOWEST, ServersEngine
from dto.protocols import Sampling
from dto.recipe import ModelSettings, make_recipe
from dto.redact import NO_SERVER, Redaction, without_servers
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
    """No more than its share of the requests, and a bit, are at the server of a prefix."""
    async with opened(nano) as (engine, (first, second), _):
        first.pause = second.pause = 0.01
        await asyncio.gather(*(engine.complete(prompt(5), SAMPLING) for _ in range(60)))
        few, many = sorted((len(first.requests), len(second.requests)))
        assert few + many == 60 and many <= BOUND * 60 / 2 + SLACK + 1


async def test_a_faster_server_gets_more(nano: Served) -> None:
    async with opened(nano) as (engine, (slow, fast), _):
        slow.pause, fast.pause = 0.02, 0.002
        limit = asyncio.Semaphore(8)

        async def ask(number: int) -> None:
            async with limit:
                await engine.complete(prompt(number), SAMPLING)

        await asyncio.gather(*map(ask, range(60)))
        assert len(fast.requests) > 1.5 * len(slow.requests) > 0


async def test_a_refusal_is_no_death(nano: Served) -> None:
    async with opened(nano) as (engine, (first, second), _):
        first.bad.append(Bad(400, {"error": {"message": "no such thing"}}))
        second.bad.append(Bad(400, {"error": {"message": "no such thing"}}))
        (reply,) = await engine.complete(prompt(1), SAMPLING)
        assert reply.finish_reason == "failed" and "no such thing" in reply.error
        assert len(first.requests) + len([r for r in second.requests if r.path != "/models"]) <= 2


@cache
def closed() -> ServersEngine:
    """An engine that asks nobody."""
    return ServersEngine(settings([f"http://127.0.0.1:{port}/v1" for port in (1, 2, 3)]), "nano")


LOADS = st.lists(st.tuples(st.integers(0, 99), st.floats(1, 100)), min_size=3, max_size=3)


@checked(max_examples=40, deadline=None)
@given(LOADS, st.sets(st.integers(0, 2)), st.sets(st.integers(0, 2), max_size=2))
def test_no_server_has_much_more_than_its_share(
    loads: list[tuple[int, float]], readers: set[int], tried: set[int]
) -> None:
    """A prompt stays with a server that knows it up to a bound; else the quickest one gets it."""
    engine = closed()
    engine._prefixes = Prefixes()
    blocks = blocks_of(prompt(1, 2))
    for place, (busy, speed) in zip(engine._places, loads, strict=True):
        place.busy, place._tokens, place._seconds = busy, speed, 1.0
    for index in readers:
        engine._prefixes.add(blocks, index)
    chosen = engine.choose(blocks, tried)
    assert chosen is not None and chosen.index not in tried
    ready = [place for place in engine._places if place.index not in tried]
    most = max(speed for _, speed in loads)
    speeds = {place.index: max(loads[place.index][1], SLOWEST * most) for place in ready}
    quickest = min((place.busy + 1) / speeds[place.index] for place in ready)
    total = sum(place.busy for place in ready)
    bound = BOUND * total * speeds[chosen.index] / sum(speeds.values()) + SLACK
    stays = chosen.index in readers and chosen.busy <= bound
    assert stays or (chosen.busy + 1) / speeds[chosen.index] == quickest
    if any(place.index in readers and place.busy == 0 for place in ready):
        assert chosen.index in readers


def test_addresses_are_not_published() -> None:
    urls = ["http://gpu-1.lab.example:8000/v1", "http://gpu-2.lab.example:8000/v1"]
    model = {"name": "m", "engine": "openai", "server": urls}
    recipe = make_recipe({"name": "r", "model": model}, {}, "test")
    shared = Redaction.of(recipe).text(f"no answer from {urls[0]} or {urls[1]}")
    assert "lab.example" not in shared
    assert without_servers(recipe.model_dump(mode="json"))["model"]["server"] == NO_SERVER
