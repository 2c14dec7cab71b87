"""The quickstart's way asks the system for nothing that only Linux, or only Unix, has."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNIX = {
    "crypt",
    "fcntl",
    "grp",
    "posix",
    "pty",
    "pwd",
    "resource",
    "spwd",
    "syslog",
    "termios",
    "tty",
}
"""Modules that Windows lacks."""
CALLS = {
    "os": {
        "fork", "forkpty", "getegid", "geteuid", "getgid", "getuid", "kill", "killpg", "mkfifo",
        "nice", "sched_getaffinity", "setsid", "sysconf", "uname",
    },
    "signal": {
        "ITIMER_PROF", "SIGALRM", "SIGHUP", "SIGKILL", "SIGPROF", "SIGXCPU", "alarm", "setitimer",
    },
}  # fmt: skip
"""Names that modules of every system lack on Windows."""
SANDBOX = {"jail.py", "sandbox.py"}
"""Programs that answer problems run on Linux alone: no recipe can ask for it."""
WITHOUT = f"""
import builtins, ctypes, os, signal, sys

real = builtins.__import__

def without(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {{}}).get("__name__", "")
    if importer.split(".")[0] == "dto" and name.split(".")[0] in {UNIX!r}:
        raise ModuleNotFoundError(f"No module named {{name!r}}")
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = without
for name in ("ITIMER_PROF", "SIGPROF", "SIGXCPU", "setitimer"):
    delattr(signal, name)
for name in ("geteuid", "getuid", "killpg", "sched_getaffinity"):
    delattr(os, name)
library = ctypes.CDLL

def loaded(name, *rest, **options):
    if name is None:
        raise TypeError("argument of type 'NoneType' is not iterable")
    return library(name, *rest, **options)

ctypes.CDLL = loaded
"""
"""Put before each Python process: what dto would find on Windows, as far as Linux can play it."""
TINY = (
    "problems.train=4", "problems.dev=2", "problems.test=2", "sample.samples=2", "estimate.cap=8",
    "estimate.margin=0.2", "train.epochs=1", "train.evaluations=1", "train.dev_samples=1",
    "evaluate.samples=1",
)  # fmt: skip


def guarded(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether code runs only where a test of the platform, or an `except`, lets it."""
    while node in parents:
        node = parents[node]
        if isinstance(node, ast.Try | ast.With):
            return True
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = ast.unparse(node)
            return "sys.platform" in body or "hasattr(" in body
    return False


@pytest.mark.parametrize(
    "path", sorted((ROOT / "dto").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_what_only_unix_has_is_guarded(path: Path) -> None:
    if path.name in SANDBOX:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    bare = []
    for node in ast.walk(tree):
        names: set[str] = set()
        if isinstance(node, ast.Import):
            names = {each.name.split(".")[0] for each in node.names} & UNIX
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]} & UNIX
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = {node.attr} & CALLS.get(node.value.id, set())
        if names and not guarded(node, parents):
            bare.append((node.lineno, *names))  # type: ignore[attr-defined]
    assert bare == []


@pytest.mark.slow(seconds=25)
def test_the_quickstart_runs_without_what_windows_lacks(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT, encoding="utf-8")
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "USERNAME": "somebody"}

    def dto(*arguments: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-c", "from dto.cli import main; main()", *arguments],
            env=environment, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-3000:]
        return ran.stdout

    changes = [part for change in TINY for part in ("--set", change)]
    dto("run", str(ROOT / "pipelines" / "quickstart.yaml"), "--out", "run", *changes)
    assert "base" in dto("report", "run")
    assert "view.html" in dto("view", "run", "--no-open")
