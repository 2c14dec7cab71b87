"""Answers that the grader gave up, in the report: counted by reason and stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dto.records import EvaluationRow
from dto.reporting.write import report
from tests import test_report

make_run = test_report.make_run  # a fixture


def given_up(row: EvaluationRow) -> EvaluationRow:
    """Three wrong answers that took too long, and one response each that has no grade."""
    if (row.model, row.exit) != ("base", "none"):
        return row
    if row.problem_id in ("000", "004"):
        reason = "grader_timeout" if row.sample or row.problem_id == "000" else "grader_memory"
        return replace(row, reason=reason)
    failed = {"001": "grader_crashed", "002": "unreadable_gold: grader_timeout", "003": "HTTP 500"}
    why = failed.get(row.problem_id, "") if row.sample == 0 else ""
    return replace(row, grade="failed", reason=why) if why else row


@pytest.mark.slow
def test_answers_that_the_grader_gave_up_are_counted_by_reason(
    make_run: Callable[..., Path],
) -> None:
    run = make_run(given_up)
    for stage, reasons in (
        ("estimate", {"grader_timeout": 5}),
        ("evaluate", {"grader_memory": 1, "grader_timeout": 3}),
        ("sample", {}),
    ):
        path = run / stage / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"given_up": reasons}))
    text = str(report(run))
    found = json.loads((run / "report" / "report.json").read_text())["funnel"]
    assert found["given_up"] == {
        "estimate": {"grader_timeout": 5},
        "evaluate": {"grader_memory": 1, "grader_timeout": 3},
    }
    assert found["ungraded"] == {
        "HTTP 500": 1, "grader_crashed": 1, "unreadable_gold: grader_timeout": 1,
    }  # fmt: skip
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "comparisons given up in evaluate 4 1 grader memory, 3 grader timeout" in lines
    assert "comparisons given up in estimate 5 5 grader timeout" in lines
    assert any(
        line.startswith("responses without a grade 3 1 HTTP 500, 1 grader") for line in lines
    )
    page = (run / "report" / "report.html").read_text()
    assert "comparisons given up in estimate" in page and "5 grader timeout" in page


@pytest.mark.slow
def test_a_run_without_such_answers_says_nothing_of_them(make_run: Callable[..., Path]) -> None:
    run = make_run()
    text = str(report(run))
    assert "given up" not in text and "without a grade" not in text
    found = json.loads((run / "report" / "report.json").read_text())["funnel"]
    assert found["given_up"] == found["ungraded"] == {}
