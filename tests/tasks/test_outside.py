"""Tasks and answer rules of another package: how a recipe names them, and what they are read as."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dto.errors import DtoError, RecipeError
from dto.grading import Grader
from dto.recipe import ProblemSettings, known_recipe, make_recipe
from dto.records import Dropped, Problem
from dto.source import Source
from dto.tasks import Task
from dto.tasks.importing import Response, read_responses
from dto.tasks.load import load_problems, prompt_of
from dto.tasks.problems import load_test_sets
from dto.tasks.validate import validate
from tests.commands import told

MODULE = """
import dto
from dto import Task

def numbers(split):
    start = {"train": 0, "dev": 100, "test": 200}[split]
    return [{"problem": f"What is {n}?", "answer": n} for n in range(start, start + 20)]

def only_train(split):
    if split == "train":
        yield from numbers(split)

def old_names(split):
    return numbers({"learn": "train", "check": "test"}[split])

def fails(split):
    yield {"problem": "a?", "answer": "b"}
    raise OSError("no connection\\nat all")

def lists(split):
    return [["a?", "b"]]

NUMBERS = Task("numbers", rows=numbers)
TRAIN = Task("train_only", rows=only_train)
RENAMED = Task("renamed", rows=old_names, splits={"learn": "train", "check": "test"})
FAILS = Task("fails", rows=fails)
LISTS = Task("lists", rows=lists)
RULED = Task("ruled", rows=numbers, rule="outside.tasks:caseless")
UNRULED = Task("unruled", rows=numbers, rule="outside.tasks:nothing")
NO_TASK = 7

def caseless(answer: str, gold: str) -> bool:
    return answer.casefold() == gold.casefold()

def never(answer: str, gold: str) -> bool:
    return False

def make():
    return NUMBERS

def broken():
    raise KeyError("seed")

def no_task():
    return "numbers"

class Sized(dto.Settings):
    size: int = 5

    def __call__(self) -> Task:
        return Task("sized", rows=lambda split: numbers(split)[: self.size])
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package in the working directory."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "tasks.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path


def load(source: str, **settings: Any) -> tuple[list[Problem], list[Dropped]]:
    counts = {"train": 4, "dev": 2, "test": 2} | settings
    rows = list(load_problems(ProblemSettings(source=source, **counts), seed=0))
    return (
        [row for row in rows if isinstance(row, Problem)],
        [row for row in rows if isinstance(row, Dropped)],
    )


@pytest.mark.parametrize(
    ("source", "settings", "name"),
    [
        ("outside.tasks:NUMBERS", {}, "numbers"),
        ("outside.tasks:make", {}, "numbers"),
        ("outside.tasks:Sized", {}, "sized"),
        ("outside.tasks:Sized", {"size": 4}, "sized"),
        ("outside.tasks:TRAIN", {}, "train_only"),
    ],
)
def test_a_task_of_another_package(source: str, settings: dict[str, Any], name: str) -> None:
    problems, dropped = load(source, source_settings=settings)
    assert dropped == []
    assert Counter(row.split for row in problems) == {"train": 4, "dev": 2, "test": 2}
    for row in problems:
        start = {"train": 0, "dev": 100, "test": 200}[row.split] if name != "train_only" else 0
        number = int(row.answer)
        assert row.question == f"What is {number}?" and row.task == name and row.rule == "math"
        assert start <= number < start + settings.get("size", 20)


def test_settings_of_the_recipe_change_a_task_of_another_package() -> None:
    problems, _ = load("outside.tasks:NUMBERS", task="mine", rule="choice", question_field="answer")
    assert {(row.task, row.rule) for row in problems} == {("mine", "choice")}
    assert all(row.question == row.answer for row in problems)


def test_names_of_splits_are_those_of_the_task() -> None:
    problems, _ = load("outside.tasks:RENAMED", dev=0)
    assert Counter(row.split for row in problems) == {"train": 4, "test": 2}
    assert all(int(row.answer) >= 200 for row in problems if row.split == "test")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("outside.tasks:FAILS", r"task fails: rows\('test'\) fails: OSError: no connection"),
        ("outside.tasks:LISTS", "task lists: .* a row is list, not a mapping"),
        ("outside.tasks:NO_TASK", "gives int: name a dto.Task, or a function that returns one"),
        ("outside.tasks:no_task", "gives str: name a dto.Task"),
        ("outside.tasks:broken", "task outside.tasks:broken: KeyError: 'seed'"),
        ("outside.tasks:UNRULED", "answer rule outside.tasks:nothing: .* defines no 'nothing'"),
        ("outside.tasks:Sized", "has 0 usable rows left for train|usable rows left"),
    ],
)
def test_what_is_no_task_is_one_clear_error(source: str, message: str) -> None:
    size = {"source_settings": {"size": 0}} if source.endswith("Sized") else {}
    with pytest.raises(DtoError, match=message) as error:
        load(source, **size)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rows", [{}, {"hub": "a/b", "rows": lambda split: []}])
