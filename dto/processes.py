"""Our own processes: their start, their end, and their garbage."""

from __future__ import annotations

import atexit
import ctypes
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

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
