"""Copies of a small run, a stand-in for the Hub, and a client that goes there."""

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
from dto.hub.upload import Uploaded
from dto.pipeline import open_run
from dto.recipe import load_recipe
from dto.runs.run import OpenRun, agree
from tests.hub.server import WRITER, Hub, serving


@pytest.fixture
def run_path(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run below the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(small_run, tmp_path / "runs" / "small"))


@pytest.fixture
def finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[OpenRun]:
    """The finished run that DTO_QUICKSTART names, copied; without it the small one."""
    named = os.environ.get("DTO_QUICKSTART")
    source = Path(named) if named else request.getfixturevalue("small_run")
    path = tmp_path / "runs" / "finished"
    shutil.copytree(source, path, ignore=shutil.ignore_patterns(".lock", "publish"))
    monkeypatch.chdir(tmp_path)
    opened = open_run(path, load_recipe(path / "recipe.yaml"), recompute=agree)
    yield opened
    opened.close()


@pytest.fixture
def run(run_path: Path) -> Iterator[OpenRun]:
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


def sent(run: OpenRun, name: str, **settings: Any) -> Uploaded:
    """Publish a run; what the Hub made of it."""
    uploaded = publish(run, name, **settings).uploaded
    assert uploaded is not None
    return uploaded
