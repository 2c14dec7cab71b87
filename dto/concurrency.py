"""A few requests at once, never all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")

AT_ONCE = 8


async def gather_bounded(jobs: Iterable[Awaitable[T]], limit: int = AT_ONCE) -> list[T]:
    """Results in the order of `jobs`, of which at most `limit` are under way at a time.

    The first error cancels the others and is raised as it is.
    """
    gate = asyncio.Semaphore(limit)

    async def one(job: Awaitable[T]) -> T:
        async with gate:
            return await job

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(job)) for job in jobs]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
