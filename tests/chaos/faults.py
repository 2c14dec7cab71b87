"""Faults at moments that a seed draws, counted in file operations of the run and not in seconds.

`CHAOS=first:count` chooses the seeds; without it, two of each kind run (CI). `make chaos` runs
fifty. The n-th fault of a kind is the same each time: `Random(f"{kind} {n}")` draws all of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from uuid import uuid4

import psutil
import pytest

from dto.runs import manifest
from tests import warm

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="finds processes and files in /proc")
FIRST, COUNT = map(int, os.environ.get("CHAOS", "0:2").split(":"))
SEEDS = range(FIRST, FIRST + COUNT)
TABLES = ("problems", "sample", "segment", "estimate", "optimize", "prune", "pair", "evaluate")
RECIPE = """
model: {name: nano, family: nano, context: 1024, slots: 32}
window: 2
problems: {train: 4, dev: 1, test: 2}
sample: {samples: 2, temperature: 1.0, top_p: 1.0, max_tokens: 140}
estimate: {threshold: 0.3, margin: 0.2, cap: 8, max_tokens: 16}
optimize: {max_tokens: 48}
prune: {rollouts: 2}
pair: {max_length: 1024}
evaluate: {samples: 1, temperature: 1.0, top_p: 1.0, max_tokens: 140, models: [base]}
"""
MARK = "DTO_CHAOS"
"""An environment variable by which all processes of a command are found, orphans included."""
ENDING_SECONDS = 60.0
PIPE_BYTES = 2**20
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own, without a model: after a kill they have been seen for up to 81 seconds."""


@dataclass(frozen=True)
class Fault:
    """Before the `at`-th operation on a file of the run, `act`.

    `kill`: the driver, after `share` of the line if the operation writes to a journal. `stop`: the
    driver waits for SIGCONT. `full`: no file can grow beyond the journal's size, or at all.
    `actor`: one of the driver's Ray actors is killed. `node`: the second node of its cluster.
    """

    act: str
    at: int
    share: float = 0.0


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line of stderr."""
        return (self.err.strip().splitlines() or [""])[-1]


def draw(kind: str, seed: int) -> Random:
    """The source of all that is random about a fault."""
    return Random(f"{kind} {seed}")


class Injector:
    """Counts this process's operations on files below `run`, and acts before one of them."""

    def __init__(self, run: Path, faults: Sequence[Fault], counted: Path | None) -> None:
        self._run, self._faults, self._counted = f"{run}{os.sep}", faults, counted
        self._pid, self._count = os.getpid(), 0
        self._write = os.write
        os.write = self._journal_write  # type: ignore[assignment]
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
            path = arguments[0] if changes else ""
        if changes and self._concerns(path):
            self._step()

    def _concerns(self, path: Any) -> bool:
        if isinstance(path, int):
            return False  # a file that was counted when it was opened
        return os.getpid() == self._pid and os.path.abspath(os.fsdecode(path)).startswith(self._run)

    def _journal_write(self, descriptor: int, data: Any) -> int:
        if os.getpid() == self._pid:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
            if name.startswith(self._run) and name.endswith("/journal"):
                self._step(descriptor, bytes(data))
        return self._write(descriptor, data)

    def _step(self, descriptor: int = -1, line: bytes = b"") -> None:
        self._count += 1
        if self._counted is not None:
            self._counted.write_text(str(self._count))
        for fault in self._faults:
            if fault.at == self._count:
                self._act(fault, descriptor, line)

    def _act(self, fault: Fault, descriptor: int, line: bytes) -> None:
        if fault.act == "kill":
            if line:
                self._write(descriptor, line[: int(fault.share * len(line))])
            os.kill(self._pid, signal.SIGKILL)
        elif fault.act == "stop":
            os.kill(self._pid, signal.SIGSTOP)
        elif fault.act == "full":
            size = os.fstat(descriptor).st_size if line else 0
            limit = size + int(fault.share * len(line))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        else:
            name = {"actor": "ray::Worker", "node": NODE}[fault.act]
            below = psutil.Process(self._pid).children(recursive=True)
            victims = [process for process in below if _is(process, name)]
            if victims:
                victims[int(fault.share * len(victims))].kill()


NODE = "chaos_node"
"""A resource of the node that is killed, by which its raylet is found."""


