"""The page of a report in Chromium: it asks for nothing, and is legible in light and dark."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dto.reporting.write import report
from dto.viewer.page import view
from tests.viewer.browser import Browser

INK = "getComputedStyle(document.querySelector('figure svg [style*=\"var(--ink)\"]')).fill"
PAPER = "getComputedStyle(document.body).backgroundColor"
FITS = "document.documentElement.scrollWidth <= innerWidth"


@pytest.fixture(scope="module")
def page(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(small_run, run)
    report(run)
    return run / "report" / "report.html"


def test_a_report_in_light_and_dark(browser: Browser, page: Path) -> None:
    for log in (browser.requests, browser.errors):
        log.clear()
    seen = set()
    for dark in (False, True):
        browser.dark(dark)
        browser.call("Page.navigate", url=page.as_uri())
        browser.wait("document.readyState === 'complete' && document.querySelector('#reproduce')")
        pictures = browser.js("document.querySelectorAll('figure svg').length")
        assert pictures == browser.js("document.querySelectorAll('figure').length") >= 2
        assert browser.js(FITS)
        seen.add((str(browser.js(INK)), str(browser.js(PAPER))))
    assert len(seen) == 2  # letters and paper both follow the system
    assert {ink for ink, _ in seen}.isdisjoint(paper for _, paper in seen)
    assert browser.errors == []
    assert all(url.startswith(("file://", "data:")) for url in browser.requests)


def test_examples_lead_to_their_rows(browser: Browser, page: Path) -> None:
    run = page.parents[1]
    view(run)
    report(run)
    browser.call("Page.navigate", url=page.as_uri())
    browser.wait("document.readyState === 'complete' && document.querySelector('.example')")
    links = browser.js("[...document.querySelectorAll('.example h3 a')].map((a) => a.href)")
    questions = browser.js("[...document.querySelectorAll('.question')].map((p) => p.innerText)")
    assert isinstance(links, list) and isinstance(questions, list) and links
    for link, question in zip(links, questions, strict=True):
        browser.open(link)
        shown = str(browser.js("document.getElementById('detail').innerText"))
        assert question in shown, link


def test_what_scrolls_shows_it(browser: Browser, page: Path) -> None:
    size = {"width": 420, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    try:
        browser.call("Page.navigate", url=page.as_uri())
        browser.wait("document.readyState === 'complete' && document.querySelector('#reproduce')")
        wide = (
            "[...document.querySelectorAll('.scroll, figure')]"
            ".filter((e) => e.scrollWidth > e.clientWidth)"
        )
        assert browser.js(f"{wide}.length")
        shade = "getComputedStyle(e).backgroundImage.includes('radial-gradient')"
        assert browser.js(f"{wide}.every((e) => {shade})")
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")


def test_a_report_fits_a_telephone(browser: Browser, page: Path) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    try:
        browser.call("Page.navigate", url=page.as_uri())
        browser.wait("document.readyState === 'complete' && document.querySelector('#reproduce')")
        assert browser.js(FITS)
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")


def test_a_report_is_printed_in_light_colours_with_all_tables(browser: Browser, page: Path) -> None:
    size = {"width": 720, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call("Emulation.setEmulatedMedia", media="print", features=dark)
    try:
        browser.call("Page.navigate", url=page.as_uri())
        browser.wait("document.readyState === 'complete' && document.querySelector('#reproduce')")
        assert browser.js(PAPER) == "rgb(255, 255, 255)"
        assert browser.js(FITS)
        hidden = "[...document.querySelectorAll('details table')].filter(t => !t.checkVisibility())"
        assert (
            browser.js(f"{hidden}.length")
            == 0
            < browser.js("document.querySelectorAll('details table').length")
        )
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")
        browser.call("Emulation.setEmulatedMedia", media="", features=[])
