"""Every task reads its dataset's rows, from stand-ins with the Hub's names and fields."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from dto.errors import DtoError
from dto.prompts import render
from dto.recipe import ProblemSettings
from dto.records import Dropped, Problem
from dto.tasks import TASKS
from dto.tasks.load import load_problems, prompt_of, read_problems
from dto.tasks.task import FieldError
from tests.tasks.hub import CHECK, PROGRAM, ROWS, UNIT_TEST, Row, publish

GOLD = {
    "gsm8k": "1010",
    "math": r"\frac{1}{2}",
    "math500": r"\frac{14}{3}",
    "aime24": "204",
    "aime25": "70",
    "amc23": "27",
    "gaokao": "$1-i$",
    "olympiadbench": r"\frac{1}{2}, 3",
    "mmlu_pro": "C",
    "deepscaler": r"-\sqrt{3}",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def read(**settings: Any) -> tuple[list[Problem], list[Dropped]]:
    rows = [found.row for found in read_problems(ProblemSettings(**settings))]
    problems = [row for row in rows if isinstance(row, Problem)]
    return problems, [row for row in rows if isinstance(row, Dropped)]


def saved(rows: list[Row], name: str = "rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_read_as_the_hub_has_it(name: str) -> None:
    task = TASKS[name]
    publish(Path(), name)
    found = list(read_problems(ProblemSettings(source=name)))
    rows = [each.row for each in found if isinstance(each.row, Problem)]
    splits = Counter(task.splits.values())
    assert Counter(each.split for each in found) == {
        split: count * len(task.subsets) for split, count in splits.items()
    }
    assert len({row.id for row in rows}) == len(found)
    asked = str(ROWS[name][task.question]).strip()
    for row in rows:
        assert row.task == name
        assert row.question.startswith(asked)
        assert row.rule == task.rule
        assert row.answer == GOLD.get(name, row.answer) != ""
        assert row.question in render(row.prompt, question=row.question)
        assert row.prompt == prompt_of(ProblemSettings(source=name))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_where_it_comes_from(name: str) -> None:
    task = TASKS[name]
    assert task.name == name and "/" in task.hub and task.citation
    assert task.revision is None or len(task.revision) == 40


def test_programs_come_with_what_runs_them() -> None:
    for name, prompt, test in (
        ("humaneval", PROGRAM, CHECK),
        ("bigcodebench", "def add(a, b):\n", UNIT_TEST),
    ):
        problem = TASKS[name].read(ROWS[name])
        gold = json.loads(problem.answer)
        assert gold == {"prompt": prompt, "test": test, "entry_point": "add"}
        assert problem.metadata["canonical_solution"] == "    return a + b\n"
        assert problem.prompt == "solve_code"
        assert "boxed" not in render(problem.prompt, question=problem.question)


def test_what_is_no_question_of_a_task_is_said() -> None:
    for name, change, reason in (
        ("gsm8k", {"answer": 10.5}, ""),  # no hashes: no gold answer
        ("gsm8k", {"answer": ["#### 10"]}, "wrong_type"),
        ("math", {"solution": r"So \boxed{}."}, ""),
        ("math", {"solution": "So 5."}, ""),
        ("olympiadbench", {"final_answer": "5"}, "wrong_type"),
        ("olympiadbench", {"final_answer": []}, ""),
        ("gpqa", {"Incorrect Answer 2": None}, "bad_options"),
        ("mmlu_pro", {"answer": "B"}, "bad_options"),
        ("mmlu_pro", {"answer": "D", "answer_index": 3}, "bad_options"),  # N/A
        ("mmlu_pro", {"options": "one"}, "wrong_type"),
        ("humaneval", {"entry_point": ""}, ""),
        ("humaneval", {"test": 5.5, "entry_point": None}, ""),
    ):
        row = {**ROWS[name], **change}
        if reason:
            with pytest.raises(FieldError) as error:
                TASKS[name].read(row)
            assert error.value.reason == reason, name
        else:
            assert TASKS[name].read(row).answer == "", name


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"It is $\boxed 5$.", "5"),
        (r"It is \fbox{7}.", "7"),
        (r"So $\boxed{\frac{1}{2}}$ and not $\frac12$.", r"\frac{1}{2}"),
        (r"First \boxed{1}, then \boxed{2}.", "2"),
    ],
)
def test_the_last_box_of_a_solution_is_the_answer(solution: str, answer: str) -> None:
    assert TASKS["math"].read({"problem": "?", "solution": solution}).answer == answer


def gpqa(count: int) -> list[Row]:
    fields = ("Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3)))
    return [
        {"Question": f"Which {n}?"} | {field: f"{field} {n}" for field in fields}
        for n in range(count)
    ]


def test_options_are_shuffled_by_content_and_can_be_put_back() -> None:
    task = TASKS["gpqa"]
    rows = gpqa(400)
    problems = [task.read(row) for row in rows]
    assert [task.read(row) for row in rows[::-1]] == problems[::-1]
    for row, problem in zip(rows, problems, strict=True):
        order = [int(place) for place in problem.metadata["permutation"].split()]
        shown = [line[3:] for line in problem.question.splitlines()[2:]]
        originals = [row["Correct Answer"], *(row[f"Incorrect Answer {n}"] for n in (1, 2, 3))]
        assert [originals[place] for place in order] == shown
        assert shown["ABCD".index(problem.answer)] == row["Correct Answer"]
        assert problem.metadata["options_seed"] == "0"
    letters = Counter(problem.answer for problem in problems)
    assert all(70 <= letters[letter] <= 130 for letter in "ABCD")
    other = [replace(task, seed=1).read(row) for row in rows]
    assert Counter(p.answer == q.answer for p, q in zip(problems, other, strict=True))[False] > 200


def test_options_of_the_published_order_stay_where_they_are() -> None:
    problem = TASKS["mmlu_pro"].read(ROWS["mmlu_pro"])
    assert problem.question == "Which two?\n\nA. one\nB. two\nC. three"
    assert problem.metadata["permutation"] == "0 1 2"
    assert "options_seed" not in problem.metadata


def test_a_recipe_takes_train_from_one_task_and_test_from_another() -> None:
    publish(Path(), "gsm8k", [{**ROWS["gsm8k"], "question": f"{n}?"} for n in range(6)])
    publish(Path(), "math500", [{**ROWS["math500"], "problem": f"{n}!"} for n in range(4)])
    settings = ProblemSettings(source="gsm8k", test_source="math500", train=4, dev=2, test=4)
    problems = [row for row in load_problems(settings, 0) if isinstance(row, Problem)]
    assert Counter((row.split, row.task) for row in problems) == {
        ("train", "gsm8k"): 4,
        ("dev", "gsm8k"): 2,
        ("test", "math500"): 4,
    }


def test_a_benchmark_that_has_a_train_split_gives_its_test_split_alone() -> None:
    publish(Path(), "gsm8k", [{**ROWS["gsm8k"], "question": f"{n}?"} for n in range(3)])
    source = saved([{"problem": f"{n}!", "answer": n} for n in range(1, 4)])
    problems, _ = read(source=source, test_source="gsm8k")
    assert sorted(row.question for row in problems if row.task == "gsm8k") == [
        f"{n}? (main, test)" for n in range(3)
    ]


def test_a_file_can_stand_for_a_task() -> None:
    own = saved([ROWS["gsm8k"]], "own.jsonl")
    plain = saved([{"problem": "How many?", "answer": "18", "cot": "#### 5"}], "plain.jsonl")
    for source, answer in ((own, "1010"), (plain, "18")):
        problems, _ = read(source=source, task="gsm8k")
        assert [(row.task, row.question, row.answer) for row in problems] == [
            ("gsm8k", "How many?", answer)
        ]


def test_a_recipe_overrides_what_a_task_says() -> None:
    source = saved([{"q": "1+1?", "a": "It is #### 2", "gold": "9"}])
    problems, _ = read(source=source, task="gsm8k", question_field="q", answer_field="a")
    assert [(row.question, row.answer) for row in problems] == [("1+1?", "2")]
    settings = {"question_field": "q", "answer_field": "gold", "rule": "choice"}
    problems, _ = read(source=source, **settings)
    assert [(row.answer, row.prompt) for row in problems] == [("9", "solve_choice")]
    problems, _ = read(source=source, **settings, prompt="solve")
    assert problems[0].prompt == "solve"


def test_a_bad_row_is_dropped_and_a_bad_dataset_is_an_error() -> None:
    good = {"problem": "a?", "answer": "1"}
    source = saved([good, {"problem": "b?"}, {"problem": ["c?"], "answer": "1"}, good])
    problems, dropped = read(source=source)
    assert len(problems) == 2
    assert [row.reason for row in dropped] == ["missing_field", "wrong_type"]
    assert "row 2 has no field 'answer'; its fields are problem" in dropped[0].detail
    with pytest.raises(DtoError, match=r"row 1 has no field 'Question'.*problems\.question_field"):
        read(source=source, task="gpqa")


def test_a_split_that_is_not_there_is_said() -> None:
    publish(Path(), "math500")
    folder = Path("HuggingFaceH4/MATH-500")
    (folder / "README.md").unlink()
    (folder / "data/test.parquet").rename(folder / "data/train.parquet")
    with pytest.raises(DtoError, match="has no split test, which task math500 reads: it has train"):
        read(source="math500")
