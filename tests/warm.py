"""Processes that start at once: forks of one that has imported the slow libraries.

Each is as real a process as any: it has its own memory, can be killed, and leaves an exit code.
Some tests start the command itself, and the training's (`tests/training/test_train.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from runpy import run_path
from subprocess import STDOUT, CompletedProcess, TimeoutExpired
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

CONTEXT = get_context("forkserver")
PRELOADED = [
    "dto.compare.tune",
    "dto.pipeline",
    "dto.engines.transformers",
    "dto.grading",
    "dto.reporting.write",
    "dto.training.fit",
    "dto.training.process",
    "dto.viewer.page",
    "spacy",
    "transformers.models.qwen2.modeling_qwen2",
]
PATIENCE_SECONDS = 30.0


class Start(NamedTuple):
    """What a process starts with."""

    entry: Callable[[list[str]], int | None]
    arguments: list[str]
    directory: str
    environment: dict[str, str]


def begin(start: Start, *streams: Connection) -> None:
    """Be the process: `streams` are its stdout and stderr, those of the tests if there are none."""
    for stream, number in zip(streams, (1, 2), strict=False):
        os.dup2(stream.fileno(), number)
    os.environ.clear()
    os.environ.update(start.environment)
    os.chdir(start.directory)
    sys.path[:] = filter(None, sys.path)  # as an installed command, which adds no directory
    sys.exit(start.entry(start.arguments))


def process(
    entry: Callable[[list[str]], int | None],
    arguments: Sequence[str],
    *streams: IO[Any] | int,
    directory: Path | str = ".",
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Start a process that calls `entry`; what it returns is the exit code."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    CONTEXT.set_forkserver_preload(PRELOADED)
    place, variables = os.path.abspath(directory), dict(environment or os.environ)
    start = Start(entry, list(arguments), place, variables)
    ends = [
        Connection(os.dup(stream if isinstance(stream, int) else stream.fileno()), readable=False)
        for stream in streams
    ]
    started = CONTEXT.Process(target=begin, args=(start, *ends))
    started.start()
    for end in ends:
        end.close()
    return started


def run(
    entry: Callable[[list[str]], int | None], arguments: Sequence[str], directory: Path | str = "."
) -> CompletedProcess[str]:
    """Run such a process to its end."""
    with TemporaryFile() as stdout, TemporaryFile() as stderr:
        started = process(entry, arguments, stdout, stderr, directory=directory)
        started.join()
        assert started.exitcode is not None
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode())
    return CompletedProcess(list(arguments), started.exitcode, *texts)


def training(arguments: list[str]) -> int:
    """`python -m dto.training.process`."""
    from dto.training.process import main

    return main(arguments)


def tuning(arguments: list[str]) -> int:
    """`python -m dto.compare.tune`, whose last argument is its parent."""
    from dto.compare.tune import main

    sys.argv = ["tune", *arguments[:-1], str(os.getppid())]
    return main()


def dto(arguments: list[str]) -> None:
    """The command `dto`."""
    from dto.cli import main

    sys.argv = ["dto", *arguments]
    main()


def script(arguments: list[str]) -> None:
    """A program in a file, with its folder among those that are imported from."""
    sys.path.insert(0, os.getcwd())
    sys.argv = arguments
    run_path(arguments[0], run_name="__main__")


def run_child(
    command: Sequence[str],
    on_line: Callable[[str], object],
    environment: Mapping[str, str] | None = None,
) -> int:
    """`dto.concurrency.run_child` of a training, without `--parent`: the server is the parent."""
    _, _, name, run, parent, _, *rest = command
    assert (name, parent) == ("dto.training.process", "--parent"), command
    reading, writing = os.pipe()
    started = process(training, [run, *rest], writing, environment=environment)
    os.close(writing)
    try:
        with open(reading, encoding="utf-8") as lines:
            for line in lines:
                on_line(line)
    except BaseException:
        started.terminate()
        started.join(PATIENCE_SECONDS)
        started.kill()
        raise
    started.join()
    assert started.exitcode is not None
    return started.exitcode


class Popen:
    """What comparisons use of `subprocess.Popen`, for their processes."""

    def __init__(
        self, command: Sequence[str], *, stdout: IO[Any], stderr: int, env: Mapping[str, str]
    ) -> None:
        _, _, name, *arguments = command
        assert (name, stderr) == ("dto.compare.tune", STDOUT), command
        self._process = process(tuning, arguments, stdout, stdout, environment=env)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutExpired("dto.compare.tune", timeout or 0.0)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
