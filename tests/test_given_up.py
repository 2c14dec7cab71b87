"""Answers that the grader gave up, in the report: counted by reason and stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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


def test_answers_that_the_grader_gave_up_are_counted_by_reason(
    make_run: Callable[..., Path],
) -> None:
    run = make_run(given_up)
    for stage, reasons in (("estimate", {"grader_timeout": 5}), ("sample", {})):
        path = run / stage / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"given_up": reasons}))
    text = str(report(run))
    found = json.loads((run / "report" / "report.json").read_text())["funnel"]
    assert found["given_up"] == {"grader_memory": 1, "grader_timeout": 8}
    # The manifest of `evaluate` is of an earlier version: its rows are counted.
    assert found["given_up_at"] == {
        "estimate": {"grader_timeout": 5},
        "evaluate": {"grader_memory": 1, "grader_timeout": 3},
    }
    assert found["ungraded"] == {
        "engine": 1, "grader_crashed": 1, "unreadable_gold: grader_timeout": 1,
    }  # fmt: skip
    assert "given up           4   at evaluate: 1 grader_memory, 3 grader_timeout" in text
    assert "given up           5   at estimate: 5 grader_timeout" in text
    assert "ungraded           3   1 engine, 1 grader_crashed" in text
    page = (run / "report" / "report.html").read_text()
    assert "5 at estimate, 4 at evaluate" in page and "8 grader timeout" in page


def test_a_run_without_such_answers_says_nothing_of_them(make_run: Callable[..., Path]) -> None:
    run = make_run()
    assert "given up" not in str(report(run)) and "ungraded" not in str(report(run))
    found = json.loads((run / "report" / "report.json").read_text())["funnel"]
    assert found["given_up"] == found["given_up_at"] == found["ungraded"] == {}
