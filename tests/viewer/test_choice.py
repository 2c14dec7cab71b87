"""The rows that `dto view --filter` shows."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from dto.errors import DtoError
from dto.viewer import page
from dto.viewer.choice import Choice, parse
from dto.viewer.data import RunTables
from dto.viewer.page import Line, trajectory_line, view
from tests.commands import dto

ROW = Line("ab12/003", "What is 7 + 5?", "", 400, 120, {"outcome": ["repaired"], "kind": ["check"]})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("outcome=repaired", True),
        ("outcome = shortened, repaired", True),
        ("outcome=shortened", False),
        ("outcome=repair", False),
        ("outcome!=repaired", False),
        ("outcome!=shortened", True),
        ("kind=check,doubt", True),
        ("verdict=needless", False),  # the row has no such column
        ("verdict!=needless", False),
        ("tokens>399", True),
        ("tokens>400", False),
        ("tokens>=400", True),
        ("tokens<400", False),
        ("tokens<=400", True),
        ("tokens=400", True),
        ("tokens!=400", False),
        ("after<200", True),
        ("after=-1", False),
        ("id=ab12", True),
        ("id=b12", False),
        ("id!=ab", False),
    ],
)
def test_what_a_condition_shows(text: str, shown: bool) -> None:
    assert Choice([parse(text)]).takes(ROW) is shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("outcome", "write a condition"),
        ("outcome=", "write a condition"),
        ("", "write a condition"),
        ("outcom=repaired", "no column 'outcom'"),
        ("tokens>many", "number of tokens"),
        ("tokens>4,000.5", "number of tokens"),
        ("outcome>repaired", "compare them with = or !="),
        ("tokens!=1,2", "one number"),
    ],
)
def test_a_condition_that_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(DtoError, match=said):
        parse(text)


def test_the_page_has_the_rows_that_meet_all(
    small_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = list(map(trajectory_line, RunTables(small_run).trajectories()))
    outcome = lines[0].names["outcome"][0]
    limit = sorted(line.before for line in lines)[len(lines) // 2]
    wanted = [line.id for line in lines if outcome in line.names["outcome"] and line.before > limit]
    assert 0 < len(wanted) < len(lines)
    with caplog.at_level(logging.WARNING, "dto"):
        written = view(
            small_run, tmp_path / "some.html", filter=[f"outcome={outcome}", f"tokens>{limit}"]
        )
    (said,) = [text for text in caplog.messages if "trajectories" in text]
    assert f"{len(wanted)} of {len(lines)} trajectories: those with outcome={outcome} and" in said
    assert written.stat().st_size < view(small_run, tmp_path / "all.html").stat().st_size


def test_a_full_page_says_that_there_may_be_more(
    small_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(page, "PAGE_ROWS", 2)
    with caplog.at_level(logging.WARNING, "dto"):
        view(small_run, tmp_path, filter="tokens>0")
    assert any("Shows the first 2 of" in text for text in caplog.messages)


def test_no_row_meets_it(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DtoError, match=r"no row has outcome=repared; outcome is \w+ \(\d+\)"):
        view(small_run, tmp_path, filter="outcome=repared")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_another_page(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    chosen = "view", str(run), "--no-open", "--filter", "tokens>0"
    assert dto(*chosen, capsys=capsys)[0] == 0
    assert (run / "view-tokens-0.html").is_file()
    assert (run / "view.html").exists() == (small_run / "view.html").exists()
