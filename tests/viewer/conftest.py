"""Runs that no model wrote, and a browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dto.viewer.page import view
from tests.viewer.browser import Browser, chromium
from tests.viewer.generated import HOSTILE, write


@pytest.fixture(scope="session")
def quickstart_run(request: pytest.FixtureRequest) -> Path:
    """The finished run that DTO_QUICKSTART names, or else a small one; nothing is written there."""
    finished = os.environ.get("DTO_QUICKSTART")
    return Path(finished) if finished else request.getfixturevalue("small_run")


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts that want to be more than text, in every place where a run holds text."""
    path = tmp_path_factory.mktemp("hostile") / "run"
    write(path, len(HOSTILE), samples=2, segments=4, sentences=1, texts=HOSTILE)
    return path


@pytest.fixture(scope="session")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 10,000 trajectories, short ones: it is their number that is tested."""
    path = tmp_path_factory.mktemp("large") / "run"
    write(path, 2_500, samples=4, segments=3, sentences=1, evaluated=False)
    return view(path)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """In CI it has to be there; elsewhere these tests need Debian's package `chromium`."""
    if chromium() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is missing: apt-get install chromium")
        pytest.skip("chromium is not installed")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def quiet(browser: Browser) -> Iterator[None]:
    """Whatever a test does: no error, no dialog, no request but for the file itself."""
    for log in (browser.requests, browser.dialogs, browser.errors):
        log.clear()
    yield
    assert not browser.errors and not browser.dialogs
    assert all(url.startswith("file://") for url in browser.requests)
