"""The page in Chromium: what is there, what keys and filters do, and what texts cannot do."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dto import tables
from dto.records import Segment
from dto.viewer.data import RunTables
from dto.viewer.page import view
from dto.viewer.tree import RunText, run_text
from tests.viewer.browser import OPENED, Browser, choose, count, text
from tests.viewer.generated import HOSTILE, write

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet")]


@pytest.fixture(scope="module")
def plain_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "run"
    write(path, 3, samples=3, segments=4, sentences=1)
    return view(path)


def test_ten_thousand_rows(browser: Browser, large_page: Path) -> None:
    browser.open(large_page.as_uri())
    assert count(browser) == 10_000
    assert browser.js("document.querySelectorAll('.row').length") < 60  # those in view only
    first = browser.js(OPENED)
    browser.press("j", "ArrowDown", "k")
    browser.wait(f"{OPENED} !== {json.dumps(first)}")
    second = browser.js(OPENED)
    browser.press("G")
    browser.wait(f"{OPENED} !== {json.dumps(second)}")
    assert 'aria-posinset="10000"' in str(browser.js("document.getElementById('list').innerHTML"))
    browser.press("g")
    browser.wait(f"{OPENED} === {json.dumps(first)}")


def test_filters_and_order(browser: Browser, large_page: Path) -> None:
    browser.open(large_page.as_uri())
    choose(browser, "outcome", "repaired")
    repaired = count(browser)
    assert repaired == 2_500
    choose(browser, "grade", "correct")
    assert count(browser) == 0
    assert "No row matches" in text(browser, "#detail")
    browser.press("r")
    assert count(browser) == 10_000
    choose(browser, "kind", "alternative")
    some = count(browser)
    assert 0 < some < 10_000
    choose(browser, "kind", "any")
    choose(browser, "saved", "saved ≥ 25 %")
    assert 0 < count(browser) < 10_000
    choose(browser, "sort", "most tokens saved first")
    shown = browser.js("[...document.querySelectorAll('.row .less')].map((e) => e.textContent)")
    assert isinstance(shown, list)
    savings = [int(re.sub(r"\D", "", each)) for each in shown]
    assert savings == sorted(savings, reverse=True) and savings[0] >= 25


def test_search_finds_what_stands_deep_in_a_text(browser: Browser, hostile_run: Path) -> None:
    page = view(hostile_run)
    browser.open(page.as_uri())
    browser.press("/")
    browser.type("ONERROR=alert(2)")
    browser.wait("document.body.dataset.searched === 'onerror=alert(2)'")
    assert count(browser) == 2  # both samples of the one problem
    browser.press("Escape", "r")
    assert count(browser) == 2 * len(HOSTILE)
    browser.press("/")
    browser.type("no such text anywhere")
    browser.wait("document.body.dataset.searched === 'no such text anywhere'")
    assert count(browser) == 0


def test_no_text_becomes_more_than_text(browser: Browser, hostile_run: Path) -> None:
    page = view(hostile_run)
    browser.open(page.as_uri())
    found = RunTables(hostile_run)
    for list_number, rows in enumerate((found.trajectories(), found.answers())):
        if list_number:
            browser.press("l")
        for place, row in enumerate(rows):
            if place:
                browser.press("j")
            browser.wait(f"{OPENED} === {json.dumps(row.id)}")
            assert row.problem is not None
            nodes = run_text(row.problem.question)
            expected = [
                node.text if isinstance(node, RunText) else node.children[0] for node in nodes
            ]
            assert text(browser, ".question") == "".join(expected)
    assert (
        browser.js("document.querySelectorAll('#detail img, #detail script, #detail svg').length")
        == 0
    )
    assert browser.js("document.querySelectorAll('[onerror], [onload], [onmouseover]').length") == 0
    assert browser.js("document.querySelectorAll('a').length") == 0
    page.write_text(page.read_text("utf-8").replace("</body>", "<script>alert(1)</script></body>"))
    browser.open(page.as_uri())  # were there a gap, the policy would still refuse what is not ours
    assert any("Content Security Policy" in error for error in browser.errors)
    assert not browser.dialogs
    browser.errors.clear()


def test_a_row_of_a_megabyte(browser: Browser, tmp_path: Path) -> None:
    write(
        tmp_path, 2, samples=1, segments=3, texts={"long": "x" * 500_000, "lines": "y\n" * 250_000}
    )
    browser.open(view(tmp_path).as_uri())
    browser.press("j")
    browser.wait("document.querySelector('#detail .text').textContent.length > 500000")


def test_dark_and_light(browser: Browser, plain_page: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.dark(False)
    browser.open(plain_page.as_uri())
    light = browser.js(ground)
    browser.dark(True)
    dark = browser.js(ground)
    assert light == "rgb(255, 255, 255)" and dark not in (light, "rgba(0, 0, 0, 0)")
    browser.press("t")
    assert (browser.js(ground), text(browser, "#theme")) == (light, "Light")
    browser.reload()
    for _ in range(40):  # it is remembered, as soon as Chromium has stored it
        if browser.js(ground) == light:
            break
        browser.reload()
    assert (browser.js(ground), text(browser, "#theme")) == (light, "Light")
    browser.press("t", "t")
    assert (browser.js(ground), text(browser, "#theme")) == (dark, "Auto")
    browser.dark(False)


def test_keys_within_a_row(browser: Browser, hostile_run: Path) -> None:
    browser.open(view(hostile_run).as_uri())
    browser.press("n", "n")
    assert browser.js("document.querySelector('.segment.at').dataset.segment") == "1"
    browser.press("p")
    assert browser.js("document.querySelector('.segment.at').dataset.segment") == "0"
    browser.press("x")
    assert (
        browser.js("getComputedStyle(document.querySelector('s.text')).textDecorationLine")
        == "none"
    )
    browser.press("?")
    assert browser.js("document.getElementById('help').open")
    assert "sample" in text(browser, "#stages")
    browser.press("?")
    assert not browser.js("document.getElementById('help').open")
    browser.js("document.querySelector('.ribbon [data-go=\"3\"]').click()")
    assert browser.js("document.querySelector('.segment.at').dataset.segment") == "3"


def test_the_address_leads_back_to_the_view(browser: Browser, large_page: Path) -> None:
    browser.open(large_page.as_uri())
    choose(browser, "outcome", "repaired")
    choose(browser, "sort", "longest first")
    browser.press("j", "j", "Enter")
    row, address = browser.js("document.body.dataset.chosen"), str(browser.js("location.hash"))
    assert "outcome=repaired" in address and "sort=before" in address
    browser.open(large_page.as_uri() + address)
    assert browser.js(OPENED) == row and count(browser) == 2_500
    assert browser.js("document.querySelector('.row[aria-selected=true]') !== null")
    browser.press("r")
    assert count(browser) == 10_000
    assert browser.js("document.body.dataset.chosen") == row
    browser.js("history.back()")
    browser.wait("location.hash.includes('outcome=repaired')")
    browser.wait("document.getElementById('count').textContent.startsWith('2,500')")


def test_an_address_may_name_the_beginning_of_an_id_or_no_row(
    browser: Browser, plain_page: Path
) -> None:
    browser.open(plain_page.as_uri())
    browser.press("G")
    last = str(browser.js("document.body.dataset.chosen"))
    browser.open(f"{plain_page.as_uri()}#{last[:8]}")
    assert str(browser.js(OPENED)).startswith(last[:8])
    browser.open(f"{plain_page.as_uri()}#nothing/007")
    assert text(browser, "#said") == "No row has the id nothing/007."
    browser.open(plain_page.as_uri() + "#%")
    assert browser.js("document.querySelectorAll('.row').length") == 9


def test_a_row_that_is_left_before_it_opens_does_not_show(
    browser: Browser, large_page: Path
) -> None:
    browser.open(large_page.as_uri())
    first = browser.js(OPENED)
    browser.js(  # within one turn of the page: the last row's chunk cannot have been opened between
        "for (const key of ['G', 'g'])"
        " document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }))"
    )
    time.sleep(0.5)  # nothing is to happen
    assert browser.js(OPENED) == first == browser.js("document.body.dataset.chosen")


def test_each_list_is_found_as_it_was_left(browser: Browser, plain_page: Path) -> None:
    browser.open(plain_page.as_uri())
    choose(browser, "grade", "correct")
    browser.press("j")
    row = browser.js("document.body.dataset.chosen")
    browser.press("l")
    browser.wait("location.hash.includes('list=evaluation')")
    browser.press("j", "l")
    browser.wait(f"{OPENED} === {json.dumps(row)}")
    assert browser.js("document.getElementById('f-grade').value") == "correct"


def test_a_search_shows_where_it_matches(browser: Browser, plain_page: Path) -> None:
    browser.open(plain_page.as_uri())
    browser.press("/")
    browser.type("to sum up")
    browser.wait("document.body.dataset.searched === 'to sum up'")
    marked = "CSS.highlights.get('found')?.size"
    browser.wait(f"{marked} > 0")
    browser.press("Escape", "m")
    matches = browser.js(marked)
    assert text(browser, "#said") == f"match 1 of {matches}"
    here = browser.js("[...CSS.highlights.get('found-here')][0].toString()")
    assert str(here).lower() == "to sum up"
    browser.press("r")
    assert not browser.js("CSS.highlights.has('found')")


def test_the_id_is_copied(browser: Browser, plain_page: Path) -> None:
    browser.open(plain_page.as_uri())
    browser.press("y")
    browser.wait("document.getElementById('said').textContent")
    assert text(browser, "#said") == f"copied {browser.js(OPENED)}"


def test_any_number_of_kinds_can_be_filtered(browser: Browser, tmp_path: Path) -> None:
    write(tmp_path, 2, samples=1, segments=40, sentences=1)
    rows = list(tables.read(tmp_path / "segment/rows.parquet", Segment))
    named = [replace(row, kind=f"kind {row.index}") for row in rows]
    tables.write(tmp_path / "segment/rows.parquet", Segment, named)
    browser.open(view(tmp_path).as_uri())
    choose(browser, "kind", "kind 39")
    assert count(browser) == 2


def test_missing_stages_are_listed(browser: Browser, tmp_path: Path) -> None:
    write(tmp_path, 1, samples=2, segments=3, sentences=1)
    shutil.rmtree(tmp_path / "estimate")
    browser.open(view(tmp_path).as_uri())
    assert text(browser, "#state") == "Not run yet: estimate."
    assert "estimatenot run yet" in text(browser, "#stages")


def test_a_narrow_window_shows_the_list_or_the_row(browser: Browser, plain_page: Path) -> None:
    metrics = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **metrics)
    try:
        browser.open(plain_page.as_uri())
        visible = "[...document.querySelectorAll('aside, main')].map((e) => e.offsetWidth > 0)"
        assert browser.js(visible) == [True, False]
        browser.press("Enter")
        assert browser.js(visible) == [False, True]
        browser.js("history.back()")
        browser.wait("document.querySelector('aside').offsetWidth > 0")
        browser.js("document.querySelector('.row').click()")
        assert browser.js(visible) == [False, True]
        assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("theme", ["", "dark"])
def test_a_page_is_printed_in_light_colours(browser: Browser, plain_page: Path, theme: str) -> None:
    browser.open(plain_page.as_uri())
    browser.js(f"document.documentElement.dataset.theme = {json.dumps(theme)}")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call("Emulation.setEmulatedMedia", media="print", features=dark)
    try:
        for shown in ("body", "#detail article"):
            ground = f"getComputedStyle(document.querySelector('{shown}')).backgroundColor"
            assert browser.js(ground) == "rgb(255, 255, 255)"
    finally:
        browser.call("Emulation.setEmulatedMedia", media="", features=[])


def test_a_printed_page_is_the_whole_row(browser: Browser, plain_page: Path) -> None:
    browser.open(plain_page.as_uri())
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        height = "document.querySelector('#detail').scrollHeight"
        assert browser.js(f"{height} === document.querySelector('#detail').clientHeight")
        assert browser.js(f"document.documentElement.scrollHeight >= {height}")
        assert browser.js("getComputedStyle(document.querySelector('aside')).display") == "none"
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
