"""The page in Chromium as a tool to read with: links, groups, chips, formulas, prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dto import tables
from dto.records import Trajectory
from dto.viewer import page
from tests.viewer.browser import OPENED, Browser, choose, count, text
from tests.viewer.generated import write

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet")]

FORMULAS = {
    "math": "Let \\(x = \\frac{1}{2}\\) and $y$, **bold**:\n\n\\[ \\sqrt{x} \\]\n\n"
    "It costs $5 or $6.",
    "hostile": "$\\href{javascript:alert(1)}{x}$ $\\text{<img src=x onerror=alert(2)>}$ "
    "`</script>`",
}
PANES = "[...document.querySelectorAll('aside, main')].map((e) => e.offsetWidth > 0)"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reading") / "run"
    write(path, 3, samples=4, segments=4, sentences=1)
    return path


@pytest.fixture(scope="module")
def url(run: Path) -> str:
    return page.view(run).as_uri()


@pytest.fixture(scope="module")
def formulas(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("formulas") / "run"
    write(path, 2, samples=1, segments=3, sentences=1, texts=FORMULAS)
    return page.view(path).as_uri()


@pytest.fixture
def phone(browser: Browser) -> Iterator[None]:
    size = {"width": 420, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    yield
    browser.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.usefixtures("phone")
def test_a_link_on_a_phone_opens_the_row(browser: Browser, url: str, run: Path) -> None:
    row = list(tables.read(run / "sample/rows.parquet", Trajectory))[5].id
    browser.open(f"{url}#{row}")
    assert browser.js(OPENED) == row and browser.js(PANES) == [False, True]
    browser.js("document.getElementById('back').click()")
    assert browser.js(PANES) == [True, False]
    assert browser.js("document.querySelector('[aria-selected=true]') !== null")
    browser.reload()  # it stays as it was left
    assert browser.js(PANES) == [True, False]
    for address in ("", "#nothing/000", "#&list=evaluation"):
        browser.open(url + address)
        assert browser.js(PANES) == [True, False]
    browser.js(f"location.hash = {json.dumps(row)}")  # a link within the page
    browser.wait(f"{OPENED} === {json.dumps(row)}")
    assert browser.js(PANES) == [False, True]
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")


def groups(browser: Browser) -> list[str]:
    found = browser.js(
        "[...document.querySelectorAll('.group .meta span:first-child')].map((e) => e.textContent)"
    )
    assert isinstance(found, list)
    return found


def test_samples_stand_below_their_problem(browser: Browser, url: str) -> None:
    browser.open(url)
    assert groups(browser) == ["4 samples: 3 right"] * 3
    assert browser.js("document.querySelectorAll('.row.part').length") == 12
    choose(browser, "grade", "correct")
    assert groups(browser) == ["3 samples: 3 right"] * 3
    choose(browser, "grade", "wrong")
    assert groups(browser) == [] and count(browser) == 3  # single rows have their title
    assert browser.js("document.querySelectorAll('.row .title').length") == 3
    browser.press("r")
    choose(browser, "sort", "longest first")  # an order of rows, across problems
    assert groups(browser) == [] and browser.js("document.getElementById('f-group').disabled")
    choose(browser, "sort", "sort by id")
    choose(browser, "group", "single rows")
    assert groups(browser) == [] and "group=off" in str(browser.js("location.hash"))
    browser.press("l")
    browser.wait("location.hash.includes('list=evaluation')")
    assert groups(browser)[0] == "4 samples: 6 of 8 answers right"


def test_groups_by_keys(browser: Browser, url: str) -> None:
    browser.open(url)
    first = browser.js(OPENED)
    browser.press("j")
    browser.js("document.querySelector('#list').focus()")
    second = browser.js("document.body.dataset.chosen")
    browser.js(key("ArrowLeft"))
    assert browser.js("document.body.dataset.chosen") == second  # the head stands for it
    assert browser.js("document.querySelectorAll('.row.part').length") == 8
    assert browser.js("document.querySelector('.group[aria-selected=true]') !== null")
    browser.press("j")
    third = str(browser.js("document.body.dataset.chosen"))
    assert third.endswith("/000") and third.split("/")[0] != str(first).split("/")[0]
    browser.press("k")
    browser.js(key("ArrowRight"))
    assert browser.js("document.querySelectorAll('.row.part').length") == 12
    assert browser.js("document.body.dataset.chosen") == second
    choose(browser, "group", "problems only")
    assert browser.js("document.querySelectorAll('.row').length") == 0
    seen = []
    for pressed in ("g", "j", "j", "j"):
        browser.press(pressed)
        seen.append(browser.js("document.querySelector('[aria-selected=true]').ariaPosInSet"))
    assert seen == ["1", "2", "3", "3"]
    browser.press("g")
    browser.js("document.querySelector('.group').click()")
    assert browser.js("document.querySelectorAll('.row.part').length") == 4


def key(name: str) -> str:
    event = f"new KeyboardEvent('keydown', {{ key: '{name}', bubbles: true }})"
    return f"document.body.dispatchEvent({event})"


def test_a_chip_for_each_filter(browser: Browser, url: str) -> None:
    browser.open(url)
    chips = "[...document.querySelectorAll('.chip')].map((e) => e.textContent)"
    assert browser.js(chips) == []
    choose(browser, "grade", "correct")
    choose(browser, "saved", "saved ≥ 25 %")
    choose(browser, "sort", "longest first")
    assert browser.js(chips) == ["grade: correct ×", "saved ≥ 25 % ×"]
    some = count(browser)
    browser.js("document.querySelector('.chip').focus()")
    browser.press("Enter")  # a button, so keys reach it
    assert browser.js(chips) == ["saved ≥ 25 % ×"] and count(browser) >= some
    assert "grade" not in str(browser.js("location.hash"))
    assert browser.js("document.activeElement.className") == "chip"
    browser.js("document.querySelector('.chip').click()")
    assert browser.js(chips) == [] and count(browser) == 12
    browser.js("history.back()")
    browser.wait("document.querySelectorAll('.chip').length === 1")


def open_formulas(browser: Browser, formulas: str) -> None:
    browser.open(formulas)
    if "frac" not in text(browser, ".question"):
        browser.press("j")
        browser.wait("document.querySelector('.question').textContent.includes('frac')")


def test_formulas_are_rendered_and_raw_text_is_one_key_away(
    browser: Browser, formulas: str
) -> None:
    open_formulas(browser, formulas)
    math = "document.querySelector('.question math')"
    assert browser.js(f"{math}.namespaceURI") == "http://www.w3.org/1998/Math/MathML"
    assert browser.js(f"{math}.querySelector('mfrac').getBoundingClientRect().height") > 15
    assert "\\frac" not in str(browser.js("document.querySelector('.question').innerText"))
    assert browser.js("getComputedStyle(document.querySelector('.question b')).fontWeight") == "700"
    browser.press("s")
    shown = "document.querySelector('.question').innerText"
    assert browser.js(shown) == FORMULAS["math"]
    assert browser.js("document.getElementById('raw').ariaPressed") == "true"
    browser.reload()
    for _ in range(40):  # it is remembered, as soon as Chromium has stored it
        if browser.js("document.body.classList.contains('raw')"):
            break
        browser.reload()
    assert browser.js("document.body.classList.contains('raw')")
    browser.js("document.getElementById('raw').click()")
    assert browser.js(shown) != FORMULAS["math"]


def test_a_formula_is_copied_as_its_source(browser: Browser, formulas: str) -> None:
    open_formulas(browser, formulas)
    taken = "(e) => { window.taken = e.clipboardData.getData('text/plain'); }"
    browser.js(f"addEventListener('copy', {taken})")
    browser.js("getSelection().selectAllChildren(document.querySelector('.question'))")
    browser.call("Runtime.evaluate", expression="document.execCommand('copy')", userGesture=True)
    assert browser.js("window.taken") == FORMULAS["math"]
    browser.js(  # a selection that begins within a formula takes the whole of it
        "{ const range = new Range(), question = document.querySelector('.question');"
        "range.setStart(question.querySelector('mfrac'), 1);"
        "range.setEnd(question.querySelector('b').lastElementChild, 0);"
        "getSelection().removeAllRanges(); getSelection().addRange(range); }"
    )
    browser.call("Runtime.evaluate", expression="document.execCommand('copy')", userGesture=True)
    assert str(browser.js("window.taken")).startswith("\\(x = \\frac{1}{2}\\) and $y$, **bold")
    assert not browser.js("document.body.classList.contains('raw')")


def test_a_search_finds_the_source_and_across_markup(browser: Browser, formulas: str) -> None:
    open_formulas(browser, formulas)
    for words in ("= \\FRAC{1}", "and $y$, **bo", "$5 or"):
        browser.press("/")
        browser.type(words)
        browser.wait(f"document.body.dataset.searched === {json.dumps(words.lower())}")
        assert count(browser) == 1
        browser.wait("CSS.highlights.get('found')?.size > 0")
        browser.press("Escape", "m")
        assert (
            browser.js("[...CSS.highlights.get('found-here')][0].getBoundingClientRect().width") > 5
        )
        browser.press("r")


def test_no_formula_becomes_more_than_a_formula(browser: Browser, formulas: str) -> None:
    open_formulas(browser, formulas)
    for place in ("j", "k"):
        browser.press(place)
        assert (
            browser.js("document.querySelectorAll('#detail :is(a, img, script, [href])').length")
            == 0
        )
        tags = browser.js(
            "[...new Set([...document.querySelectorAll('#detail math, #detail math *')]"
            ".map((e) => e.namespaceURI))]"
        )
        assert tags == ["http://www.w3.org/1998/Math/MathML"]


def test_the_prompt_and_the_settings_of_a_row(
    browser: Browser, small_run: Path, tmp_path: Path
) -> None:
    browser.open(page.view(small_run, tmp_path / "view.html").as_uri())
    assert not browser.js("document.querySelector('details.request').open")
    browser.press("c")
    shown = str(browser.js("document.querySelector('details.request').innerText"))
    assert "temperature" in shown and "max_tokens" in shown and "seed" in shown
    assert text(browser, ".request .text").endswith("<think>\n")
    special = browser.js("[...document.querySelectorAll('.special')].map((e) => e.textContent)")
    assert special == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_a_page_links_the_report_beside_it(browser: Browser, run: Path, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report.html").write_text("<title>the report</title>")
    browser.open(page.view(run, tmp_path / "view.html").as_uri())
    browser.js("document.querySelector('.top a').click()")
    browser.wait("document.title === 'the report'")


def test_a_large_run_is_shown_in_part_and_says_so(
    browser: Browser, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(page, "PAGE_ROWS", 6)
    browser.open(page.view(run, tmp_path / "view.html").as_uri())
    said = text(browser, "#part")
    assert said.startswith("Shows 8 of 12 trajectories: those of the first problems")
    assert "8 of 12 trajectories" in caplog.text and f"dto view {run} --all" in caplog.text
    assert count(browser) == 8  # two problems, whole
    last = list(tables.read(run / "sample/rows.parquet", Trajectory))[-1].id
    browser.open(f"{(tmp_path / 'view.html').as_uri()}#{last}")
    assert text(browser, "#said").startswith("No row of this page, which shows a part of the run")
    browser.open(page.view(run, tmp_path / "view.html", whole=True).as_uri())
    assert count(browser) == 12 and text(browser, "#part") == ""
    monkeypatch.setattr(page, "PAGE_ROWS", 12)
    browser.open(page.view(run, tmp_path / "view.html").as_uri())
    assert text(browser, "#part") == ""


def test_a_tokenizer_that_is_not_here_is_said(browser: Browser, tmp_path: Path) -> None:
    write(tmp_path, 1, samples=1, segments=3, sentences=1)
    (tmp_path / "recipe.yaml").write_text("name: generated\nmodel: {name: nobody/no-such-model}\n")
    path = tmp_path / "sample/rows.parquet"
    rows = [replace(row, prompt_ids=(5, 6, 7)) for row in tables.read(path, Trajectory)]
    tables.write(path, Trajectory, rows)
    browser.open(page.view(tmp_path).as_uri())
    shown = text(browser, ".request")
    assert "3 prompt tokens" in shown and "nobody/no-such-model is not on this machine" in shown
