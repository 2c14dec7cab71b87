"""Comparisons and their ranks on tables made by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from dto.compare.compare import BASE
from dto.compare.report import front, report
from dto.records import EvaluationRow, Grade, Problem
from dto.reporting.pictures import legend_marks
from dto.tables import write


def comparison(
    path: Path,
    problems: int,
    seed: int = 0,
    failed: int = 0,
    tasks: tuple[str, ...] = (),
    failing: tuple[str, ...] = ("good",),
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
            if method in failing and index < failed:
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_cards_and_columns_name_the_reference(tmp_path: Path) -> None:
    result = report([comparison(tmp_path / "a", 200)])
    page = (tmp_path / "a" / "compare" / "compare.html").read_text("utf-8")
    shown = page[page.index('<div class="headlines">') :].partition("<nav")[0]
    assert shown.count('<b>good</b><span class="good">Δ vs base: +25.0 (') == 2
    assert "points, a gain" in shown and "50.0 (" in shown
    for text in (page, str(result)):
        assert "Δ vs base, points (95 %)" in text and "Δ vs base (95 %)" in text
    assert result.title == "made: 200 test problems × 1 sample"


@pytest.mark.slow
def test_the_reference_is_set_beside_the_base(tmp_path: Path) -> None:
    run = comparison(tmp_path / "a", 200)
    for path in (run / "recipe.yaml", *run.glob("compare/*/recipe.yaml")):
        data = yaml.safe_load(path.read_text())
        data["compare"]["reference"] = "good"
        path.write_text(yaml.safe_dump(data))
    report([run])
    page = (run / "compare" / "compare.html").read_text("utf-8")
    shown = page[page.index('<div class="headlines">') :].partition("<nav")[0]
    assert "good against base" in shown and "accuracy 25.0 → 50.0 %: +25.0 (" in shown
    assert "<b>49 % fewer tokens</b>" in shown and "the reference" in shown


@pytest.mark.slow
def test_the_base_is_seen_under_a_method_that_is_the_base(tmp_path: Path) -> None:
    """`same` answers as base does: its point lies in the ring of base."""
    result = report([comparison(tmp_path / "a", 120)])
    marks = legend_marks(front(result.rows).axes[0])
    sizes = {name: mark.get_markersize() for name, mark in marks.items()}
    faces = {name: mark.get_markerfacecolor() for name, mark in marks.items()}
    assert sizes[BASE] > sizes["same"] and faces[BASE] == "none" != faces["same"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_few_problems_have_intervals_and_no_ranks(tmp_path: Path) -> None:
    result = report([comparison(tmp_path / "a", 99)])
    assert all(row.accuracy_rank is None and row.tokens_rank is None for row in result.rows)
    gain = result.rows[1].gain
    assert gain.low < gain.value < gain.high
    assert "99 problems are too few to rank" in str(result)


@pytest.mark.slow
def test_seeds_are_pooled_problem_by_problem(tmp_path: Path) -> None:
    runs = [comparison(tmp_path / str(seed), 60, seed) for seed in range(3)]
    result = report(runs)
    assert (result.problems, result.samples, result.seeds) == (180, 1, (0, 1, 2))
    assert result.rows[1].accuracy_rank == 1
    assert "seeds 0, 1, 2" in str(result)


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [(), ("toy.jsonl",)])
def test_a_method_with_many_failures_is_not_ranked(tmp_path: Path, tasks: tuple[str, ...]) -> None:
    result = report([comparison(tmp_path / "a", 200, failed=10, tasks=tasks)])
    assert result.problems == 190  # those that all methods have
    assert result.rows[1].failed == 10
    assert result.rows[1].accuracy_rank is None and result.rows[0].accuracy_rank is not None


@pytest.mark.slow
@pytest.mark.parametrize("failing", [("same",), ("good",), (BASE,), (BASE, "good", "same")])
@pytest.mark.parametrize("left", [0, 1])
def test_a_method_without_any_graded_response_has_dashes(
    tmp_path: Path, failing: tuple[str, ...], left: int
) -> None:
    run = comparison(tmp_path / "a", 200, failed=200 - left, failing=failing)
    result = report([run])
    page = (run / "compare" / "compare.html").read_text("utf-8")
    json.loads((run / "compare" / "compare.json").read_text(), parse_constant=pytest.fail)
    assert all(row.failed == (200 - left if row.method in failing else 0) for row in result.rows)
    for text in (str(result), page):
        assert "nan" not in text.replace("nano", "")
    if left:  # what all methods have is that one problem
        assert result.problems == 1
        return
    lines = str(result).split("Tokens per question")[0].splitlines()
    cells = {line.split()[0]: line.split()[1:] for line in lines if line and line[0].isalpha()}
    assert all(cells[name][:1] == ["–"] for name in failing)
    everything = len(failing) == 3
    assert result.problems == (0 if everything else 200)
    others = {row.method: row for row in result.rows if row.method not in failing}
    assert all(row.accuracy.value > 0 and row.accuracy_rank for row in others.values())
    if BASE in others and "good" in others:
        assert others["good"].gain.value == pytest.approx(0.25)
        assert others["good"].gain_p < 0.001
        assert others[BASE].accuracy_rank == 2
        assert "over the 1 pairs" in " ".join(str(result).split())


def judged(right: float, unreadable: int) -> dict[str, Any]:
    ends = {"accuracy": right, "low": right - 0.1, "high": right + 0.1}
    return {**ends, "responses": 50, "problems": 20, "unreadable": unreadable}


@pytest.mark.slow
def test_judging_of_held_out_chains_is_there(tmp_path: Path) -> None:
    run = comparison(tmp_path / "a", 200)
    for method, scores in (
        ("good", {"before": judged(0.3, 4), "after": judged(0.5, 2), "kept": judged(0.3, 4)}),
        ("same", None),  # it reads no labelled chains
    ):
        points = [
            {"change": {"train.beta": beta}, "score": {"accuracy": 0.5, "tokens_mean": 9.0},
             "kept_step": 0, "collapsed": False, "policy_tokens": 5, "tokens_trained": 3,
             "seconds": 1.0, "cpu_seconds": 1.0, "judging": scores}
            for beta in (0.1, 0.04)
        ]  # fmt: skip
        grid = {"method": method, "picked": None, "reason": "", "charged": 2, "points": points}
        (run / "compare" / method / "grid.json").write_text(json.dumps(grid))
    result = report([run])
    text = str(result)
    assert max(map(len, text.splitlines())) <= 100
    table = text.split("Judging held-out chains\n")[1].split("\n\n")[0].splitlines()
    assert [" ".join(line.split()) for line in table[2:]] == [
        f"good beta {beta} 30.0 (20.0–40.0) 50.0 (40.0–60.0) 2" for beta in ("0.1", "0.04")
    ]
    data = json.loads((run / "compare" / "compare.json").read_text())["judging"]
    assert [(row["method"], row["training"], row["unreadable"]) for row in data] == [
        ("good", "beta 0.1", 2), ("good", "beta 0.04", 2),
    ]  # fmt: skip
    assert (data[0]["before"]["value"], data[0]["after"]["value"]) == (0.3, 0.5)
    page = (run / "compare" / "compare.html").read_text("utf-8")
    assert "Judging held-out chains" in page and "<td>50.0 (40.0–60.0)</td>" in page


@pytest.mark.slow
def test_a_comparison_without_judging_has_no_table_of_it(tmp_path: Path) -> None:
    run = comparison(tmp_path / "a", 100)
    result = report([run])
    assert max(map(len, str(result).splitlines())) <= 100
    assert result.judging == () and "udging" not in str(result)
    assert "udging" not in (run / "compare" / "compare.html").read_text("utf-8")
