"""Pilot studies: figures of tables made by hand, and a study of the embedded model."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from math import nan
from pathlib import Path

import polars as pl
import pytest

from dto import tables
from dto.cli import main
from dto.errors import DtoError
from dto.recipe import Recipe
from dto.records import ExitEstimate, OptimizedTrajectory, Segment, Span, Trajectory
from dto.reporting.pilot import study
from dto.studies.pilot import StaticExit
from dto.usage import ModelShape, attention_flops

PROMPT, THINKING, ANSWER = 4, 10, 2
GRADES = ("correct", "correct", "wrong", "truncated", "failed")


def trajectory(number: int) -> Trajectory:
    grade = GRADES[number]
    thinking = 0 if grade == "failed" else THINKING
    return Trajectory(
        f"p{number}/000", f"p{number}", "m", 0, 1, (0,) * PROMPT, (1,) * (thinking + ANSWER),
        "sampled", "", Span(0, 0), Span(0, 0), Span(0, thinking), "stop", grade,
    )  # fmt: skip


def segments(number: int) -> list[Segment]:
    """Three of them, left after 4, 7 and 10 tokens."""
    id = f"p{number}/000"
    ends = (4, 7, 10)
    return [
        Segment(Segment.make_id(id, i), id, i, Span(0, end), Span(0, 1), end, "", "")
        for i, end in enumerate(ends)
    ]


def estimate(number: int, boundary: int, decision: str, reason: str = "") -> ExitEstimate:
    id = f"p{number}/000"
    row = Segment.make_id(id, boundary)
    return ExitEstimate(
        row,
        id,
        boundary,
        4,
        2,
        0,
        0,
        0.5,
        0.0,
        1.0,
        decision,
        9,
        reason,  # type: ignore[arg-type]
    )


def optimized(number: int, tokens: int, outcome: str) -> OptimizedTrajectory:
    id = f"p{number}/000"
    return OptimizedTrajectory(
        id, id, f"p{number}", 0, (0,), (1,) * tokens, "", Span(0, 0), Span(0, 0), "2", 1.0,
        THINKING + ANSWER, tokens, nan, nan, outcome,  # type: ignore[arg-type]
    )  # fmt: skip


def static(number: int, fraction: float, grade: str) -> StaticExit:
    id = f"p{number}/000"
    return StaticExit(
        StaticExit.make_id(id, fraction), id, f"p{number}", fraction, int(10 * fraction),
        grade, "2", "", 3,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(json.dumps(Recipe(name="toy").model_dump(mode="json")))
    estimates = [
        estimate(0, 0, "above"),  # a pearl, after 0.4 of the thinking
        estimate(1, 0, "below"), estimate(1, 1, "below"), estimate(1, 2, "above"),  # its end
        estimate(2, 0, "below"), estimate(2, 1, "above"),  # a pearl, after 0.7
        estimate(3, 0, "undecided", "connection lost"),
    ]  # fmt: skip
    versions = [
        optimized(0, 6, "shortened"), optimized(1, 12, "unchanged"), optimized(2, 9, "repaired"),
    ]  # fmt: skip
    statics = [
        static(number, fraction, grade)
        for fraction, grades in {
            0.2: ("wrong", "correct", "wrong", "failed"),
            0.9: ("correct", "correct", "wrong", "correct"),
        }.items()
        for number, grade in enumerate(grades)
    ]
    for stage, record, rows in (
        ("sample", Trajectory, [trajectory(number) for number in range(5)]),
        ("segment", Segment, [each for number in range(4) for each in segments(number)]),
        ("estimate", ExitEstimate, estimates),
        ("prune", OptimizedTrajectory, versions),
        ("pilot", StaticExit, sorted(statics, key=lambda row: row.id)),
    ):
        (tmp_path / stage).mkdir()
        tables.write(tmp_path / stage / "rows.parquet", record, rows)  # type: ignore[arg-type]
    return tmp_path


def test_pearls_are_exits_before_the_end(run: Path) -> None:
    found = study(run)
    assert (found.responses, found.right, found.failed) == (4, 2, 1)
    pearls = found.pearls
    assert found.left_out == 1
    assert pearls["of_all"].value == pytest.approx(2 / 3)
    assert pearls["of_right"].value == 0.5
    assert (pearls["of_others"].value, pearls["of_others"].samples) == (1.0, 1)
    assert pearls["before_half"].value == pytest.approx(1 / 3)
    assert pearls["position"].value == pytest.approx(0.55)


def test_static_exits_keep_and_correct(run: Path) -> None:
    early, late = study(run).static
    assert (early.fraction, late.fraction) == (0.2, 0.9)
    assert (early.kept.value, early.corrected.value) == (0.5, 0.0)
    assert (early.failed, early.corrected.samples) == (1, 1)
    assert early.accuracy.value == pytest.approx(1 / 3)
    assert (late.kept.value, late.corrected.value, late.accuracy.value) == (1.0, 0.5, 0.75)
    assert late.tokens.value == 9 + 3


def test_what_optimizing_saves(run: Path) -> None:
    savings = study(run).savings
    shape = ModelShape(2, 3, 5)  # any: it cancels
    whole = attention_flops(shape, 0, PROMPT + 12)
    after = attention_flops(shape, 0, PROMPT + 6)
    assert savings["flops"].value == pytest.approx(1 - (after + whole) / (2 * whole))
    assert savings["tokens"].value == pytest.approx(6 / 24)
    assert savings["repaired"].value == 0.5
    assert savings["gained"].value == 0.25


def test_a_right_response_that_was_not_optimized_saves_nothing(run: Path) -> None:
    tables.write(
        run / "prune" / "rows.parquet", OptimizedTrajectory, [optimized(0, 6, "shortened")]
    )
    savings = study(run).savings
    assert savings["tokens"].value == pytest.approx(6 / 24)
    assert savings["flops_optimized"].value > savings["flops"].value


def test_the_study_is_strict_json_and_fits_a_terminal(run: Path) -> None:
    text = str(study(run))
    assert max(map(len, text.splitlines())) <= 100
    data = json.loads((run / "pilot" / "pilot.json").read_text(), parse_constant=pytest.fail)
    assert data["static"][1]["kept"]["value"] == 1.0
    (run / "pilot" / "rows.parquet").unlink()
    with pytest.raises(DtoError, match="run `dto pilot"):
        study(run)


def test_a_study_ends_with_a_summary_and_has_a_page(run: Path) -> None:
    found = study(run)
    last = " ".join(str(found).rpartition("\n\n")[2].split())
    assert last.startswith("The model is right in 50.0 ")
    assert "Of all responses, 66.7 (" in last and "after 55 % of the thinking" in last
    assert "saves 25.0 (" in last and "repairs 50.0 (" in last and last.endswith("of the others.")
    page = (run / "pilot" / "pilot.html").read_text("utf-8")
    for part in ("<b>66.7 (", "Static exits: thinking cut", "dto run", "4 responses to 4 problems"):
        assert part in page
    assert str(run) not in page and "://" not in page


def test_without_grades_a_study_says_why_it_says_nothing(run: Path) -> None:
    rows = [replace(trajectory(number), grade="failed") for number in range(5)]
    tables.write(run / "sample" / "rows.parquet", Trajectory, rows)
    text = str(study(run))
    assert "Every problem needs a gold answer." in text and "(–" not in text and "nan" not in text


RECIPE = """
model: {name: nano, context: 512}
problems: {train: 6, dev: 0, test: 0}
sample: {samples: 2, temperature: 1.0, top_p: 1.0, max_tokens: 300}
optimize: {max_tokens: 64}
pilot: {fractions: [0.5, 1.0]}
"""


@pytest.mark.slow
def test_the_command_on_the_embedded_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "dto")
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(RECIPE)
    monkeypatch.setattr(sys, "argv", ["dto", "pilot", "small.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    for part in ("12 responses to 6 problems", "of all responses", "50%", "100%", "repaired"):
        assert part in out
    rows = pl.read_parquet("runs/small/pilot/rows.parquet")
    sampled = pl.read_parquet("runs/small/sample/rows.parquet")
    assert len(rows) == 24
    joined = rows.join(sampled, left_on="trajectory_id", right_on="id")
    thinking = joined["thinking_tokens"].struct.field("end")
    assert joined["position"].to_list() == (joined["fraction"] * thinking).cast(int).to_list()
    usage = json.loads(Path("runs/small/pilot/manifest.json").read_text())["usage"]
    assert usage["generated"] == rows["answer_tokens"].sum()
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out == out
    assert "pilot     24 rows, already finished" in caplog.text
