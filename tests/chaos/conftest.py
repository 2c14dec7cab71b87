"""The undisturbed run, with which all others are compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
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
def one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No token of Ray in the home folder, and its files in a short path of this test."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    yield
