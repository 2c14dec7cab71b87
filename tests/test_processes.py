"""Children end with their parent, whether or not the kernel can do it; parents end children."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from dto.processes import end_children, run_child

WITHOUT_PRCTL = "import ctypes, types; ctypes.CDLL = lambda name: types.SimpleNamespace(); "
"""As on macOS: the C library has no such function."""
BOUND = "from dto.processes import die_with_parent; die_with_parent({}); "
WAIT = "print('ready', flush=True); import time; time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("lead", ["", WITHOUT_PRCTL], ids=["prctl", "thread"])
@pytest.mark.parametrize("known", ["", "int(sys.argv[1])"], ids=["unnamed", "named"])
def test_a_child_ends_with_a_killed_parent(lead: str, known: str) -> None:
    child_code = f"import sys; {lead}{BOUND.format(known)}{WAIT}"
    code = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child_code!r}, str(os.getpid())],"
        " stdout=subprocess.PIPE, text=True)\n"
        "assert child.stdout.readline() == 'ready\\n'\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert not has_ended(child)
        parent.kill()
    until(lambda: has_ended(child))


@pytest.mark.parametrize("lead", ["", WITHOUT_PRCTL], ids=["prctl", "thread"])
def test_a_parent_that_ended_before_ends_the_child_at_once(lead: str) -> None:
    code = f"{lead}{BOUND.format(1 if os.getpid() != 1 else 2)}{WAIT}"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert child.returncode == 1
    assert not child.stderr


def test_lines_and_exit_code_of_a_child() -> None:
    lines: list[str] = []
    code = "import os, sys; print('naïve'); print(os.environ['X']); sys.exit(3)"
    environment = os.environ | {"X": "y", "PYTHONIOENCODING": "utf-8"}
    assert run_child([sys.executable, "-c", code], lines.append, environment) == 3
    assert lines == ["naïve\n", "y\n"]


def test_an_exception_ends_the_child() -> None:
    before = psutil.Process().children()  # other tests leave pools and trackers
    found: list[psutil.Process] = []

    def interrupted(line: str) -> None:
        found.extend(child for child in psutil.Process().children() if child not in before)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child([sys.executable, "-c", WAIT], interrupted)
    assert found and all(has_ended(process) for process in found)


def test_children_that_ignore_a_signal_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dto.processes.PATIENCE_SECONDS", 0.2)
    children = [
        subprocess.Popen([sys.executable, "-c", f"{lead}{WAIT}"], stdout=subprocess.PIPE)
        for lead in (STUBBORN, "")
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.close()
    end_children(children)
    assert [child.returncode for child in children] == [-9, -15]


@pytest.mark.slow
def test_a_living_parent_keeps_its_child() -> None:
    """The near miss: nothing ends where the parent goes on."""
    code = f"{WITHOUT_PRCTL}{BOUND.format(os.getpid())}import time; time.sleep(1.2)"
    assert run_child([sys.executable, "-c", code], print) == 0


@pytest.mark.parametrize(
    ("imported", "collected"), [("json", False), ("triton", True), ("triton_like", False)]
)
def test_nothing_is_collected_at_the_exit_unless_triton_would_report_it(
    imported: str, collected: bool
) -> None:
    code = (
        "import atexit, gc, sys; from dto.processes import collect_rarely; "
        "atexit.register(lambda: print(gc.get_freeze_count() < 1000, gc.isenabled())); "
        f"collect_rarely(); sys.modules[{imported!r}] = sys"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == f"{collected} True\n"
