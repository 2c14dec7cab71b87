"""The published rules, what they are known for, and the report on where they part."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.graders.__main__ import main
from benchmarks.graders.agreement import agree, agreement
from benchmarks.graders.published import RULES, PublishedGrader
from dto import tables
from dto.errors import DtoError
from dto.grading import Grader
from dto.records import EvaluationRow, Problem

PUBLISHED = [
    # gold, answer, the rules that call it correct
    ("7", "7", "ours math-verify minerva contains deer deepscaler"),
    ("7", "17", "contains"),
    ("27", "2700", "contains deer"),
    ("27", "0.27", "contains deer"),
    ("27%", "27", "math-verify minerva contains deer deepscaler"),
    ("(0,1)", "[0,1]", "deer"),
    ("1000", "1,000", "ours math-verify minerva contains deer deepscaler"),
    ("10000", "10001", "deer"),
    (r"\frac{1}{2}", "0.5", "ours math-verify minerva contains deer deepscaler"),
    (r"\frac{1}{4}", "0.25", "ours math-verify deer deepscaler"),
    (r"\frac{1}{2}", r"\frac{2}{4}", "ours math-verify deer"),
    ("7", r"\sqrt{49}", "ours math-verify deer"),
    ("x+1", "1+x", "ours math-verify deer deepscaler"),
    ("x=5", "5", "ours math-verify minerva contains deer deepscaler"),
    (r"5\text{ cm}", "5", "ours math-verify minerva contains deer deepscaler"),
    ("18", "18 dollars", "ours contains"),
    ("7", "8", ""),
]


@pytest.mark.slow
@pytest.mark.parametrize("rules", RULES)
async def test_what_each_grader_is_known_for(rules) -> None:
    rest = ("math",) if rules == "ours" else ()
    async with Grader(workers=1) if rest else PublishedGrader(rules, workers=1) as grader:
        found = {
            (gold, answer): (await grader.grade_answer(answer, gold, *rest)).grade
            for gold, answer, _ in PUBLISHED
        }
    assert found == {
        (gold, answer): "correct" if rules in right.split() else "wrong"
        for gold, answer, right in PUBLISHED
    }


def test_kappa() -> None:
    counts = Counter({(True, True): 20, (True, False): 5, (False, True): 10, (False, False): 15})
    observed, kappa = agreement(counts)
    assert observed == pytest.approx(0.7)
    assert kappa == pytest.approx(0.4)  # expected 0.5
    assert agreement(Counter({(True, True): 3}))[0] == 1.0
    assert math.isnan(agreement(Counter({(True, True): 3}))[1])
    assert all(map(math.isnan, agreement(Counter())))


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_file_is_graded_by_all(tmp_path: Path) -> None:
    source = tmp_path / "answers.jsonl"
    rows = [{"gold": gold, "prediction": answer} for gold, answer, _ in PUBLISHED]
    rows += [{"gold": r"\frac{1}{", "prediction": "x"}, {"gold": "7", "prediction": ""}]
    rows += [{"gold": "27%", "prediction": "27", "question": "What percent?"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no json\n")
    found = agree(str(source), RULES, tmp_path / "out")
    assert (found.answers, found.skipped) == (len(PUBLISHED) + 2, 2)
    assert found.correct["ours"] == sum("ours" in right for *_, right in PUBLISHED) + 1
    assert found.correct["contains"] == sum("contains" in right for *_, right in PUBLISHED) + 1
    assert found.unreadable == {r"\frac{1}{": 1}
    assert found.failed == dict.fromkeys(RULES, 0) | {"ours": 1}
    assert found.pairs["ours", "minerva"].total() == found.answers - 1
    written = rows_of(found.path)
    assert len(written) == found.disagreements
    assert {"gold": "27", "answer": "2700", "ours": "wrong", "deer": "correct"}.items() <= next(
        row for row in written if row["answer"] == "2700"
    ).items()
    report = json.loads((tmp_path / "out" / "agreement.json").read_text())
    assert len(report["pairs"]) == 15
    assert "ours / deer" in str(found) and repr(r"\frac{1}{") in str(found)


@pytest.mark.slow
def test_a_run_is_graded_by_what_it_evaluated(tmp_path: Path, capsys) -> None:
    (tmp_path / "recipe.yaml").write_text("name: test\n")
    problems, rows = [], []
    for number, (gold, answer, _) in enumerate(PUBLISHED):
        problem = Problem(f"{number:016x}", "t", "test", "?", gold)
        problems.append(problem)
        for sample, said in enumerate((answer, "")):
            own = EvaluationRow.make_id("base", "none", problem.id, sample)
            rows.append(
                EvaluationRow(
                    own, "base", "none", problem.id, sample, 0, "wrong", said, "", "closed",
                    *[1] * 6,
                )
            )  # fmt: skip
    for stage, record, content in (
        ("problems", Problem, problems[:9]),
        ("test", Problem, problems[9:]),  # of the tasks that are evaluated on
        ("evaluate", EvaluationRow, rows),
    ):
        (tmp_path / stage).mkdir()
        tables.write(tmp_path / stage / "rows.parquet", record, content)
    main([str(tmp_path), "--graders", "ours,deer"])
    said = capsys.readouterr().out
    assert f"{len(PUBLISHED)} answers, {len(PUBLISHED)} rows skipped" in said
    parted = [row for row in PUBLISHED if ("ours" in row[2]) != ("deer" in row[2])]
    assert f"{len(parted)} disagreements" in said
    assert len(rows_of(tmp_path / "grade" / "disagreements.jsonl")) == len(parted)


def test_an_answer_without_a_gold_one_is_no_disagreement(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: test\n")
    numbers = {number: f"{number:016x}" for number in (1, 2)}
    problems = [
        Problem(each, "t", "test", "?" * (number == 1), "7" * (number == 1))
        for number, each in numbers.items()
    ]
    rows = [
        EvaluationRow(
            EvaluationRow.make_id("base", "none", each, 0), "base", "none", each, 0, 0, "correct",
            "7", "", "closed", *[1] * 6,
        )
        for each in numbers.values()
    ]  # fmt: skip
    for stage, record, content in (
        ("problems", Problem, problems),
        ("evaluate", EvaluationRow, rows),
    ):
        (tmp_path / stage).mkdir()
        tables.write(tmp_path / stage / "rows.parquet", record, content)
    found = agree(str(tmp_path), ("ours", "deer"), tmp_path / "out")
    assert (found.answers, found.skipped) == (1, 1)
    assert found.correct == {"ours": 1, "deer": 1} and not found.unreadable


def test_one_grader_grades(tmp_path: Path) -> None:
    source = tmp_path / "answers.jsonl"
    source.write_text('{"gold": "4", "prediction": "4"}\n{"gold": "4", "prediction": "5"}\n')
    found = agree(str(source), ("ours",), tmp_path / "out")
    assert (found.answers, found.correct) == (2, {"ours": 1})
    assert "50.0%" in str(found) and "disagreements" not in str(found)


@pytest.mark.parametrize("rules", [("nobody",), ("ours", "nobody"), ()])
def test_what_cannot_be_compared_is_one_line(tmp_path: Path, rules: tuple[str, ...]) -> None:
    with pytest.raises(DtoError, match="choose one or more of ours, math-verify"):
        agree("answers.jsonl", rules, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "has no rows"), ('{"q": 1}\n', "has no field 'gold'"), (None, "does not exist")],
)
def test_what_holds_no_answers_leaves_no_folder(
    tmp_path: Path, content: str | None, message: str
) -> None:
    source = tmp_path / "answers.jsonl"
    if content is not None:
        source.write_text(content)
    with pytest.raises(DtoError, match=message):
        agree(str(source), RULES, tmp_path / "out")
    assert not (tmp_path / "out").exists()
