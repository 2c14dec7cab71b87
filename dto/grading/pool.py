"""Compare answers in child processes that can be killed, one comparison at a time in each.

A child imports no torch, so it starts in a second. Parent and child exchange one JSON object a
line: first `{"ready": true}`, then `{"gold": …, "prediction": …}` in and `{"equal": true}` or
`{"error": …}` out. The kernel ends a child (SIGPROF) when one comparison has used its CPU time,
also inside a big-integer power, which a Python signal handler could not interrupt. The limit is on
CPU time, not wall time: a busy machine does not change a grade. A child ends with its parent.
Windows has no such limits: there a comparison has `_WALL_FACTOR` times its CPU time as wall time,
and its memory is not bounded.

A child compares either by a module of this package or by an answer rule of another package. The
rule of a problem names both the function and its settings, in one string:
`my_package.rules:Near {"tolerance": 0.1}`.
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
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from dto.errors import DtoError
from dto.processes import die_with_parent
from dto.records import RULE_FAILED

_CHILD = (
    "import sys; from dto.grading.pool import serve; "
    "serve(sys.argv[1], float(sys.argv[2]), sys.argv[3:])"
)
_MEMORY = 2 * 2**30  # bytes of address space of a child
_PACKAGES = str(Path(__file__).parents[2])
UNREADABLE_GOLD = "unreadable_gold"
_START_SECONDS = 120.0  # importing sympy on a busy machine
_WALL_FACTOR = 60.0  # wall time over CPU time after which a child counts as stuck
_ENDED_BY: dict[int, str] = {
    getattr(signal, "SIGPROF", 0): "timeout",
    signal.SIGSEGV: "memory",  # the C stack
    signal.SIGABRT: "memory",  # how C libraries meet the limit on memory
}
_MESSAGE = 200  # characters of an exception's message in a reason

Reply = dict[str, object]


class ComparisonError(Exception):
    """A comparison without a result; the message is the reason, a slug.

    `repeatable`: the same comparison would fail again, because it exceeds a limit, breaks the
    parser, or makes a rule raise. A child that was killed from outside is not repeatable.
    """

    def __init__(self, reason: str, *, repeatable: bool = False) -> None:
        super().__init__(reason)
        self.repeatable = repeatable


class WorkerPool:
    """At most `workers` children, each started when a comparison first needs it.

    A child that exceeds `time_limit` seconds of CPU time in one comparison is replaced; the others
    continue. `comparison` is a module with a function `equal`, or an answer rule of another package
    (see `serve`). Bound to the event loop it is used on, until `close`.
    """

    def __init__(self, workers: int, time_limit: float, comparison: str) -> None:
        self._time_limit, self._comparison = time_limit, comparison
        self._is_rule = ":" in comparison
        self._prefix = RULE_FAILED if self._is_rule else "grader_"
        self._slots = asyncio.Semaphore(workers)
        self._idle: list[Process] = []
        self._alive: set[Process] = set()

    async def equal(self, gold: str, prediction: str | None) -> bool:
        """Whether the two are equal.

        With None for the prediction, only check that the gold answer can be read and compared with
        a number. Raises ComparisonError (unreadable_gold, grader_timeout, grader_memory,
        grader_error: …, grader_crashed, grader_stuck; the last two are not `repeatable`; under a
        rule the same with `rule_`) and, when children cannot be started at all, DtoError.
        """
        request: dict[str, object] = {"gold": gold, "prediction": prediction}
        async with self._slots:
            child = self._idle.pop() if self._idle else await self._start()
            try:
                reply = await self._ask(child, request)
            except BaseException:
                # Usually cancelled: a late reply must not answer a later request.
                await self._end(child)
                raise
            if "error" not in reply:
                self._idle.append(child)
                return bool(reply["equal"])
            reason = str(reply["error"])
            if reason == UNREADABLE_GOLD or reply.get("unharmed"):
                self._idle.append(child)
            else:
                await self._end(child)
            from_outside = reason in (f"{self._prefix}crashed", f"{self._prefix}stuck")
            raise ComparisonError(reason, repeatable=not from_outside)

    async def close(self) -> None:
        """End all children."""
        self._idle.clear()
        await asyncio.gather(*(self._end(child) for child in tuple(self._alive)))

    async def _start(self) -> Process:
        # Where the child finds this package, installed or not.
        path = os.pathsep.join(filter(None, (_PACKAGES, os.environ.get("PYTHONPATH"))))
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # files in the current folder must not shadow the libraries
            "-c",
            _CHILD,
            self._comparison,
            str(self._time_limit),
            *(map(os.path.abspath, sys.path) if self._is_rule else ()),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
        self._alive.add(child)
        assert child.stdout is not None
        first: Reply = {}
        try:
            with contextlib.suppress(TimeoutError, ValueError):
                line = await asyncio.wait_for(child.stdout.readline(), _START_SECONDS)
                first = json.loads(line)
        finally:
            if "ready" not in first:
                await self._end(child)
        if "ready" not in first:
            raise DtoError(self._why_not_started(first))
        return child

    def _why_not_started(self, reply: Reply) -> str:
        if not self._is_rule:
            return (
                "grading worker does not start: it needs math-verify, try "
                f"`{sys.executable} -c 'import {self._comparison}'`"
            )
        why = reply.get("error", "the process ended while it was imported")
        return (
            f"answer rule {self._comparison} cannot be loaded in a grading process, which has "
            f"{_MEMORY / 2**30:g} GiB of memory: {why}"
        )

    async def _ask(self, child: Process, request: Mapping[str, object]) -> Reply:
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(f"{json.dumps(request)}\n".encode())
            async with asyncio.timeout(_WALL_FACTOR * self._time_limit):
                line = await child.stdout.readline()
        except TimeoutError:
            return {"error": f"{self._prefix}stuck"}
        except ConnectionError:
            line = b""
        if line.endswith(b"\n"):
            reply: Reply = json.loads(line)
            return reply
        status = await child.wait()
        return {"error": self._prefix + _ENDED_BY.get(-status, "crashed")}

    async def _end(self, child: Process) -> None:
        if child.returncode is None:
            child.kill()
        if child.stdin is not None:
            child.stdin.close()
        await child.wait()
        self._alive.discard(child)


class UnreadableError(Exception):
    """Raised by `equal` for a gold answer that cannot be read, or only in part."""


def serve(comparison: str, cpu_seconds: float, folders: Sequence[str] = ()) -> None:
    """Answer requests until stdin ends: the child's side.

    `comparison` is a module whose function `equal` compares a gold answer and a prediction; with
    None for the prediction it raises if nothing can be compared with the gold answer. Or it is an
    answer rule of another package, which is looked for in `folders` after Python's own.
    """
    die_with_parent()
    # Importing sympy, and then the parser, make many small objects; few of the parser's stay.
    gc.set_threshold(50_000)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent decides
    _limit_memory()
    logging.disable(logging.CRITICAL)
    requests, replies = _own_pipes()
    if ":" in comparison:
        sys.path.extend(folder for folder in folders if folder not in sys.path)
        try:
            reply_to = _by_rule(comparison)
        except BaseException as error:  # the module of a rule may hold any code
            print(json.dumps({"error": _described(error)}), file=replies, flush=True)
            return
    else:
        reply_to = _by_module(comparison)
    gc.freeze()
    print('{"ready": true}', file=replies, flush=True)
    for line in requests:
        request: dict[str, Any] = json.loads(line)
        _limit_time(cpu_seconds)
        reply = reply_to(request["gold"], request["prediction"])
        _limit_time(0)
        print(json.dumps(reply), file=replies, flush=True)


def _limit_memory() -> None:
    """Bound the address space of this process, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _limit_time(cpu_seconds: float) -> None:
    """Let the kernel end this process after so much CPU time, where it can; 0: not any more."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


def _own_pipes() -> tuple[TextIO, TextIO]:
    """Move requests and replies away from stdin and stdout: a rule may read or print."""
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    return requests, replies


def _by_module(name: str) -> Callable[[str, str | None], Reply]:
    equal: Callable[[str, str | None], bool] = import_module(name).equal
    equal("x+1", "1+x")  # the first comparison builds the parser

    def reply(gold: str, prediction: str | None) -> Reply:
        try:
            return {"equal": equal(gold, prediction)}
        except UnreadableError:
            return {"error": UNREADABLE_GOLD}
        except MemoryError:
            return {"error": "grader_memory"}
        except RecursionError:  # nested too deep
            return {"error": UNREADABLE_GOLD} if prediction is None else {"equal": False}
        except Exception as error:
            return {"error": f"grader_error: {type(error).__name__}"}

    return reply


def _by_rule(rule: str) -> Callable[[str, str], Reply]:
    accepts = load_rule(rule)

    def reply(gold: str, answer: str) -> Reply:
        try:
            equal: object = accepts(answer, gold)
            if not isinstance(equal, bool):
                raise TypeError(f"returned {type(equal).__name__}, not bool")
        except MemoryError:
            return {"error": f"{RULE_FAILED}memory"}
        except BaseException as error:  # any code may run here, also sys.exit
            return {"error": f"{RULE_FAILED}error: {_described(error)}", "unharmed": True}
        return {"equal": equal}

    return reply


def _described(error: BaseException) -> str:
    first_line = next(iter(str(error).splitlines()), "")[:_MESSAGE]
    return f"{type(error).__name__}: {first_line}".removesuffix(": ")


def row_rule(path: str, settings: Mapping[str, Any]) -> str:
    """The rule of a problem: a built-in name, or an import path with its settings as JSON."""
    if not settings:
        return path
    return f"{path} {json.dumps(settings, ensure_ascii=False, sort_keys=True)}"


def load_rule(rule: str) -> Callable[[str, str], bool]:
    """The function that the rule of a problem names, for a rule of another package.

    Raises ValueError as `dto.extension.load` does, and for an object that is not a function of
    (answer, gold).
    """
    import inspect

    from dto.extension import load  # pydantic: only rules of other packages need it

    path, _, settings = rule.partition(" ")
    function = load(path, json.loads(settings or "{}"))
    try:
        inspect.signature(function).bind("answer", "gold")
    except TypeError as error:
        raise ValueError(
            f"answer rule {path!r} cannot be called as rule(answer, gold): {error}"
        ) from None
    except ValueError:
        pass  # a function of C without a signature
    accepts: Callable[[str, str], bool] = function
    return accepts
