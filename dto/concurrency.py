"""Run a bounded number of jobs at once, and long work off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

AT_ONCE = 8
SHORT = 1_024
"""Tokens up to which work on a text is done where it is: it takes less than two milliseconds, and
handing it to a thread and back takes longer than most of it."""


async def aside(tokens: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that works on so many tokens: on many of them off the event loop."""
    if tokens <= SHORT:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


async def gather_bounded(jobs: Iterable[Awaitable[T]], limit: int = AT_ONCE) -> list[T]:
    """Run `jobs`, at most `limit` at a time, and return their results in order.

    A job is taken from `jobs` only when it can start. The first error cancels the other jobs and
    is raised unchanged.
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
