"""A few requests at once, never all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")

AT_ONCE = 8


async def gather_bounded(jobs: Iterable[Awaitable[T]], limit: int = AT_ONCE) -> list[T]:
    """Results in the order of `jobs`, of which at most `limit` are under way at a time.

    A job is taken from `jobs` when it can begin. The first error cancels the others and is raised
    as it is.
    """
    numbered = enumerate(jobs)
    results: dict[int, T] = {}

    async def work() -> None:
        for index, job in numbered:
            results[index] = await job

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(limit):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [results[index] for index in range(len(results))]
