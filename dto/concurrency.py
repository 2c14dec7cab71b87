"""Run a bounded number of jobs at once, and child processes that end with their parent."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

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
PATIENCE_SECONDS = 10.0
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


VLLM_CHILD = "DTO_VLLM_CHILD"  # set only for processes that our vLLM engine starts


def die_with_engine() -> None:
    """End a process of our vLLM engine when the thread that started it ends.

    vLLM calls this in each of its processes, as a general plugin (pyproject.toml); in processes
    that are not ours it does nothing. Without it, vLLM's core does not notice that its parent was
    killed, and holds the GPU for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and VLLM_CHILD in os.environ:
        die_with_parent(parent.pid)


def _watch(parent: int) -> None:
    if sys.platform == "win32":  # the parent's id stays when it has ended
        import _winapi

        _winapi.WaitForSingleObject(_winapi.OpenProcess(_SYNCHRONIZE, False, parent), -1)
    while os.getppid() == parent and sys.platform != "win32":
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


def run_child(
    command: Sequence[str],
    on_line: Callable[[str], object],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a child process to its end and return its exit code (negative: minus the signal).

    `on_line` is called with each line of its stdout. An exception here, such as Ctrl-C, ends the
    child first.
    """
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                on_line(line)
            return child.wait()
        except BaseException:
            end_children([child])
            raise


def end_children(children: Collection[subprocess.Popen[Any]]) -> None:
    """Terminate the children, and kill those still running after `PATIENCE_SECONDS`."""
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
