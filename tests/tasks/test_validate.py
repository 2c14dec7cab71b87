"""`dto tasks validate`: what passes, what is listed, and that real data pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from typer.testing import CliRunner

from benchmarks.graders.published import decide
from dto.commands.tasks import lines, tasks
from dto.errors import DtoError
from dto.grading import Graded, Grader
from dto.recipe import ProblemSettings
from dto.tasks import TASKS
from dto.tasks.validate import Report, validate
from tests.tasks.hub import ROWS, Row, publish

SHARED = Path(__file__).parents[2] / "../shared/data"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def saved(rows: Sequence[Row], name: str = "rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


async def checked(rows: Sequence[Row], **settings: Any) -> Report:
    async with Grader(workers=1) as grader:
        return await validate(ProblemSettings(source=saved(rows), **settings), grader)


def dto(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(tasks, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared test data is not here")
@pytest.mark.parametrize(
    ("name", "rows"),
    [("gsm8k", 1319), ("math500", 500), ("aime24", 30), ("aime25", 30), ("amc23", 40)],
)
def test_real_benchmarks_have_no_unexplained_row(name: str, rows: int) -> None:
    file = str(SHARED.resolve() / f"{name}.jsonl")
    code, out = dto("validate", name, "--file", file, "--near-misses", "20")
    header, counts = out.splitlines()[:2]
    found = dict(zip(header.split(), counts.split(), strict=True))
    assert (code, found["rows"], found["unexplained"]) == (0, f"{rows:,}", "0")
    graded = [found.get(kind, "0") for kind in ("number", "mathematics", "words")]
    assert sum(int(count.replace(",", "")) for count in graded) == rows


PASSES = (
    ("18", "number"),
    ("-1,024.50", "number"),
    (r"5.4 \text{ cents}", "number"),
    (r"\frac{270}7\text{ degrees}", "number"),
    ("336^\\circ", "number"),
    (r"\frac{\sqrt{3}}{2}", "mathematics"),
    (r"\left( 3, \frac{\pi}{2} \right)", "mathematics"),
    (r"(-\infty, 2) \cup (3, \infty)", "mathematics"),
    (r"\begin{pmatrix} -1 \\ 2 \end{pmatrix}", "mathematics"),
    ("$1-i$", "mathematics"),
    ("xy", "mathematics"),
    ("p - q", "mathematics"),
    (r"\text{Evelyn}", "words"),
    ("no solution", "words"),
    ("增函数", "words"),
)


@pytest.mark.slow
async def test_gold_answers_that_pass() -> None:
    report = await checked([{"problem": gold, "answer": gold} for gold, _ in PASSES])
    assert report.unexplained == []
    kinds = Counter(kind for _, kind in PASSES)
    assert report.counts[None] == kinds | Counter(rows=len(PASSES))


LISTED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"answer": ""}, "no_gold_answer"),
    ({"answer": None}, "no_gold_answer"),
    ({"answer": [4]}, "wrong_type"),
    ({"problem": " "}, "no_question"),
    ({"answer": r"\frac{1}{"}, "not_itself"),
    ({"answer": "x=3或x=5"}, "not_parsed"),
    ({"answer": "①③"}, "not_parsed"),
    ({"answer": "The two events A and B are independent of each other"}, "prose"),
    ({"answer": "The sum of the 3 numbers is always even here"}, "prose"),
)


@pytest.mark.slow
async def test_gold_answers_that_are_listed() -> None:
    bad = [{"problem": f"bad {n}?", "answer": "1"} | row for n, (row, _) in enumerate(LISTED)]
    report = await checked([{"problem": "good?", "answer": "1"}, *bad])
    assert [(each.where, each.reason) for each in report.unexplained] == [
        (f"rows.jsonl, row {n}", reason) for n, (_, reason) in enumerate(LISTED, start=2)
    ]
    assert report.counts[None]["unexplained"] == len(LISTED)


async def test_an_empty_box_is_listed() -> None:
    rows = [ROWS["math"], {**ROWS["math"], "problem": "b?", "solution": r"So $\boxed{}$."}]
    report = await checked(rows, task="math")
    assert [each.reason for each in report.unexplained] == ["no_gold_answer"]


async def test_choices_are_letters() -> None:
    rows = [{"problem": "a?\nA. 1\nB. 2", "answer": "(B)"}, {"problem": "b?", "answer": "2"}]
    report = await checked(rows, rule="choice")
    assert report.counts[None]["letter"] == 1
    assert [each.reason for each in report.unexplained] == ["no_letter"]


async def test_duplicates_name_their_twin_and_other_answers_are_listed() -> None:
    report = await checked(
        [
            {"problem": "What is 1 + 1?", "answer": "2"},
            {"problem": "What  is 1 + 1? ", "answer": r"\frac{4}{2}"},
            {"problem": "what is 1 + 1?", "answer": "3"},
            {"problem": "What is 1 - 1?", "answer": "0"},
        ]
    )
    assert [each.where for each in report.duplicates] == ["rows.jsonl, row 2", "rows.jsonl, row 3"]
    assert all("rows.jsonl, row 1" in each.detail for each in report.duplicates)
    assert [(each.where, each.reason) for each in report.unexplained] == [
        ("rows.jsonl, row 3", "two_answers")
    ]


LONG = "A farmer has 17 sheep and all but 9 of them run away in the night before the fair in May"


def test_train_is_compared_with_test_and_both_with_others() -> None:
    publish(Path(), "gsm8k", [{**ROWS["gsm8k"], "question": LONG}])  # marked (main, train)
    other = saved([{"problem": f"Once upon a time: {LONG}?", "answer": 9}])
    code, out = dto("validate", "gsm8k")
    assert code == 0
    row = (
        "openai/gsm8k (main, train), row 1: 91% of openai/gsm8k (main, test), row 1: 'a farmer has"
    )
    assert f"overlap        {row}" in out
    code, out = dto("validate", "gsm8k", "--against", other)
    assert code == 0
    names = ["test", "train"] + ["overlap"] * 3 + ["near_misses"] * 2
    assert [line.split()[0] for line in out.splitlines()[1:]] == names
    code, out = dto("validate", "gsm8k", "--against", other, "--ngram", "40")
    assert "overlap  " not in out


class RunsPrograms(Grader):
    """Grades code as the contract of `dto.tasks.task.Task` says, with Python itself."""

    async def grade_conclusion(self, conclusion: str, gold: str, rule: str) -> Graded:
        assert rule == "code"
        parts = json.loads(gold)
        program = conclusion.removeprefix("```python\n").removesuffix("\n```")
        call = f"check({parts['entry_point']})" if "def check(" in parts["test"] else ""
        call = call or "unittest.main()"
        source = f"{program}\n{parts['test']}\n{call}\n"
        done = subprocess.run([sys.executable, "-c", source], capture_output=True)
        return Graded("wrong" if done.returncode else "correct", program)


@pytest.mark.parametrize("name", ["humaneval", "bigcodebench"])
async def test_reference_solutions_are_run(name: str) -> None:
    wrong = {**ROWS[name], TASKS[name].question: "Other?", "canonical_solution": "    return a\n"}
    if name == "humaneval":
        wrong = {**wrong, "prompt": "def add(a, b):\n    # other\n"}
    none = {**ROWS[name], TASKS[name].question: "def add(a, b):\n", "canonical_solution": ""}
    settings = ProblemSettings(source=saved([ROWS[name], wrong, none]), task=name)
    report = await validate(settings, RunsPrograms())
    assert report.counts[None]["program"] == 1
    assert [each.reason for each in report.unexplained] == ["not_itself", "no_reference"]


async def test_letters_that_are_always_a_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.Random.shuffle", lambda self, order: None)
    rows = [{**ROWS["gpqa"], "Question": f"Which of the {n}?"} for n in range(40)]
    report = await checked(rows, task="gpqa")
    assert report.unexplained == []
    assert "letters        of gold answers: A 40" in lines(report)


def test_shuffled_letters_pass() -> None:
    rows = [{**ROWS["gpqa"], "Question": f"Which of the {n}?"} for n in range(20)]
    code, out = dto("validate", "gpqa", "--file", saved(rows))
    header, counts = out.splitlines()[:2]
    assert code == 0
    assert dict(zip(header.split(), counts.split(), strict=True))["letter"] == "20"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "no task 'nothing': there are gsm8k, math, math500"),
        (("rows.jsonl", "--file", "x.jsonl"), "--file is for a task, and 'rows.jsonl' is none"),
        (("gsm8k", "--file", "none.jsonl"), "none.jsonl does not exist"),
        (("chains.yaml",), "chains are generated"),
        (("odd.jsonl",), "row 1 has no field 'problem'; its fields are text"),
        (("none.jsonl",), "none.jsonl does not exist"),
        (("empty.jsonl",), "empty.jsonl has no rows"),
    ],
)
def test_what_cannot_be_validated_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    Path("chains.yaml").write_text("problems: {source: chains}")
    saved([{"text": "?"}], "odd.jsonl")
    saved([], "empty.jsonl")
    with pytest.raises(DtoError) as error:
        dto("validate", *arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_a_recipe_and_a_file_can_be_validated() -> None:
    saved([{"q": "1+1?", "gold": "2"}])
    Path("r.yaml").write_text(
        "problems: {source: rows.jsonl, question_field: q, answer_field: gold}"
    )
    assert dto("validate", "r.yaml")[0] == 0
    saved([{"problem": "1+1?", "answer": "zwei oder auch drei oder vier oder mehr"}])
    code, out = dto("validate", "rows.jsonl")
    assert code == 1
    assert "prose          rows.jsonl, row 1: 'zwei oder" in out
    saved([{"problem": "1+1?", "answer": "{" * 9000}, {"problem": "a?", "answer": "x" * 1900}])
    code, out = dto("validate", "rows.jsonl")
    assert code == 1 and max(map(len, out.splitlines())) < 250, "long answers are cut"


def test_the_tasks_are_listed() -> None:
    code, out = dto("list")
    assert code == 0
    assert all(task.hub in out and task.citation in out for task in TASKS.values())


@pytest.mark.slow
def test_the_command_line_has_it() -> None:
    saved([{"problem": "a?", "answer": ""}])
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dto.cli", "tasks", "validate", "rows.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert "no_gold_answer rows.jsonl, row 1" in done.stdout
    assert done.stderr == ""


LAX = (
    {"problem": "Which interval?", "answer": "(2,7]"},
    {"problem": "How many?", "answer": "27"},
    {"problem": "How many, once more?", "answer": "27"},
    {"problem": "Who?", "answer": r"\text{Evelyn}"},
    {"problem": "Which terms?", "answer": "p - q"},
)


class Lax(Grader):
    """Takes what DEER's script takes for right: it does not tell brackets apart."""

    async def grade_conclusion(
        self, conclusion: str, gold: str, rule: str, question: str = ""
    ) -> Graded:
        graded = await super().grade_conclusion(conclusion, gold, rule, question)
        right = graded.grade == "correct" or decide("deer", gold, graded.answer)
        return Graded("correct" if right else "wrong", graded.answer)


