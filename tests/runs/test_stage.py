"""The runner: a bounded window, errors as rows, resume, and what is left on disk."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dto import tables
from dto.errors import DtoError, EngineError
from dto.grading import Grader
from dto.records import Dropped, ExitEstimate
from dto.runs import manifest
from dto.runs.journal import Entry
from dto.runs.stage import MAX_CONSECUTIVE_FAILURES, Group, Runner, Timed, attempt
from dto.usage import Usage, charge, give_up
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
    with Runner(directory, ExitEstimate, CONFIG) as stage:
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
    assert done["content"] == manifest.of_path(tmp_path / "estimate/rows.parquet")
    assert done["digest"] == manifest.digest({**CONFIG, "content": done["content"]})
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

    with Runner(tmp_path / "estimate", ExitEstimate, CONFIG) as stage:
        await stage.feed(watched(), slow, window=16)
        await stage.finish()
    assert most == 16
    assert ahead <= 16 + 2 * 32


async def test_groups_processed_elsewhere_give_the_same_table(tmp_path: Path) -> None:
    await whole(tmp_path / "a" / "estimate")
    under_way, most = 0, 0

    async def elsewhere(group: Group) -> Entry:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001 * (hash(group.key) % 5))
        under_way -= 1
        return await attempt(group, work)

    with Runner(tmp_path / "b" / "estimate", ExitEstimate, CONFIG) as stage:
        await stage.feed(groups(40), work, window=8, elsewhere=elsewhere)
        await stage.finish()
    assert most == 8
    for name in ("rows.parquet", "dropped.jsonl", "usage.parquet"):
        first, second = (tmp_path / run / "estimate" / name for run in "ab")
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(("good", "stops"), [("0020", True), ("0019", False)])
async def test_failures_in_a_row_are_counted_in_the_order_of_completion(
    tmp_path: Path, good: str, stops: bool
) -> None:
    """Here the last group of 39 is the first that is done."""
    turn = asyncio.Condition()
    last = 39

    async def backwards(group: Group) -> Entry:
        nonlocal last
        async with turn:
            await turn.wait_for(lambda: int(group.key) == last - 1)
            entry = await attempt(group, fails)
            last -= 1
            turn.notify_all()
        return entry

    async def fails(key: str) -> list[Any]:
        if key == good:
            return await work(key)
        charge(Usage(requests=1, failed=1))
        return []

    with Runner(tmp_path / "estimate", ExitEstimate, CONFIG) as stage:
        fed = stage.feed(groups(39), work, window=39, elsewhere=backwards)
        if stops:
            with pytest.raises(DtoError, match=f"{MAX_CONSECUTIVE_FAILURES} groups in a row"):
                await fed
        else:
            await fed


async def test_one_bad_group_is_a_row_and_is_tried_again(tmp_path: Path) -> None:
    async def fails(key: str) -> list[Any]:
        if key == "0001":
            raise ValueError("no such token")
        return await work(key)

    with Runner(tmp_path / "estimate", ExitEstimate, CONFIG) as stage:
        await stage.feed(groups(10), fails, window=4)
    with Runner(tmp_path / "estimate", ExitEstimate, CONFIG) as stage:
        await stage.feed(groups(10), fails, window=4)
        done = await stage.finish()
    assert done["dropped"] == {"error": 1, "no_exit": 1}
    assert "ValueError: no such token" in (tmp_path / "estimate" / "dropped.jsonl").read_text()


async def test_nothing_but_errors_stops_the_run(tmp_path: Path) -> None:
    async def fails(key: str) -> list[Any]:
        raise ValueError("no such model")

    message = f"{MAX_CONSECUTIVE_FAILURES} groups in a row failed"
    with pytest.raises(DtoError, match=message + r".*no such model"):
        await whole(tmp_path / "a", 1000, fails)
    with pytest.raises(DtoError, match="all 3 groups failed"):
        await whole(tmp_path / "b", 3, fails)
    assert manifest.read(tmp_path / "b") is None


class Served:
    """Work whose requests fail from one key on, as those of a server that went away."""

    def __init__(self, until: int, requests: int = 1, failed: int = 1) -> None:
        self.until, self.usage = until, Usage(requests=requests, failed=failed)
        self.asked: list[str] = []

    async def __call__(self, key: str) -> list[Any]:
        self.asked.append(key)
        if int(key) < self.until:
            return await work(key)
        charge(self.usage)
        return [replace(estimate(f"{key}/{index}"), reason="no route") for index in range(2)]


async def test_an_engine_that_went_away_stops_the_stage_and_its_rows_are_owed(
    tmp_path: Path,
) -> None:
    message = f"{MAX_CONSECUTIVE_FAILURES} groups in a row failed"
    with pytest.raises(DtoError, match=message + r", .* no route; finished"):
        await whole(tmp_path / "b" / "estimate", 100, Served(until=30))
    assert manifest.read(tmp_path / "b" / "estimate") is None
    back = Served(until=100)
    await whole(tmp_path / "b" / "estimate", 100, back)
    assert back.asked[-70:] == [f"{index:04d}" for index in range(30, 100)]
    assert len(back.asked) <= 70 + 7  # what was under way when the stage stopped
    await whole(tmp_path / "a" / "estimate", 100)
    first, second = (tmp_path / run / "estimate" / "rows.parquet" for run in "ab")
    assert first.read_bytes() == second.read_bytes()


async def test_a_few_failed_requests_are_kept_as_such_and_many_are_not(tmp_path: Path) -> None:
    done = await whole(tmp_path / "few", 40, Served(until=38))
    assert done["usage"]["failed"] == 2
    with pytest.raises(DtoError, match="3 of 40 requests failed, the last with no route"):
        await whole(tmp_path / "many", 40, Served(until=37))
    # Each of these groups has an answer, so they stop nothing on their way.
    with pytest.raises(DtoError, match="60 of 130 requests failed"):
        await whole(tmp_path / "half", 40, Served(until=10, requests=4, failed=2))
    done = await whole(tmp_path / "half", 40, Served(until=40))
    assert done["usage"]["failed"] == 0


@pytest.mark.slow
def test_a_full_disk_at_the_end_is_one_line_and_the_table_comes_later(tmp_path: Path) -> None:
    """For every file of a stage: a limit on file size stands in for the full disk."""
    script = textwrap.dedent("""
        import asyncio, resource, sys
        from pathlib import Path
        from dto.errors import DtoError
        from dto.records import ExitEstimate
        from dto.runs.stage import Runner
        from tests.runs.test_stage import CONFIG, groups, work
        sizes = [int(size) for size in sys.argv[2:]]
        async def fill():
            with Runner(Path(sys.argv[1]), ExitEstimate, CONFIG) as stage:
                await stage.feed(groups(40), work, window=8)
                for size in sizes:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
                    try:
                        await stage.finish()
                    except DtoError as error:
                        print(error)
                    else:
                        print("finished")
        asyncio.run(fill())
    """)
    asyncio.run(whole(tmp_path / "a" / "estimate"))
    names = ("rows.parquet", "timings.parquet", "usage.parquet")
    sizes = sorted((tmp_path / "a" / "estimate" / name).stat().st_size for name in names)
    limits = [100, *(size - 100 for size in sizes)]
    directory = tmp_path / "b" / "estimate"
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory), *map(str, limits)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(limits)
    for line in lines:
        assert line.startswith(f"cannot write {directory}: ")
        assert "File too large" in line and "free some space" in line
    assert manifest.read(directory) is None

    async def nothing(key: str) -> list[Any]:
        raise AssertionError(f"{key} is computed twice")

    asyncio.run(whole(directory, 40, nothing))
    for name in ("rows.parquet", "dropped.jsonl", "usage.parquet"):
        assert (directory / name).read_bytes() == (tmp_path / "a/estimate" / name).read_bytes()
    assert not list(directory.glob(".*"))


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


async def test_seconds_and_wasted_tokens_of_rows_stand_beside_the_table(tmp_path: Path) -> None:
    async def timed(key: str) -> list[Any]:
        return [Timed(estimate(f"{key}/0"), 1.5, wasted=int(key))]

    await whole(tmp_path / "evaluate", 3, timed)
    beside = pl.read_parquet(tmp_path / "evaluate" / "timings.parquet")
    assert beside.rows() == [(f"000{key}/0", 1.5, key) for key in range(3)]


@pytest.mark.slow
async def test_answers_given_up_are_counted_by_reason_also_after_a_resume(tmp_path: Path) -> None:
    """Those of rollouts too, which have no row of their own."""

    async def guess(key: str) -> list[Any]:
        answer = "9^{9^{9^{9}}}" if key < "0002" else "6"
        graded = await asyncio.create_task(grader.grade_answer(answer, "7", "math"))
        assert graded.grade == "wrong"
        return [estimate(f"{key}/0")]

    async with Grader(workers=1, time_limit=1.0) as grader:
        with Runner(tmp_path / "estimate", ExitEstimate, CONFIG) as stage:
            await stage.feed(groups(1), guess, window=1)
        done = await whole(tmp_path / "estimate", 4, guess)
    assert done["given_up"] == {"grader_timeout": 2}
    assert manifest.read(tmp_path / "estimate")["given_up"] == {"grader_timeout": 2}  # type: ignore[index]
    give_up("grader_timeout")  # outside of a stage nobody counts
    assert (await whole(tmp_path / "other", 4))["given_up"] == {}
