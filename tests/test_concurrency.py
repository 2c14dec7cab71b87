"""A few jobs at once, in order, begun when there is room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from dto.concurrency import gather_bounded


async def test_jobs_begin_when_there_is_room_and_results_keep_their_order() -> None:
    begun = under_way = most = 0

    async def job(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        assert begun - number <= 3  # those after it are not even made
        await asyncio.sleep(0.001 * (number % 3))
        under_way -= 1
        return number

    def jobs() -> Iterator[asyncio.Future[int]]:
        nonlocal begun
        for number in range(20):
            begun += 1
            yield job(number)  # type: ignore[misc]

    assert await gather_bounded(jobs(), limit=3) == list(range(20))
    assert most == 3
    assert await gather_bounded([], limit=3) == []


async def test_the_first_error_is_raised_as_it_is_and_ends_the_others() -> None:
    ended = []

    async def job(number: int) -> int:
        try:
            await asyncio.sleep(0 if number == 1 else 60)
        except asyncio.CancelledError:
            ended.append(number)
            raise
        raise KeyError(number)

    with pytest.raises(KeyError, match="1"):
        await gather_bounded(map(job, range(9)), limit=3)
    assert sorted(ended) == [0, 2]
