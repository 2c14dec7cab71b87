"""What all tests share: nothing is fetched, one core is enough, and one small run serves all.

`make test` runs two processes, file by file. Files with slow tests come first, so that neither
process ends long after the other.
"""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files by their number of slow tests, which take most of the time."""
    slow: dict[Path, int] = {}
    for item in items:
        slow[item.path] = slow.get(item.path, 0) + (item.get_closest_marker("slow") is not None)
    items.sort(key=lambda item: -slow[item.path])
