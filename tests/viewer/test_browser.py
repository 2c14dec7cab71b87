"""The page in Chromium: what is there, what keys and filters do, and what texts cannot do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dto.viewer.data import RunTables
from dto.viewer.nodes import Data, data
from dto.viewer.page import view
from tests.viewer.browser import Browser
from tests.viewer.generated import HOSTILE

OPENED = "document.body.dataset.opened"
COUNT = "document.getElementById('count').textContent"


@pytest.fixture(autouse=True)
def quiet(browser: Browser) -> Iterator[None]:
    """Whatever a test does: no error, no dialog, no request but for the file itself."""
    for log in (browser.requests, browser.dialogs, browser.errors):
        log.clear()
    yield
    assert not browser.errors and not browser.dialogs
    assert all(url.startswith("file://") for url in browser.requests)


def count(browser: Browser) -> int:
    """Rows that fit the filters."""
    return int(str(browser.js(COUNT)).split()[0].replace(",", ""))


def text(browser: Browser, selector: str) -> str:
    return str(browser.js(f"document.querySelector({json.dumps(selector)}).textContent"))


def choose(browser: Browser, name: str, label: str) -> None:
    """Pick a filter's choice by what it says."""
    browser.js(
        f"(() => {{ const s = document.getElementById('f-{name}');"
        f"s.value = [...s.options].find((o) => o.text.startsWith({json.dumps(label)})).value;"
        "s.dispatchEvent(new Event('change')); })()"
    )


@pytest.fixture(scope="module")
def small_page(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return view(small_run, tmp_path_factory.mktemp("page") / "view.html")


def test_a_run_of_the_embedded_model(browser: Browser, small_run: Path, small_page: Path) -> None:
    browser.open(small_page.as_uri())
    views = list(RunTables.open(small_run).trajectories())
    assert count(browser) == len(views) == 16
    shortened = next(
        row for row in views if row.optimized and len(row.optimized.kept) < len(row.segments)
    )
    browser.open(small_page.as_uri() + "#%")  # no address of a row, nor of anything
    assert browser.js(OPENED) == views[0].id
    browser.open(small_page.as_uri() + "#" + shortened.id)
    assert browser.js(OPENED) == shortened.id
    shown = browser.js(
        "[...document.querySelectorAll('.original .segment .text')].map((e) => e.textContent)"
    )
    row = shortened.trajectory
    pieces = [row.text[slice(*each.chars)].rstrip() for each in shortened.segments]
    assert shown == [*pieces, row.text[slice(*row.conclusion)].strip("\n")]
    struck = browser.js(
        "[...document.querySelectorAll('.original s.text')].map((e) => e.textContent)"
    )
    assert shortened.optimized is not None
    assert struck == [
        piece
        for piece, each in zip(pieces, shortened.segments, strict=True)
        if each.index not in shortened.optimized.kept
    ]
    exits = browser.js("document.querySelectorAll('.original .exit .p').length")
    assert exits == len(shortened.estimates)
    assert "Optimized" in text(browser, ".optimized h3")


def test_early_exits_show_their_trials(browser: Browser, small_run: Path, small_page: Path) -> None:
    browser.open(small_page.as_uri())
    browser.press("l")
    answers = list(RunTables.open(small_run).answers())
    browser.wait(f"{OPENED} === {json.dumps(answers[0].id)}")
    assert count(browser) == len(answers) == 3
    trials = sum(len(row.trials) for row in answers[0].rows)
    assert browser.js("document.querySelectorAll('.trial-list tbody tr').length") == trials > 0
    assert browser.js("document.querySelectorAll('.card').length") == 3
    assert "attention FLOPs" in text(browser, ".card")


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
    assert "No row fits" in text(browser, "#detail")
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
    found = RunTables.open(hostile_run)
    for list_number, rows in enumerate((found.trajectories(), found.answers())):
        if list_number:
            browser.press("l")
        for place, row in enumerate(rows):
            if place:
                browser.press("j")
            browser.wait(f"{OPENED} === {json.dumps(row.id)}")
            assert row.problem is not None
            shown = data(row.problem.question)
            expected = [each.text if isinstance(each, Data) else each.children[0] for each in shown]
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
    from tests.viewer.generated import write

    write(
        tmp_path, 2, samples=1, segments=3, texts={"long": "x" * 500_000, "lines": "y\n" * 250_000}
    )
    browser.open(view(tmp_path).as_uri())
    browser.press("j")
    browser.wait("document.querySelector('#detail .text').textContent.length > 500000")


def test_dark_and_light(browser: Browser, small_page: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.dark(False)
    browser.open(small_page.as_uri())
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