def _is(process: psutil.Process, text: str) -> bool:
    with suppress(psutil.Error):
        return text in " ".join(process.cmdline())
    return False


def driver(arguments: list[str]) -> None:
    """`dto run` for all stages but the training, with a fault; other commands as they are."""
    from dto.commands import run as commands
    from dto.pipeline import needed

    faults, place, counted, nodes, *command = arguments
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    planned = [Fault(**fault) for fault in json.loads(faults)]
    Injector(Path(place), planned, Path(counted) if counted else None)
    commands.needed = lambda recipe: needed(recipe, "pair", "evaluate")  # type: ignore[attr-defined]
    if command[0] == "run":
        commands._report = lambda path: None
    if nodes:
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1, resources={NODE: 1})
        command += ["--ray", f"{cluster.address},2"]
    warm.dto(command)


class Command:
    """A command of dto on a run, in a process of its own."""

    def __init__(
        self,
        run: Path,
        *command: str,
        faults: Sequence[Fault] = (),
        counted: Path | None = None,
        nodes: bool = False,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.mark = uuid4().hex
        # Pipes, since a file would have no room either when the disk is full.
        (self._out, out), (self._err, err) = os.pipe(), os.pipe()
        for end in (out, err):
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        planned = json.dumps([asdict(fault) for fault in faults])
        arguments = [planned, str(run), str(counted or ""), "1" * nodes, *command]
        self.process: BaseProcess = warm.process(
            driver,
            arguments,
            out,
            err,
            directory=run.parent,
            environment={**environment, MARK: self.mark},
        )
        os.close(out)
        os.close(err)

    def wait(self) -> Ended:
        """Wait for its end, and for that of all processes that it started."""
        self.process.join()
        until = time.monotonic() + ENDING_SECONDS
        while (left := self.left()) and time.monotonic() < until:
            time.sleep(0.02)
        names = [" ".join(process.cmdline())[:80] for process in left]
        assert not left, f"left over: {names}"
        texts = []
        for end in (self._out, self._err):
            with open(end, encoding="utf-8") as text:
                texts.append(text.read())
        assert self.process.exitcode is not None
        return Ended(self.process.exitcode, *texts)

    def left(self) -> list[psutil.Process]:
        """The processes of this command that have not ended."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                agent = process.cmdline()[:1] and process.cmdline()[0].startswith(AGENTS)
                if process.environ().get(MARK) == self.mark and not agent:
                    found.append(process)
        return found

    def stopped(self) -> bool:
        """Wait until it stops; false if it ends instead."""
        while self.process.is_alive():
            if psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED:
                return True
            time.sleep(0.01)
        return False

    def resume(self) -> None:
        """Let it go on after a stop."""
        os.kill(self.process.pid or 0, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it, and none of the processes that it started."""
        self.process.kill()


def files(run: Path) -> set[str]:
    """All files of a run, hidden ones too."""
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}


def check_same(whole: Path, disturbed: Path) -> None:
    """Tables, dropped rows, digests and tokens are equal, and nothing else is left."""
    left, lost = files(disturbed) - files(whole), files(whole) - files(disturbed)
    assert not left | lost, f"left over: {sorted(left)}, lost: {sorted(lost)}"
    for stage in TABLES:
        for name in ("rows.parquet", "dropped.jsonl"):
            file = f"{stage}/{name}"
            assert (disturbed / file).read_bytes() == (whole / file).read_bytes(), file
        one, other = (manifest.read(run / stage) or {} for run in (whole, disturbed))
        for key in ("digest", "content", "rows", "groups", "dropped", "config"):
            assert one[key] == other[key], (stage, key)
        for key in ("requests", "failed", "prompt", "generated"):
            assert one["usage"][key] == other["usage"][key], (stage, key)


def check_readers(run: Path, random: Random) -> Ended:
    """A reader shows the run as it is, or says in one line what is wrong."""
    command = random.choice([("report", str(run)), ("view", str(run), "--no-open")])
    ended = Command(run, *command).wait()
    assert ended.code == 0 or ended.last.startswith("dto: error: "), (command, ended.err)
    (run / "view.html").unlink(missing_ok=True)
    shutil.rmtree(run / "report", ignore_errors=True)
    return ended
