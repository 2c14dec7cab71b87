"""Child processes: a child ends with its parent, and a parent that stops ends its children."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

PARENT_CHECK_SECONDS = 0.5
PATIENCE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int | None = None) -> None:
    """End this process when its parent is gone, also after kill -9.

    On Linux the kernel kills it when the thread that started it ends; elsewhere a thread checks
    the parent's id twice a second. `parent` is that id where the caller knows it: a parent that
    ended before this call ends the process at once.
    """
    expected = os.getppid() if parent is None else parent
    try:
        bound = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0
    except (OSError, AttributeError):
        bound = False
    if not bound:
        threading.Thread(target=_watch, args=(expected,), name="parent-watch", daemon=True).start()
    elif os.getppid() != expected:
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


def run_child(
    command: Sequence[str],
    on_line: Callable[[str], object],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a child to its end; its exit code (negative: the signal that ended it).

    `on_line` is called with each line of its stdout. An exception here, Ctrl-C for one, ends the
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
    """Terminate all of them, and kill those that are still there `PATIENCE_SECONDS` later."""
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
