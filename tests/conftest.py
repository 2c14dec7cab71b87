"""What all tests share: nothing is fetched, one core is enough, and one small run serves all.

`make test` runs two processes, file by file. Files with slow tests come first, so that neither
process ends long after the other.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
from filelock import FileLock

from dto.processes import collect_rarely

collect_rarely()  # before torch is imported

from tests import pictures, warm  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

# The same examples in every run: a change breaks a test, not chance. `HYPOTHESIS=search` looks on.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", max_examples=3_000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS", "same"))

ROOT = Path(__file__).parents[1]
SMALL = {
    "name": "small",
    "problems.train": 8,
    "problems.dev": 8,
    "problems.test": 6,
    "sample.samples": 2,
    "estimate.cap": 12,
    "estimate.margin": 0.2,
    "train.evaluations": 1,
    "train.dev_samples": 2,
    "train.learning_rate": 2e-4,
    "train.epochs": 4,
}
"""The quickstart, in seconds."""


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of every stage, with its report; tests copy it before they write.

    It is computed once, also where several processes test.
    """
    from dto.pipeline import needed, open_run, run_stages
    from dto.recipe import load_recipe
    from dto.reporting.write import report

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    path = shared / "small"
    with FileLock(shared / "small.lock"):
        if not (path / "report" / "report.html").exists():
            run = open_run(path, load_recipe(ROOT / "pipelines" / "quickstart.yaml", SMALL))
            try:
                run_stages(run, needed(run.recipe))
                report(path)
            finally:
                run.close()
    return path


@pytest.fixture(scope="session", autouse=True)
def trainings_start_at_once() -> Iterator[None]:
    """The processes of a training are forks of one that has imported torch (tests/warm.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dto.training.train.run_child", warm.run_child)
        started = SimpleNamespace(Popen=warm.Popen, STDOUT=subprocess.STDOUT)
        patch.setattr("dto.compare.compare.subprocess", started)
        yield


@pytest.fixture(scope="session", autouse=True)
def pictures_are_drawn_once() -> Iterator[None]:
    """A picture of data that were drawn before is the same picture (tests/pictures.py)."""
    with pytest.MonkeyPatch.context() as patch:
        pictures.use(patch)
        yield


@pytest.fixture
def drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture is drawn."""
    pictures.use(monkeypatch, anew=True)


SLOW_FIXTURES = {"small_run", "quickstart_run", "finished"}


SECONDS = 2.0
"""Of a slow test whose mark does not say more: `slow(seconds=60)`."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow whatever reads the small run; order files by the seconds of their slow tests."""
    seconds: dict[Path, float] = {}
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
        slow = item.get_closest_marker("slow")
        more = slow.kwargs.get("seconds", SECONDS) if slow else 0.0
        seconds[item.path] = seconds.get(item.path, 0.0) + more
    items.sort(key=lambda item: -seconds[item.path])
