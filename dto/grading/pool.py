"""Killable child processes that compare answers: one comparison at a time in each.

A child imports no torch, so that it starts in a second. One JSON object a line: `{"gold": …,
"prediction": …}` in, `{"equal": true}` or `{"error": …}` out; `{"ready": true}` comes first. The
kernel ends it (SIGPROF) when one comparison has used its CPU time, also inside a big-integer power
that no Python signal handler could interrupt. CPU time, not wall time: a busy machine does not
change a grade. It ends with its parent. Windows knows no such limits: there a comparison has
`_WALL_FACTOR` times its CPU time in wall time, and its memory is not bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from dto.concurrency import die_with_parent
from dto.errors import DtoError

_CHILD = "import sys; from dto.grading.pool import serve; serve(sys.argv[1], float(sys.argv[2]))"
_MEMORY = 2 * 2**30  # bytes of address space of a child
_PACKAGES = str(Path(__file__).parents[2])
UNREADABLE_GOLD = "unreadable_gold"
_START_SECONDS = 120.0  # importing sympy on a machine that is busy with something else
_WALL_FACTOR = 60.0  # a child that has not even used its CPU time after that is stuck
_ENDED_BY: dict[int, str] = {
    getattr(signal, "SIGPROF", 0): "grader_timeout",
    signal.SIGSEGV: "grader_memory",  # the C stack
    signal.SIGABRT: "grader_memory",  # how C libraries meet the limit on memory
}
_FROM_OUTSIDE = ("grader_crashed", "grader_stuck")


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
    the others go on. The children compare by the function `equal` of `module` (see `serve`). Bound
    to the event loop it is used on, until `close`.
    """

    def __init__(self, workers: int, time_limit: float, module: str) -> None:
        self._time_limit, self._module = time_limit, module
        self._slots = asyncio.Semaphore(workers)
        self._idle: list[Process] = []
        self._alive: set[Process] = set()

    async def equal(self, gold: str, prediction: str | None) -> bool:
        """Whether the two are equal.

        None for the prediction: whether the gold answer can be read and compared with a number is
        all that is asked. Raises ComparisonError (unreadable_gold, grader_timeout, grader_memory,
        grader_error: …, grader_crashed, grader_stuck; the last two are not `expensive`) and, when
        children cannot be started at all, DtoError.
        """
        request: dict[str, object] = {"gold": gold, "prediction": prediction}
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
        # Where the child finds this package, installed or not.
        path = os.pathsep.join(filter(None, (_PACKAGES, os.environ.get("PYTHONPATH"))))
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # what lies in the current folder must not shadow the libraries
            "-c",
            _CHILD,
            self._module,
            str(self._time_limit),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
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
                "grading worker does not start: it needs math-verify, try "
                f"`{sys.executable} -c 'import {self._module}'`"
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


class UnreadableError(Exception):
    """What `equal` raises for a gold answer that is not read, or only in part."""


def serve(module: str, cpu_seconds: float) -> None:
    """Answer requests until stdin ends: the child's side.

    The function `equal` of `module` compares a gold answer and a prediction; without one (None) it
    finds out whether anything can be compared with the gold answer, and raises if not.
    """
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent decides
    _limit_memory()
    logging.disable(logging.CRITICAL)
    equal: Callable[[str, str | None], bool] = import_module(module).equal
    equal("x+1", "1+x")  # the first comparison builds the parser
    gc.freeze()  # a parser makes many small objects, and few that outlive a comparison
    gc.set_threshold(50_000)
    print('{"ready": true}', flush=True)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        _limit_time(cpu_seconds)
        try:
            reply: dict[str, object] = {"equal": equal(request["gold"], request["prediction"])}
        except UnreadableError:
            reply = {"error": UNREADABLE_GOLD}
        except MemoryError:
            reply = {"error": "grader_memory"}
        except RecursionError:  # nested too deep
            alone = request["prediction"] is None
            reply = {"error": UNREADABLE_GOLD} if alone else {"equal": False}
        except Exception as error:
            reply = {"error": f"grader_error: {type(error).__name__}"}
        _limit_time(0)
        print(json.dumps(reply), flush=True)


def _limit_memory() -> None:
    """Bound the address space of this process, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _limit_time(cpu_seconds: float) -> None:
    """Let the kernel end this process after so much CPU time, where it can; 0: not any more."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
