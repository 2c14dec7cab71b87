"""Comparisons and their ranks on tables made by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import polars as pl
import pytest
import yaml

from dto.compare.compare import BASE
from dto.compare.report import report
from dto.records import EvaluationRow, Grade, Problem
from dto.tables import write


def comparison(
    path: Path, problems: int, seed: int = 0, failed: int = 0, tasks: tuple[str, ...] = ()
) -> Path:
    """Method `good` is right wherever base is wrong on even problems, at half of the tokens."""
    recipe = {
        "name": "made",
        "seed": seed,
        "evaluate": {"samples": 1, "tasks": list(tasks)},
        "compare": {"methods": ["good", "same"], "reference": BASE},
    }
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (path / "problems").mkdir()
    rows = [Problem(f"p{i:04d}", "toy", "test", "?", "1") for i in range(problems)]
    write(path / "problems" / "rows.parquet", Problem, rows if not tasks else [])
    for method in (BASE, "good", "same"):
        place = path / "compare" / method
        (place / "evaluate").mkdir(parents=True)
        (place / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "name": method}))
        if tasks:
            (place / "test").mkdir()
            write(place / "test" / "rows.parquet", Problem, rows)
        (place / "done.json").write_text(json.dumps({"digest": "", "cpu_seconds": 1.0}))
        table = []
        for index, problem in enumerate(rows):
            right = index % 4 == 0 or (method == "good" and index % 2 == 0)
            grade: Grade = "correct" if right else "wrong"
            if method == "good" and index < failed:
                grade = "failed"
            tokens = (100 if method == "good" else 200) + index % 7
            table.append(
                EvaluationRow(
                    EvaluationRow.make_id(method, "none", problem.id, 0), method, "none",
                    problem.id, 0, 0, grade, "", "", "closed", 0, 0, 0, tokens, 10, 0.0,
                )
            )  # fmt: skip
        write(place / "evaluate" / "rows.parquet", EvaluationRow, table)
    return path


def test_ranks_and_differences(tmp_path: Path) -> None:
    result = report([comparison(tmp_path / "a", 200)])
    page = (tmp_path / "a" / "compare" / "compare.html").read_text("utf-8")
    assert all(f'<th scope="row" class="left">{row.method}</th>' in page for row in result.rows)
    assert str(tmp_path) not in page and "dto run" in page
    base, good, same = result.rows
    assert (base.accuracy.value, good.accuracy.value) == (0.25, 0.5)
    assert good.gain.value == pytest.approx(0.25)
    assert 0.18 < good.gain.low < 0.25 < good.gain.high < 0.32
    assert good.gain_p < 0.001 and good.tokens_change.value == pytest.approx(-100)
    assert (same.gain.value, same.gain_p) == (0.0, 1.0)
    assert [row.accuracy_rank for row in result.rows] == [2, 1, 2]
    assert [row.tokens_rank for row in result.rows] == [2, 1, 2]


def test_the_files_hold_what_the_terminal_shows(tmp_path: Path) -> None:
    result = report([comparison(tmp_path / "a", 200)])
    place = tmp_path / "a" / "compare"
    data = json.loads((place / "compare.json").read_text(), parse_constant=pytest.fail)
    table = pl.read_csv(place / "methods.csv").rows(named=True)
    for row, stored, line in zip(result.rows, data["rows"], table, strict=True):
        assert stored["accuracy"] == asdict(row.accuracy)
        assert stored["gain"]["value"] == line["gain"] == row.gain.value
        assert (line["tokens_low"], line["tokens_high"]) == (row.tokens.low, row.tokens.high)
        shown = [each for each in str(result).splitlines() if each.startswith(row.method)]
        assert f"{row.accuracy:%}" in shown[0] and f"{row.tokens:.1f}" in shown[1]
    assert data["rows"][0]["gain_p"] is None  # of the reference itself


def test_few_problems_have_intervals_and_no_ranks(tmp_path: Path) -> None:
    result = report([comparison(tmp_path / "a", 99)])
    assert all(row.accuracy_rank is None and row.tokens_rank is None for row in result.rows)
    gain = result.rows[1].gain
    assert gain.low < gain.value < gain.high
    assert "99 problems are too few to rank" in str(result)


def test_seeds_are_pooled_problem_by_problem(tmp_path: Path) -> None:
    runs = [comparison(tmp_path / str(seed), 60, seed) for seed in range(3)]
    result = report(runs)
    assert (result.problems, result.samples, result.seeds) == (180, 1, (0, 1, 2))
    assert result.rows[1].accuracy_rank == 1
    assert "seeds 0, 1, 2" in str(result)


@pytest.mark.parametrize("tasks", [(), ("toy.jsonl",)])
def test_a_method_with_many_failures_is_not_ranked(tmp_path: Path, tasks: tuple[str, ...]) -> None:
    result = report([comparison(tmp_path / "a", 200, failed=10, tasks=tasks)])
    assert result.problems == 190  # those that all methods have
    assert result.rows[1].failed == 10
    assert result.rows[1].accuracy_rank is None and result.rows[0].accuracy_rank is not None