def test_a_task_has_one_origin_of_its_rows(rows: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="'x' needs either hub or rows"):
        Task("x", **rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problems.source": "nowhere.tasks:A"}, "problems.source = .*'nowhere' is not installed"),
        ({"problems.source": "outside.tasks:NUMBER"}, "did you mean 'NUMBERS'"),
        ({"problems.test_source": "outside.tasks:NUMBER"}, "problems.test_source = .*NUMBERS"),
        ({"evaluate.tasks": ["gsm8k", "outside.tasks:NUMBER"]}, r"evaluate.tasks.1 = .*NUMBERS"),
        (
            {"problems.source": "outside.tasks:Sized", "problems.source_settings": {"sise": 1}},
            "'sise'.*did you mean 'size'",
        ),
        (
            {"problems.source": "outside.tasks:make", "problems.source_settings": {"size": 1}},
            "takes none: drop size",
        ),
        ({"problems.source_settings": {"size": 1}}, "'chains' does not read size"),
        ({"problems.rule": "maths"}, "problems.rule = 'maths'.*did you mean 'math'"),
        ({"problems.rule": "nowhere:rule"}, "problems.rule = .*'nowhere' is not installed"),
        ({"problems.rule": "outside.tasks:casless"}, "did you mean 'caseless'"),
        ({"problems.rule_settings": {"tolerance": 1}}, "does not read tolerance"),
        (
            {"problems.rule": "choice", "problems.rule_settings": {"tolerance": 1}},
            "'choice' does not read tolerance",
        ),
        (
            {"problems.rule": "outside.tasks:caseless", "problems.rule_settings": {"a": 1}},
            "takes none: drop a",
        ),
        ({"problems.answer_kind": "choice"}, "unknown key 'problems.answer_kind'"),
    ],
)
def test_a_recipe_is_refused_when_it_is_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        make_recipe({"name": "x"}, changes)
    assert "\n" not in str(error.value)


def test_the_recipe_of_a_finished_run_imports_nothing() -> None:
    problems = {
        "source": "gone.tasks:A", "source_settings": {"a": 1},
        "rule": "gone.rules:b", "rule_settings": {"c": 2},
    }  # fmt: skip
    recipe, unknown = known_recipe(
        {"name": "x", "problems": problems, "evaluate": {"tasks": ["gone.tasks:B"]}}, "here"
    )
    assert recipe.problems.rule == "gone.rules:b" and unknown == ()
    assert prompt_of(recipe.problems) == "solve"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a.b:c", "import"),
        ("a:b", "import"),
        ("a.b:C.d", "import"),
        ("chains", "chains"),
        ("gsm8k", "task"),
        ("user/name", "hub"),
        ("a.jsonl", "file"),
        ("a/b:c", "hub"),
        (r"C:\a", "folder"),
        ("file:///a/b", "folder"),
        ("./a:b", "folder"),
    ],
)
def test_import_paths_among_other_sources(text: str, kind: str) -> None:
    assert Source.parse(text, {"gsm8k"}).kind == kind


def test_test_sets_keep_their_own_rules() -> None:
    (lines := Path("rows.jsonl")).write_text('{"problem": "a?", "answer": "B"}\n')
    recipe = make_recipe(
        {"name": "x"},
        {
            "problems.rule": "outside.tasks:never",
            "evaluate.tasks": ["outside.tasks:RULED", "outside.tasks:Sized", str(lines)],
            "evaluate.limit": 2,
        },
    )
    rules = {row.task: row.rule for row in load_test_sets(recipe, ()) if isinstance(row, Problem)}
    assert rules == {
        "ruled": "outside.tasks:caseless", "sized": "math", "rows": "outside.tasks:never"
    }  # fmt: skip


def test_two_test_sets_of_one_name_are_refused() -> None:
    tasks = ["outside.tasks:NUMBERS", "outside.tasks:make"]
    recipe = make_recipe({"name": "x"}, {"evaluate.tasks": tasks})
    with pytest.raises(DtoError, match=r"NUMBERS and .*:make are both called 'numbers'"):
        list(load_test_sets(recipe, ()))


def test_generated_and_imported_questions_have_the_rule_of_the_recipe() -> None:
    problems, _ = load("chains", rule="outside.tasks:caseless")
    assert {row.rule for row in problems} == {"outside.tasks:caseless"}
    row = {"prompt": "a?", "response": "<think>\nx\n</think>\n\\boxed{b}", "answer": "B"}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    (response,) = read_responses("rows.jsonl", rule="outside.tasks:caseless")
    assert isinstance(response, Response) and response.problem.rule == "outside.tasks:caseless"


@pytest.mark.slow
async def test_validation_grades_gold_answers_by_the_rule() -> None:
    rows = [{"problem": f"{text}?", "answer": text} for text in ("a thing", r"\neg p")]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name, unexplained in (("caseless", 0), ("never", 2)):
        settings = ProblemSettings(source="rows.jsonl", rule=f"outside.tasks:{name}")
        async with Grader(workers=1) as grader:
            report = await validate(settings, grader)
        assert [finding.reason for finding in report.unexplained] == ["not_itself"] * unexplained
        assert report.counts[None]["other_rule"] == 2 - unexplained and not report.tried


def test_the_command_validates_a_task_of_another_package(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, text = told("tasks", "validate", "outside.tasks:RULED", capsys=capsys)
    assert code == 0 and "other_rule" in text, text
    code, text = told("tasks", "validate", "outside.tasks:NUMBER", capsys=capsys)
    assert code == 1 and "did you mean 'NUMBERS'" in text
    assert len(text.strip().splitlines()) == 1
