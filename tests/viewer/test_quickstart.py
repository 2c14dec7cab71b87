"""The quickstart's run in Chromium, as somebody goes through it: lists, filters, rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dto.records import STAYS
from dto.viewer.data import AnswersView, RunTables, TrajectoryView
from dto.viewer.nodes import change
from dto.viewer.page import view
from dto.viewer.render import _is_side_by_side
from tests.viewer.browser import OPENED, Browser, choose, count, text

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def page(quickstart_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    before = {path: path.stat().st_mtime_ns for path in quickstart_run.rglob("*")}
    url = view(quickstart_run, tmp_path_factory.mktemp("page") / "view.html").as_uri()
    assert {path: path.stat().st_mtime_ns for path in quickstart_run.rglob("*")} == before
    return url


@pytest.fixture(scope="module")
def trajectories(quickstart_run: Path) -> list[TrajectoryView]:
    return list(RunTables(quickstart_run).trajectories())


@pytest.fixture(scope="module")
def answers(quickstart_run: Path) -> list[AnswersView]:
    return list(RunTables(quickstart_run).answers())


def texts(browser: Browser, selector: str) -> list[str]:
    found = browser.js(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => {{"
        "const c = e.cloneNode(true); c.querySelectorAll('math').forEach((m) => m.remove());"
        "return c.textContent; })"
    )
    assert isinstance(found, list)
    return found


def first(rows: list[TrajectoryView], fits: Callable[[TrajectoryView], object]) -> TrajectoryView:
    return next(row for row in rows if fits(row))


@pytest.mark.slow
def test_the_list_and_its_filters(
    browser: Browser, page: str, trajectories: list[TrajectoryView]
) -> None:
    browser.open(page)
    assert count(browser) == len(trajectories)
    assert browser.js(OPENED) == trajectories[0].id
    assert text(browser, "#state") == ""  # nothing of the run is missing
    for outcome, rows in Counter(row.outcome for row in trajectories).items():
        choose(browser, "outcome", outcome.replace("_", " "))
        assert count(browser) == rows
    browser.press("r")
    pruned = [
        row
        for row in trajectories
        if row.optimized and any(each.pruned for each in row.optimized.verdicts)
    ]
    choose(browser, "verdict", "redundant, pruned")
    assert 0 < count(browser) <= len(pruned)
    choose(browser, "grade", "correct")
    choose(browser, "kind", "verification")
    assert count(browser) == sum(
        row.trajectory.grade == "correct"
        and any(segment.kind == "verification" for segment in row.segments)
        and any(each.pruned and each.verdict == "redundant" for each in row.optimized.verdicts)
        for row in pruned
        if row.optimized
    )


def test_what_was_cut_and_pruned(
    browser: Browser, page: str, trajectories: list[TrajectoryView]
) -> None:
    row = first(
        trajectories,
        lambda each: (
            each.optimized
            and any(verdict.pruned for verdict in each.optimized.verdicts)
            and each.optimized.exit < each.segments[-1].index
        ),
    )
    version = row.optimized
    assert version is not None
    browser.open(f"{page}#{row.id}")
    whole = row.trajectory.text
    pieces = [whole[slice(*each.chars)].rstrip() for each in row.segments]
    conclusion = whole[slice(*row.trajectory.conclusion)].strip("\n")
    assert texts(browser, ".original .segment .text") == [*pieces, conclusion]
    assert texts(browser, ".original s.text") == [
        piece
        for piece, each in zip(pieces, row.segments, strict=True)
        if each.index not in version.kept
    ]
    assert set(texts(browser, ".original .state")) == {"pruned", "cut"}
    said = [
        verdict.verdict + ("" if verdict.pruned or verdict.verdict in STAYS else ", restored")
        for verdict in sorted(version.verdicts, key=lambda each: each.segment)
    ]
    assert texts(browser, ".original .verdict b") == said
    kept = [pieces[index] for index in version.kept]
    assert texts(browser, ".optimized .segment .text")[: len(kept)] == kept
    tokens = change(version.tokens_before, version.tokens_after)
    assert tokens in text(browser, ".facts") and "attention FLOPs" in text(browser, ".facts")


def test_exits_with_their_intervals(
    browser: Browser, page: str, trajectories: list[TrajectoryView]
) -> None:
    row = first(trajectories, lambda each: each.optimized and len(each.estimates) > 1)
    browser.open(f"{page}#{row.id}")
    assert texts(browser, ".original .exit .p") == [
        f"p {each.p:.2f} ({each.p_low:.2f}–{each.p_high:.2f})" for each in row.estimates
    ]
    assert len(texts(browser, ".points i")) == len(row.estimates)
    assert text(browser, ".points b") == f"threshold {row.threshold:g}"
    assert texts(browser, ".original .exit.leave .taken") == ["exit"]


def test_chosen_beside_rejected(
    browser: Browser, page: str, trajectories: list[TrajectoryView]
) -> None:
    row = first(trajectories, lambda each: any(_is_side_by_side(pair, each) for pair in each.pairs))
    browser.open(f"{page}#{row.id}")
    assert [text(browser, f".{side} h3") for side in ("original", "optimized")] == [
        "Originalrejected in the pair", "Optimizedchosen in the pair"
    ]  # fmt: skip
    others = [pair for pair in row.pairs if not _is_side_by_side(pair, row)]
    assert len(texts(browser, "details.pair")) == len(others)


def test_a_question_with_its_trial_answers(
    browser: Browser, page: str, answers: list[AnswersView]
) -> None:
    browser.open(page)
    browser.press("l")
    browser.wait(f"{OPENED} === {json.dumps(answers[0].id)}")
    assert count(browser) == len(answers)
    row = next(each for each in answers if any(len(one.trials) > 1 for one in each.rows))
    browser.open(f"{page}#{row.id}")
    names = [f"{each.model} · {each.exit}" for each in row.ordered]
    assert texts(browser, ".card h3") == names
    assert {name.split(" · ")[0] for name in names} == {"base", "trained"}
    shown = texts(browser, ".trial-list tbody td:nth-child(3) bdi")
    assert shown == [trial.answer for each in row.ordered for trial in each.trials]
    assert texts(browser, ".trial-list .confidence") == [
        f" {trial.confidence:.2f}" for each in row.ordered for trial in each.trials
    ]
    leaves = texts(browser, ".trial-list tr.leave .fate")
    assert leaves == ["exit"] * sum(each.would_leave >= 0 for each in row.rows)
    browser.open(f"{page}#&list=evaluation")
    gained = f"{row.ordered[-1].model} · {row.ordered[-1].exit}: wrong"
    wrong = sum(
        any(f"{one.model} · {one.exit}: {one.grade}" == gained for one in each.rows)
        for each in answers
    )
    if wrong:
        choose(browser, "grade", gained)
        assert count(browser) == wrong
