"""A small run that is whole, a Hub that is not, and a client that goes there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest

from dto.hub.publish import publish
from dto.hub.upload import UploadResult
from dto.pipeline import needed, open_run, run_stages
from dto.recipe import load_recipe
from dto.reporting.write import report
from dto.runs.run import Run, agree
from tests.hub.server import WRITER, Hub, serving

ROOT = Path(__file__).parents[2]
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
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every stage; nobody writes to it."""
    place = tmp_path_factory.mktemp("whole") / "small"
    run = open_run(place, load_recipe(ROOT / "pipelines" / "quickstart.yaml", dict(SMALL)))
    try:
        run_stages(run, needed(run.recipe))
        report(place)
    finally:
        run.close()
    return place


@pytest.fixture
def run_path(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run below the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(whole, tmp_path / "runs" / "small"))


@pytest.fixture
def finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Run]:
    """The finished run that DTO_QUICKSTART names, copied; without it the small one."""
    named = os.environ.get("DTO_QUICKSTART")
    source = Path(named) if named else request.getfixturevalue("whole")
    path = tmp_path / "runs" / "finished"
    shutil.copytree(source, path, ignore=shutil.ignore_patterns(".lock", "publish"))
    monkeypatch.chdir(tmp_path)
    opened = open_run(path, load_recipe(path / "recipe.yaml"), recompute=agree)
    yield opened
    opened.close()


@pytest.fixture
def run(run_path: Path) -> Iterator[Run]:
    opened = open_run(run_path, load_recipe(run_path / "recipe.yaml"), recompute=agree)
    yield opened
    opened.close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, to which the client of this process goes with a token that may write.

    Nothing waits before it tries again.
    """
    with serving() as served:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        own = template.replace(template.split("/{repo_id}")[0], served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", own)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        clock = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
        monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield served


def sent(run: Run, name: str, **settings: Any) -> UploadResult:
    """Publish a run; what the Hub made of it."""
    uploaded = publish(run, name, **settings).uploaded
    assert uploaded is not None
    return uploaded
