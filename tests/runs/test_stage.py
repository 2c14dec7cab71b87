"""The runner: a bounded window, errors as rows, resume, and what is left on disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dto import tables
from dto.errors import DtoError, EngineError
from dto.ledger import Usage, charge
from dto.records import Dropped, ExitEstimate
from dto.runs import manifest
from dto.runs.stage import HOPELESS, Group, Stage, Timed
from tests.runs.test_journal import estimate

CONFIG = {"estimate.rollouts": 2}


def groups(count: int) -> Iterator[Group]:
    return (Group(f"{index:04d}", (f"{index:04d}",)) for index in range(count))


async def work(key: str) -> list[Any]:
    charge(Usage(requests=1, generated=3))
    await asyncio.sleep(0.001 * (int(key) % 5))
    if key == "0003":
        return [Dropped(key, "no_exit")]
    return [estimate(f"{key}/{index}") for index in range(2)]


async def whole(directory: Path, count: int = 40, task: Any = work) -> dict[str, Any]:
    with Stage(directory, ExitEstimate, CONFIG) as stage:
        await stage.feed(groups(count), task, window=8)
        return await stage.finish()


async def test_what_a_stage_leaves(tmp_path: Path) -> None:
    done = await whole(tmp_path / "estimate")
    assert sorted(path.name for path in (tmp_path / "estimate").iterdir()) == [
        "dropped.jsonl",
        "manifest.json",
        "rows.parquet",
        "timings.parquet",
        "usage.parquet",
    ]
    assert done == manifest.read(tmp_path / "estimate")
    assert (done["rows"], done["groups"], done["dropped"]) == (78, 40, {"no_exit": 1})
    assert done["usage"]["generated"] == 120
    assert done["digest"] == manifest.digest(CONFIG)
    assert done["peak_memory"] > 2**20
    assert done["versions"]["dto"]
    rows = list(tables.read(tmp_path / "estimate" / "rows.parquet", ExitEstimate))
    assert [row.id for row in rows] == sorted(row.id for row in rows)
    usage = pl.read_parquet(tmp_path / "estimate" / "usage.parquet")
    assert usage["generated"].to_list() == [3] * 40
    assert json.loads((tmp_path / "estimate" / "dropped.jsonl").read_text()) == {
        "id": "0003",
        "reason": "no_exit",
        "detail": "",
    }


async def test_the_window_bounds_what_is_read_and_what_is_under_way(tmp_path: Path) -> None:
    under_way = most = read = finished = ahead = 0

    def watched() -> Iterator[Group]:
        nonlocal read, ahead
        for group in groups(400):
            read += 1
            ahead = max(ahead, read - finished)
            yield group

    async def slow(key: str) -> list[Any]:
        nonlocal under_way, most, finished
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        finished += 1
        return []

    with Stage(tmp_path / "estimate", ExitEstimate, CONFIG) as stage:
        await stage.feed(watched(), slow, window=16)
        await stage.finish()
    assert most == 16
    assert ahead <= 16 + 2 * 32


async def test_one_bad_group_is_a_row_and_is_tried_again(tmp_path: Path) -> None:
    async def fails(key: str) -> list[Any]:
        if key == "0001":
            raise ValueError("no such token")
        return await work(key)

    with Stage(tmp_path / "estimate", ExitEstimate, CONFIG) as stage:
        await stage.feed(groups(10), fails, window=4)
    with Stage(tmp_path / "estimate", ExitEstimate, CONFIG) as stage:
        await stage.feed(groups(10), fails, window=4)
        done = await stage.finish()
    assert done["dropped"] == {"error": 1, "no_exit": 1}
    assert "ValueError: no such token" in (tmp_path / "estimate" / "dropped.jsonl").read_text()


async def test_nothing_but_errors_stops_the_run(tmp_path: Path) -> None:
    async def fails(key: str) -> list[Any]:
        raise ValueError("no such model")

    with pytest.raises(DtoError, match=f"first {HOPELESS} groups all failed.*no such model"):
        await whole(tmp_path / "a", 1000, fails)
    with pytest.raises(DtoError, match="first 3 groups all failed"):
        await whole(tmp_path / "b", 3, fails)
    assert manifest.read(tmp_path / "b") is None


async def test_a_mistake_in_the_set_up_stops_at_once_and_keeps_what_was_done(
    tmp_path: Path,
) -> None:
    async def fails(key: str) -> list[Any]:
        if key == "0020":
            raise EngineError("no logprobs")
        return await work(key)

    with pytest.raises(EngineError, match="no logprobs"):
        await whole(tmp_path / "estimate", 40, fails)
    again: list[str] = []

    async def counted(key: str) -> list[Any]:
        again.append(key)
        return await work(key)

    done = await whole(tmp_path / "estimate", 40, counted)
    assert done["groups"] == 40
    assert "0020" in again and "0000" not in again


async def test_interrupted_and_resumed_gives_the_same_table(tmp_path: Path) -> None:
    await whole(tmp_path / "a" / "estimate")
    for delay in (0.002, 0.005):
        task = asyncio.create_task(whole(tmp_path / "b" / "estimate"))
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await whole(tmp_path / "b" / "estimate")
    for name in ("rows.parquet", "dropped.jsonl", "usage.parquet"):
        first, second = (tmp_path / run / "estimate" / name for run in "ab")
        assert first.read_bytes() == second.read_bytes()


async def test_seconds_of_rows_stand_beside_the_table(tmp_path: Path) -> None:
    async def timed(key: str) -> list[Any]:
        return [Timed(estimate(f"{key}/0"), 1.5)]

    await whole(tmp_path / "evaluate", 3, timed)
    beside = pl.read_parquet(tmp_path / "evaluate" / "timings.parquet")
    assert beside.to_dicts() == [{"id": f"000{key}/0", "seconds": 1.5} for key in range(3)]
