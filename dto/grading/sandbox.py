"""Run code answers, each in an isolated child process with limited resources.

The strictest mode that works on this machine is used; it is tested once, when first needed:

`namespaces`: separate Linux user, mount, PID, network, IPC and host-name namespaces.
    Covered: no network, not even the loopback of this machine. The only files are Python, the
    system's libraries (both read-only) and an empty /tmp in memory, which is the working directory
    and HOME; no /proc. A program can neither see, signal nor outlive other processes: the kernel
    ends all its processes with the first. If dto runs as root, the program runs as nobody.
`bwrap`: the same with bubblewrap; preferred if dto does not run as root. (With root it would run
    the program as root, whose processes Linux does not limit.)
`guards`: if neither is permitted (many containers). Reasons then end in `unisolated`, and a warning
    is logged. Limits apply, and Python itself refuses sockets, processes, signals, ctypes, reading
    outside Python's files and writing outside the working directory. That stops accidents and
    simple attacks; a program that knows Python's internals can bypass it, and the disk is limited
    only for each file.

In all modes: limits on CPU time, memory and open files of each process, on the number of processes,
and on file size; a limit on wall time for all; a clean environment; output is discarded; the
children end with this process. A program that exits before its tests have finished is wrong.

Not covered: a vulnerability of the kernel; memory in total (limit × processes, and files without a
name, disk × files for each process); timing and other side channels; a program that searches the
interpreter for the test and forges the verdict, since both run in one process. A grade says that
tests passed, not that the author was honest.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

Mode = Literal["namespaces", "bwrap", "guards"]

_JAIL = Path(__file__).with_name("jail.py")
_MOST_OUTPUT = 1 << 16  # bytes
_START_SECONDS = 120.0  # starting Python on a busy machine
_STARTED, _KILLED = b"\n", b'{"reason": "killed"}'
_TRIVIAL = {"response": "def f(): return 1", "prompt": "", "entry_point": "f"}
_PYTHON = (sys.executable, "-s", "-P", "-B")

logger = logging.getLogger("dto")


class SandboxError(Exception):
    """A program could not be run; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one program.

    `cpu_seconds` applies to each of its processes and is rounded up to whole seconds; the limit on
    wall time is three times as long, so that a busy machine does not change a grade. Also bytes of
    address space for each process; bytes of files; processes and threads together.
    """

    cpu_seconds: float = 10.0
    memory: int = 1 << 30
    disk: int = 64 << 20
    processes: int = 16
    files: int = 64


class Verdict(NamedTuple):
    """Whether the tests passed, and the reason if not: `time_limit` or an exception's name."""

    passed: bool
    reason: str


class Sandbox:
    """Runs programs, `workers` at a time.

    Args:
        workers: most programs at once.
        limits: limits of each program.
        mode: None: the strictest that works on this machine.
    """

    def __init__(self, workers: int, limits: Limits | None = None, mode: Mode | None = None):
        self._slots = asyncio.Semaphore(workers)
        self._limits = limits or Limits()
        self._mode = mode
        self._choosing = asyncio.Lock()

    async def run(self, response: str, prompt: str, test: str, entry_point: str) -> Verdict:
        """Run the program of a response (`dto.grading.harness`) against its tests.

        Raises SandboxError for failures that the program did not cause.
        """
        mode = await self.mode()
        request = {
            "response": response, "prompt": prompt, "test": test, "entry_point": entry_point
        }  # fmt: skip
        async with self._slots:
            verdict = await self._run(mode, request)
        if mode == "guards":
            return Verdict(verdict.passed, f"{verdict.reason} unisolated".strip())
        return verdict

    async def mode(self) -> Mode:
        """The mode of isolation. Raises SandboxError if none can be set up."""
        async with self._choosing:
            if self._mode is not None:
                return self._mode
            reason = ""
            order: tuple[Mode, ...] = ("bwrap", "namespaces", "guards")
            if os.geteuid() == 0:
                order = ("namespaces", "bwrap", "guards")
            for mode in order:
                try:
                    passed, reason = await self._run(mode, _TRIVIAL | {"test": "assert f() == 1"})
                except SandboxError as error:
                    passed, reason = False, str(error)
                if passed:
                    self._mode = mode
                    break
                logger.debug("sandbox %s: %s", mode, reason)
            if self._mode is None:
                raise SandboxError(reason)
            if self._mode == "guards":
                logger.warning(
                    "code answers run without isolation: neither bwrap nor namespaces can be used "
                    "here, only limits and Python's own guards hold (see dto.grading.sandbox)"
                )
            return self._mode

    async def _run(self, mode: Mode, request: dict[str, str]) -> Verdict:
        directory = tempfile.mkdtemp(prefix="dto-sandbox-")
        try:
            return await self._in(directory, mode, request)
        finally:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def _in(self, directory: str, mode: Mode, request: dict[str, str]) -> Verdict:
        command = [*_PYTHON, str(_JAIL), mode, "/tmp" if mode == "bwrap" else directory]
        if mode == "bwrap":
            command = [*_bwrap(self._limits.disk), *command]
        home = "/tmp" if mode != "guards" else directory
        try:
            child = await asyncio.create_subprocess_exec(
                *command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                env=_environment(home),
                cwd="/",
                start_new_session=True,
                limit=_MOST_OUTPUT,
            )
        except OSError as error:
            raise SandboxError(f"sandbox_{mode}: {error.strerror}") from None
        assert child.stdin is not None and child.stdout is not None
        line = b""
        try:
            with contextlib.suppress(ConnectionError):
                child.stdin.write(json.dumps(request | asdict(self._limits)).encode())
                child.stdin.write_eof()
                async with asyncio.timeout(_START_SECONDS):
                    line = await child.stdout.readline()
                if line == _STARTED:
                    async with asyncio.timeout(3 * self._limits.cpu_seconds):
                        line = await child.stdout.readline() or _KILLED
        except TimeoutError:
            if line != _STARTED:
                raise SandboxError(f"sandbox_{mode}: it does not start in time") from None
            return Verdict(False, "time_limit")
        except ValueError:
            raise SandboxError("sandbox_output") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
        try:
            reply = json.loads(line)
        except ValueError:
            raise SandboxError(f"sandbox_{mode}: it does not start") from None
        if "error" in reply:
            raise SandboxError(str(reply["error"]))
        return Verdict(not reply["reason"], str(reply["reason"]))


def _environment(home: str) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # so that the order of a set does not change a grade
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _bwrap(disk: int) -> list[str]:
    """Arguments that make bubblewrap do the same as `jail.isolate`.

    Bubblewrap's / and /dev (with /dev/shm) are in memory and have no size limit, so they are
    read-only.
    """
    paths = [os.path.realpath(sys.base_prefix), sys.base_prefix, sys.prefix]
    python = [argument for path in paths for argument in ("--ro-bind-try", path, path)]
    system = [
        argument
        for path in ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache")
        for argument in ("--ro-bind-try", path, path)
    ]
    return [
        shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session",
        *system, "--dev", "/dev",
        "--size", str(disk), "--tmpfs", "/tmp", *python, "--ro-bind", str(_JAIL.parent),
        str(_JAIL.parent), "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--",
    ]  # fmt: skip
