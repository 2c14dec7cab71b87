"""Run a bounded number of jobs at once; end a process with its parent."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")

AT_ONCE = 8


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


PARENT_CHECK_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SYNCHRONIZE = 0x00100000  # winnt.h


def die_with_parent(parent: int | None = None) -> None:
    """End this process when its parent ends, even by kill -9.

    On Linux the kernel kills this process when the thread that started it ends. On other systems a
    thread checks the parent's id twice a second. Pass `parent`, the parent's id, if it is known:
    then this process also ends at once if the parent ended before this call.
    """
    expected = os.getppid() if parent is None else parent
    try:
        bound = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0
    except (OSError, AttributeError, TypeError):  # Windows has no library of that name
        bound = False
    if not bound:
        threading.Thread(target=_watch, args=(expected,), name="parent-watch", daemon=True).start()
    elif os.getppid() != expected:
        os._exit(1)


def _watch(parent: int) -> None:
    if sys.platform == "win32":  # the parent's id stays when it has ended
        import _winapi

        _winapi.WaitForSingleObject(_winapi.OpenProcess(_SYNCHRONIZE, False, parent), -1)
    while os.getppid() == parent and sys.platform != "win32":
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)
