"""The undisturbed run, with which all others are compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from tests.chaos.faults import RECIPE, Command


class Whole(NamedTuple):
    """A run without faults, and the number of operations on its files."""

    path: Path
    operations: int
    recipe: Path


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    recipe, counted = folder / "tiny.yaml", folder / "counted"
    recipe.write_text(RECIPE)
    ended = Command(folder / "run", "run", str(recipe), "--out", "run", counted=counted).wait()
    assert ended.code == 0, ended.err
    return Whole(folder / "run", int(counted.read_text()), recipe)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread; Ray's files in a folder with a short path, and none in the home folder."""
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield
