"""Killable child processes that compare answers: one comparison at a time in each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

from dto.errors import DtoError

_WORKER = "dto.grading.worker"
_PACKAGES = str(Path(__file__).parents[2])
UNREADABLE_GOLD = "unreadable_gold"
_START_SECONDS = 120.0  # importing sympy on a machine that is busy with something else
_WALL_FACTOR = 60.0  # a child that has not even used its CPU time after that is stuck
_ENDED_BY: dict[int, str] = {
    signal.SIGPROF: "grader_timeout",
    signal.SIGSEGV: "grader_memory",  # the C stack
    signal.SIGABRT: "grader_memory",  # how C libraries meet the limit on memory
}
_FROM_OUTSIDE = ("grader_crashed", "grader_stuck")


def _path() -> str:
    """Where the child finds this package, installed or not."""
    return os.pathsep.join(filter(None, (_PACKAGES, os.environ.get("PYTHONPATH"))))


class ComparisonError(Exception):
    """A comparison that came to no result; the message is the reason, a slug.

    `expensive`: what was compared used up time or memory, or broke the parser. The same would
    happen again, unlike with a child that was killed from outside.
    """

    def __init__(self, reason: str, *, expensive: bool = False) -> None:
        super().__init__(reason)
        self.expensive = expensive


class WorkerPool:
    """At most `workers` children, each started when a comparison first needs it.

    A comparison that uses up `time_limit` seconds of CPU time costs its child, which is replaced;
    the others go on. Bound to the event loop it is used on, until `close`.
    """

    def __init__(self, workers: int, time_limit: float) -> None:
        self._time_limit = time_limit
        self._slots = asyncio.Semaphore(workers)
        self._idle: list[Process] = []
        self._alive: set[Process] = set()

    async def equal(self, gold: str, prediction: str | None, *, alone: bool = False) -> bool:
        """Whether the two are equal; `alone`: by math-verify as they are.

        None for the prediction: whether the gold answer can be read and compared with a number is
        all that is asked. Raises ComparisonError (unreadable_gold, grader_timeout, grader_memory,
        grader_error: …, grader_crashed, grader_stuck; the last two are not `expensive`) and, when
        children cannot be started at all, DtoError.
        """
        request: dict[str, object] = {"gold": gold, "prediction": prediction, "alone": alone}
        async with self._slots:
            child = self._idle.pop() if self._idle else await self._start()
            try:
                reply = await self._ask(child, request)
            except BaseException:
                # Cancelled, most likely: a late reply must not meet a later question.
                await self._end(child)
                raise
            if reply.get("error") == UNREADABLE_GOLD:
                self._idle.append(child)
                raise ComparisonError(UNREADABLE_GOLD)
            if "error" in reply:
                await self._end(child)
                reason = str(reply["error"])
                raise ComparisonError(reason, expensive=reason not in _FROM_OUTSIDE)
            self._idle.append(child)
            return bool(reply["equal"])

    async def close(self) -> None:
        """End all children."""
        self._idle.clear()
        await asyncio.gather(*(self._end(child) for child in tuple(self._alive)))

    async def _start(self) -> Process:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # what lies in the current folder must not shadow the libraries
            "-m",
            _WORKER,
            str(self._time_limit),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _path()},
        )
        self._alive.add(child)
        assert child.stdout is not None
        ready = b""
        try:
            with contextlib.suppress(TimeoutError):
                ready = await asyncio.wait_for(child.stdout.readline(), _START_SECONDS)
        finally:
            if not ready:
                await self._end(child)
        if not ready:
            raise DtoError(
                f"grading worker does not start: try `{sys.executable} -P -m {_WORKER} 5`, "
                "it needs math-verify"
            )
        return child

    async def _ask(self, child: Process, request: dict[str, object]) -> dict[str, object]:
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(f"{json.dumps(request)}\n".encode())
            async with asyncio.timeout(_WALL_FACTOR * self._time_limit):
                line = await child.stdout.readline()
        except TimeoutError:
            return {"error": "grader_stuck"}
        except ConnectionError:
            line = b""
        if line.endswith(b"\n"):
            reply: dict[str, object] = json.loads(line)
            return reply
        status = await child.wait()
        return {"error": _ENDED_BY.get(-status, "grader_crashed")}

    async def _end(self, child: Process) -> None:
        if child.returncode is None:
            child.kill()
        if child.stdin is not None:
            child.stdin.close()
        await child.wait()
        self._alive.discard(child)
