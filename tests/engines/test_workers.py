"""Two workers give the results of one, and divide the requests between them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
import torch

from dto.engines.batch import SMALL_MODEL, worker_count
from dto.engines.transformers import TransformersEngine
from dto.protocols import Sampling
from tests.engines.served import Served

SAMPLED = Sampling(max_tokens=60, temperature=1.0, top_p=0.95, seed=7, logprobs=2)
SHORT = Sampling(max_tokens=8, temperature=0.0)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dto.engines.transformers.worker_count", lambda *_: 2)


@pytest.mark.parametrize(
    ("parameters", "device", "slots", "threads", "count"),
    [
        (900_000, "cpu", 128, 2, 2),
        (900_000, "cpu", 128, 16, 2),
        (900_000, "cpu", 128, 1, 1),
        (900_000, "cpu", 31, 2, 1),
        (900_000, "cpu", 1, 2, 1),
        (SMALL_MODEL, "cpu", 128, 2, 2),
        (SMALL_MODEL + 1, "cpu", 128, 2, 1),
        (None, "cpu", 128, 2, 1),
        (900_000, "cuda", 128, 2, 1),
    ],
)
def test_who_gets_two(
    parameters: int | None, device: str, slots: int, threads: int, count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert worker_count(parameters, torch.device(device), slots) == count


def busy(engine: TransformersEngine) -> list[int]:
    """Samples under way, for each worker."""
    assert engine._workers is not None
    return engine._workers._samples


@pytest.mark.slow
async def test_results_are_those_of_one_bit_for_bit(
    nano: Served, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        monkeypatch.setattr("dto.engines.transformers.worker_count", lambda *_, n=count: n)
        async with nano.engine(slots=64) as engine:
            tasks = [asyncio.create_task(engine.complete(each, SAMPLED, 2)) for each in prompts]
            await asyncio.sleep(0)
            assert len(busy(engine)) == count and sum(busy(engine)) == 2 * len(prompts)
            assert min(busy(engine)) > 0
            rows = [row for task in tasks for row in await task]
            assert busy(engine) == [0] * count
        found.append([(row.token_ids, row.logprobs, row.top_logprobs) for row in rows])
    assert found[0] == found[1]
    assert torch.get_num_threads() == threads


async def test_what_begins_alike_finds_its_beginning_again(
    two: None, nano: Served, prompts: list[list[int]]
) -> None:
    long = [each for each in prompts if len(each) >= 48][:6]
    assert len(long) == 6
    async with nano.engine(slots=64) as engine:
        for prompt in long:
            (first,) = await engine.complete(prompt, SHORT)
            (again,) = await engine.complete([*prompt, *first.token_ids], SHORT)
            assert again.cached_tokens >= len(prompt) // 16 * 16


@pytest.mark.slow
async def test_a_beginning_that_all_share_keeps_no_worker_idle(
    two: None, nano: Served, prompts: list[list[int]]
) -> None:
    start = prompts[0][:32]
    async with nano.endless(slots=16) as engine:
        tasks = [
            asyncio.create_task(engine.complete([*start, *prompt], SAMPLED))
            for prompt in prompts[:40]
        ]
        await asyncio.sleep(0)
        assert min(busy(engine)) >= 10
        answers = await asyncio.gather(*tasks)
    assert {row.finish_reason for rows in answers for row in rows} == {"length"}


async def test_what_is_left_or_closed_is_forgotten(
    two: None, nano: Served, prompts: list[list[int]]
) -> None:
    endless = Sampling(max_tokens=400, temperature=1.0, seed=1)
    async with nano.endless(slots=32, context=1024) as engine:
        async with aclosing(engine.stream(prompts[0], endless)) as stream:
            await anext(stream)
            assert sum(busy(engine)) == 1
        assert busy(engine) == [0, 0]
        cancelled = asyncio.create_task(engine.complete(prompts[1], endless))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert busy(engine) == [0, 0]
        open_ = [asyncio.create_task(engine.complete(each, endless)) for each in prompts[:8]]
        await asyncio.sleep(0.05)
    closed = [row for task in open_ for row in await task]
    assert {row.error for row in closed} == {"the engine was closed"}
    async with engine:  # and serves again
        (row,) = await engine.complete(prompts[2], SAMPLED)
        assert row.finish_reason == "length"


async def test_one_that_cannot_start_is_an_error(
    two: None, nano: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dto.engines import transformers
    from dto.errors import EngineError

    made = []

    def no_memory(*arguments: object) -> object:
        made.append(arguments)
        if len(made) == 2:
            raise MemoryError("no room")
        return batch(*arguments)  # type: ignore[arg-type]

    batch = transformers.Batch
    monkeypatch.setattr(transformers, "Batch", no_memory)
    with pytest.raises(EngineError, match=r"cannot start \(engine: MemoryError: no room\)"):
        async with nano.engine(slots=64):
            pass
