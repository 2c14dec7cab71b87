"""Tokens and accuracy against k, on tables made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dto import tables
from dto.drqa.records import BatchResponse
from dto.recipe import Recipe
from dto.records import Span, Trajectory
from dto.reporting.batch import batch_report, batch_section
from dto.runs import manifest
from dto.runs.reader import RunReader

PROBLEMS = [f"{place:016x}" for place in range(40)]
RECIPE = Recipe.model_validate({"name": "toy", "batch": {"k": [2, 4]}})
NOWHERE = Span(0, 0)


def alone(problem: str, sample: int) -> Trajectory:
    """Right on every other problem, in 100 tokens."""
    right = int(problem, 16) % 2 == 0
    return Trajectory(
        Trajectory.make_id(problem, sample), problem, "m", sample, 0, (), (1,) * 100, "sampled", "",
        NOWHERE, NOWHERE, NOWHERE, "stop", "correct" if right else "wrong",
    )  # fmt: skip


def together(k: int, group: int) -> BatchResponse:
    """As right as alone but for k = 4, which is never right, in 240 tokens."""
    ids = tuple(PROBLEMS[k * group : k * (group + 1)])
    grades = tuple("correct" if k == 2 and int(each, 16) % 2 == 0 else "wrong" for each in ids)
    faults = ("no_answer",) + ("",) * (k - 1) if k == 4 and group == 0 else ("",) * k
    return BatchResponse(
        BatchResponse.make_id(0, ids), ids, k, "m", 0, 0, (), (1,) * 240, "sampled", "",
        NOWHERE, NOWHERE, NOWHERE, "stop", grades, ("",) * k, faults,
    )  # fmt: skip


Change = Callable[[BatchResponse], BatchResponse]


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    def make(change: Change = lambda row: row, dropped: tuple[str, ...] = ()) -> Path:
        samples = [alone(problem, sample) for problem in PROBLEMS for sample in range(4)]
        batches = [change(together(k, group)) for k in (2, 4) for group in range(40 // k)]
        for name, record, rows in (
            ("sample", Trajectory, samples),
            ("batch", BatchResponse, batches),
        ):
            (tmp_path / name).mkdir()
            ordered = sorted(rows, key=lambda row: row.id)
            tables.write(tmp_path / name / "rows.parquet", record, ordered)
            manifest.write(tmp_path / name, {"rows": len(rows)})
        lines = [
            json.dumps({"id": f"002/000/{reason}", "reason": reason}) + "\n" for reason in dropped
        ]
        (tmp_path / "batch" / "dropped.jsonl").write_text("".join(lines))
        return tmp_path

    return make


def test_the_figures_are_those_of_the_tables(make_run):
    found = batch_report(RunReader(make_run(), RECIPE))
    assert found is not None and found.labels is None
    one, two, four = found.rows
    assert [(row.k, row.responses, row.more["requests"]) for row in found.rows] == [
        (1, 160, 160), (2, 40, 20), (4, 40, 10),
    ]  # fmt: skip
    assert [row.tokens.value for row in found.rows] == [100, 120, 60]
    assert [row.accuracy.value for row in found.rows] == [0.5, 0.5, 0.0]
    assert (one.gain, one.ratio) == (None, None)
    assert (two.gain.value, two.ratio.value) == (0.0, pytest.approx(1.2))
    assert (four.gain.value, four.ratio.value) == (-0.5, pytest.approx(0.6))
    assert four.gain.high < 0 < four.gain.high + 0.6
    assert four.more["faults"] == {"no_answer": 1}


def test_an_interval_is_as_wide_as_responses_make_it(make_run):
    def longer(row: BatchResponse) -> BatchResponse:
        """Every other response is twice as long: ten independent lengths, not forty."""
        twice = int(row.problem_ids[0], 16) // row.k % 2 == 0
        return replace(row, token_ids=(1,) * 480) if twice else row

    found = batch_report(RunReader(make_run(longer), RECIPE))
    assert found is not None
    four = found.rows[2]
    spread = four.tokens.high - four.tokens.low
    # Ten responses of 60 or 120 tokens a question: t(9) = 2.26 times 31.6 / sqrt(10), both ways.
    assert spread == pytest.approx(2 * 2.262 * 31.62 / 10**0.5, rel=0.01)


def test_difficulty_makes_no_difference_where_there_is_none(make_run):
    found = batch_report(RunReader(make_run(), RECIPE))
    assert found is not None
    bins = {(row.bin, row.exit): row for row in found.difficulty}
    assert {bin for bin, _ in bins} == {"0 %", "100 %"}
    assert bins["100 %", "k = 2"].gain.value == bins["0 %", "k = 2"].gain.value == 0
    assert bins["100 %", "k = 4"].gain.value == -1
    assert bins["100 %", "k = 2"].ratio.value == pytest.approx(1.2)
    assert bins["100 %", "k = 2"].problems == 20


def test_failed_requests_leave_the_figures_and_forbid_claims(make_run):
    def fail(row: BatchResponse) -> BatchResponse:
        first = row.problem_ids[0] == PROBLEMS[0]
        return replace(row, grades=("failed",) * row.k) if first else row

    found = batch_report(RunReader(make_run(fail, ("error", "left_over")), RECIPE))
    assert found is not None
    _, two, four = found.rows
    assert (two.responses, two.failed, four.responses, four.failed) == (38, 4, 36, 4)
    assert (two.gain, four.ratio) == (None, None)


def test_text_and_picture(make_run):
    found = batch_report(RunReader(make_run(), RECIPE))
    section = batch_section(found, None)
    text = str(section)
    assert "k = 4: 1 no_answer" in text and "-50.0" in text and "100 %" in text
    assert max(map(len, text.splitlines())) <= 100
    assert section.figure.svg == section.figure.svg and "<svg" in section.figure.svg


def test_without_batch_prompts_there_is_nothing(make_run):
    assert batch_report(RunReader(make_run(), Recipe(name="toy"))) is None
