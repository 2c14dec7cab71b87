"""Our own processes: their start, their end, and their garbage."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from dto.concurrency import die_with_parent

PATIENCE_SECONDS = 10.0
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


def collect_rarely() -> None:
    """Collect garbage less often in this process, and not at its exit.

    torch and its libraries leave a million objects that stay. Visiting them again and again takes a
    third of the time in which a process with them starts and ends.
    """
    gc.set_threshold(100_000, 20, 20)
    atexit.register(_skip_the_last)


def _skip_the_last() -> None:
    # Triton reports each of its objects that outlives the interpreter, in sixty lines.
    if "triton" not in sys.modules:
        gc.freeze()