async def near_misses_of(grader: Grader, rows: Sequence[Row], **settings: int) -> Report:
    async with grader:
        return await validate(ProblemSettings(source=saved(rows)), grader, **settings)


@pytest.mark.slow
async def test_near_misses_that_a_lax_grader_takes_for_right_are_reported() -> None:
    report = await near_misses_of(Lax(workers=1), LAX)
    brackets = {each for each in report.right if each.reason == "bracket"}
    assert {(each.where, each.detail) for each in brackets} == {
        ("rows.jsonl, row 1", "'[2,7]' for '(2,7]'"),
        ("rows.jsonl, row 1", "'(2,7)' for '(2,7]'"),
    }
    assert report.tried["bracket"] == 2
    told = "\n".join(lines(report))
    assert "near_miss      bracket, 2 of 2 graded correct: rows.jsonl, row 1: '" in told
    assert report.unexplained == []


@pytest.mark.slow
async def test_near_misses_that_are_wrong_are_counted() -> None:
    report = await near_misses_of(Grader(workers=1), LAX)
    assert report.right == []
    assert report.tried == Counter(sign=4, digit=3, bracket=2, letter=3)
    assert "near_misses    0 of 12 small" in "\n".join(lines(report))


async def test_near_misses_of_many_gold_answers_are_tried_on_a_sample() -> None:
    rows = [{"problem": f"{n}?", "answer": str(n)} for n in range(2, 42)]
    report = await near_misses_of(Grader(workers=1), rows, most_golds=10)
    again = await near_misses_of(Grader(workers=1), rows, most_golds=10)
    assert report == again and report.tried["sign"] == 10
    none = await near_misses_of(Grader(workers=1), rows, most_golds=0)
    assert "near_miss" not in "\n".join(lines(none))
