"""Questions from chains and files: splits, drops, and errors that name the field."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest

from dto.errors import DtoError
from dto.grading import Grader
from dto.grading.compare import numeric
from dto.recipe import ProblemSettings
from dto.records import Dropped, Problem
from dto.tasks.load import load_problems

SHARED = Path(__file__).parents[1] / "../shared/data"


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(**settings: Any) -> tuple[list[Problem], list[Dropped]]:
    rows = list(load_problems(ProblemSettings(**settings), seed=0))
    problems = [row for row in rows if isinstance(row, Problem)]
    return problems, [row for row in rows if isinstance(row, Dropped)]


def numbered(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"problem": f"{n} + 1?", "answer": n + 1} for n in range(start, start + count)]


def test_chains_are_counted_and_disjoint() -> None:
    problems, dropped = load(train=20, dev=10, test=15)
    assert Counter(row.split for row in problems) == {"train": 20, "dev": 10, "test": 15}
    assert len({row.question for row in problems}) == 45
    assert dropped == []


def test_one_file_is_divided_by_content_whatever_its_order(tmp_path: Path) -> None:
    rows = numbered(30)
    sizes = {"train": 10, "dev": 5, "test": 15, "task": "sums"}
    forward, _ = load(source=write(tmp_path / "a.jsonl", rows), **sizes)
    backward, _ = load(source=write(tmp_path / "b.jsonl", rows[::-1]), **sizes)
    assert forward == backward
    assert Counter(row.split for row in forward) == {"train": 10, "dev": 5, "test": 15}
    assert len({row.id for row in forward}) == 30


@pytest.mark.parametrize("slack", [0, 1, 7])
def test_what_is_let_go_of_a_large_source_would_not_have_been_taken(
    slack: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.jsonl", numbered(200))
    for sizes in ({"train": 10, "dev": 5, "test": 15}, {"train": 0, "dev": 0, "test": 200}):
        whole = load(source=source, **sizes)
        with monkeypatch.context() as patch:
            patch.setattr("dto.tasks.load._SLACK", slack)
            assert load(source=source, **sizes) == whole


def test_a_benchmark_keeps_its_questions_out_of_training(tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", numbered(5))
    source = write(tmp_path / "all.jsonl", numbered(20))
    problems, dropped = load(source=source, test_source=test, train=10, dev=5, test=5)
    held = {row.question for row in problems if row.split == "test"}
    assert held == {f"{n} + 1?" for n in range(5)}
    assert not held & {row.question for row in problems if row.split != "test"}
    assert Counter(row.reason for row in dropped) == {"duplicate": 5}


def test_rows_without_answer_or_question_are_counted(tmp_path: Path) -> None:
    rows = [
        {"problem": "a?", "answer": None},
        {"problem": "b?", "answer": "  "},
        {"problem": "", "answer": "1"},
        {"problem": "c?", "answer": float("nan")},
        *numbered(3),
    ]
    problems, dropped = load(source=write(tmp_path / "a.jsonl", rows), train=3, dev=0, test=0)
    assert len(problems) == 3
    assert [(row.reason, row.detail[-5:]) for row in dropped] == [
        ("no_gold_answer", "row 1"),
        ("no_gold_answer", "row 2"),
        ("no_question", "row 3"),
        ("no_gold_answer", "row 4"),
    ]


NUMERIC = [
    ("72", True), ("-3", True), ("1,234", True), ("3.5", True), (r"\frac{3}{4}", True),
    ("3/4", True), ("27%", True), (r"27\%", True), ("$5", True), (r"\$12.50", True),
    ("5 cm", True), (r"1.5 \times 10^3", True), (r"90^\circ", True), (r"\boxed{7}", True),
    ("2 1/2", True),
    # near misses: not one number, or not a number for the grader's exact comparison
    (r"2\pi", False), (r"\sqrt{2}", False), ("3c", False), ("x=2y", False), ("(1, 2)", False),
    ("1, 2", False), ("[0, 1)", False), ("x>2", False), ("yes", False), (r"\text{Monday}", False),
    ("A", False), ("2x+1", False), ("3:30", False), ("204_5", False), ("", False),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "is_number"), NUMERIC)
def test_a_numeric_answer_is_what_the_grader_reads_as_one_number(
    gold: str, is_number: bool
) -> None:
    assert numeric(gold, "math") == is_number
    assert not numeric(gold, "choice") and not numeric(gold, "code")


def test_only_problems_with_numeric_answers_are_kept_and_the_others_are_counted(
    tmp_path: Path,
) -> None:
    rows = [{"problem": f"{n}?", "answer": gold} for n, (gold, _) in enumerate(NUMERIC) if gold]
    source = write(tmp_path / "a.jsonl", rows)
    whole = sum(is_number for _, is_number in NUMERIC)
    problems, dropped = load(source=source, train=whole - 4, dev=2, test=2, filter="numeric")
    assert sorted(row.answer for row in problems) == sorted(
        gold for gold, is_number in NUMERIC if is_number
    )
    assert Counter(row.reason for row in dropped) == {"not_numeric": len(rows) - whole}
    assert any(row.detail.endswith(f"{source}, row 16: '2\\\\pi'") for row in dropped)
    with pytest.raises(DtoError, match=f"has {whole} usable rows left for train"):
        load(source=source, train=whole + 1, dev=0, test=0, filter="numeric")


def test_a_benchmark_is_not_filtered(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [*numbered(9), {"problem": "z?", "answer": "yes"}])
    rows = [{"problem": "b?", "answer": "yes"}, {"problem": "c?", "answer": r"2\pi"}]
    test = write(tmp_path / "test.jsonl", rows)
    problems, dropped = load(
        source=source, test_source=test, train=5, dev=4, test=2, filter="numeric"
    )
    assert {row.answer for row in problems if row.split == "test"} == {"yes", r"2\pi"}
    assert [row.reason for row in dropped] == ["not_numeric"]


UNREADABLE = (r"\neg p", r"A \cap B", r"\{n^2 | n > 2\}", "9^{9^{9^{9}}}")
READABLE = (
    "7", "1,234", r"\frac{1}{2}", r"(0, \infty)", r"x^2+1", r"\text{Monday}", "增函数", "(C)",
    "x>2",
)  # fmt: skip


@pytest.mark.slow
def test_a_gold_answer_that_cannot_be_read_is_dropped_once_and_another_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Grader.__init__.__kwdefaults__["time_limit"] > 1.0
    monkeypatch.setitem(Grader.__init__.__kwdefaults__, "time_limit", 1.0)
    golds = [*UNREADABLE, *READABLE]
    rows = [{"problem": f"{gold}?", "answer": gold} for gold in golds]
    source = write(tmp_path / "golds.jsonl", rows)
    problems, dropped = load(source=source, train=4, dev=2, test=3)
    assert sorted(row.answer for row in problems) == sorted(READABLE)
    settings = ProblemSettings(source=source, train=0, dev=0, test=100)
    rows_taken = list(load_problems(settings, 0, at_most=True))
    dropped += [row for row in rows_taken if isinstance(row, Dropped)]
    assert len(rows_taken) == len(golds), "each once"
    assert {row.reason for row in dropped} == {"unreadable_gold"}
    shown = {row.detail.split("gold answer ")[1].rsplit(": ", 1)[0] for row in dropped}
    assert shown == set(map(repr, UNREADABLE))
    assert "takes too long" in next(row.detail for row in dropped if "9^" in row.detail)
    with pytest.raises(DtoError, match="has 2 usable rows left for train, the recipe asks for 3"):
        load(source=source, train=3, dev=4, test=3)


def test_a_gold_answer_that_can_be_read_costs_no_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*args: object) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr("dto.grading.pool.WorkerPool.equal", fail)
    problems, dropped = load(
        source=write(tmp_path / "a.jsonl", numbered(3000)), train=2900, dev=50, test=50
    )
    assert (len(problems), dropped) == (3000, [])


@pytest.mark.parametrize("kind", ["choice", "code"])
def test_gold_answers_of_other_kinds(kind: str, tmp_path: Path) -> None:
    program = json.dumps({"prompt": "", "test": "assert f() == 1", "entry_point": "f"})
    good, bad = {"choice": ("B", None), "code": (program, "def f(): pass")}[kind]
    rows = [{"problem": "a?", "answer": good}]
    rows += [{"problem": "b?", "answer": bad}] if bad else []
    source = write(tmp_path / "a.jsonl", rows)
    problems, dropped = load(source=source, rule=kind, train=0, dev=0, test=1)
    assert [row.answer for row in problems] == [good]
    problems, dropped = load(
        source=source, rule=kind, train=0, dev=0, test=len(problems), test_source=None
    )
    assert {row.reason for row in dropped} <= {"unreadable_gold"}


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("name", ["math500", "aime24", "aime25", "amc23"])
def test_no_gold_answer_of_a_real_benchmark_is_lost(name: str) -> None:
    source = str(SHARED / f"{name}.jsonl")
    rows = sum(1 for line in (SHARED / f"{name}.jsonl").open() if line.strip())
    problems, dropped = load(source=source, train=0, dev=0, test=rows - 10)
    assert len(problems) == rows - 10
    assert not [row for row in dropped if row.reason == "unreadable_gold"]


def test_parquet_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"q": ["a?", "b?"], "gold": [27.0, 0.5], "level": [1, 2]}).write_parquet(path)
    problems, _ = load(
        source=str(path), question_field="q", answer_field="gold", train=2, dev=0, test=0
    )
    assert {(row.question, row.answer) for row in problems} == {("a?", "27"), ("b?", "0.5")}
    assert {row.metadata["level"] for row in problems} == {"1", "2"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"question": "a?", "answer": "1"}],
            "no field 'problem'; its fields are question, answer: set",
        ),
        (
            [{"problem": ["a?"], "answer": "1"}],
            "field 'problem' holds list, not text: set problems",
        ),
        ([{"problem": "a?", "answer": True}], "field 'answer' holds bool, not text"),
        ([{"problem": "a?", "answer": float("inf")}], "field 'answer' holds inf, not text"),
        (
            numbered(2),
            "has 2 usable rows left for train, the recipe asks for 3: lower problems.train",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(
    rows: list[Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DtoError, match=message) as error:
        load(source=write(tmp_path / "a.jsonl", rows), train=3, dev=0, test=0)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DtoError, match=r"none\.jsonl does not exist"):
        load(source=str(tmp_path / "none.jsonl"))
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(DtoError, match="cannot be read"):
        load(source=str(tmp_path / "bad.parquet"))
    with pytest.raises(DtoError, match=r"expected \.jsonl, .*\.parquet, a folder or a Hub dataset"):
        load(source=write(tmp_path / "rows.txt", numbered(2)))
    with pytest.raises(DtoError, match=r"nowhere does not exist: check the path"):
        load(source=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DtoError, match=r"empty' cannot be loaded") as error:
        load(source=str(tmp_path / "empty"))
    assert "\n" not in str(error.value)


def test_a_line_that_is_no_object_is_dropped_and_the_next_is_read(tmp_path: Path) -> None:
    good = json.dumps(numbered(1)[0]).encode()
    path = tmp_path / "rows.jsonl"
    bad = [b'{"problem": "a?"', b'["a?"]', b"\xff\xfe", b'{"problem": "\\ud83d", "answer": 1}']
    bad += [b'{"problem": "a?", "answer": ' + b"7" * 5000 + b"}", b"[" * 100_000]
    path.write_bytes(b"\n".join([*bad, b"", good]))
    problems, dropped = load(source=str(path), train=1, dev=0, test=0)
    assert [row.question for row in problems] == [numbered(1)[0]["problem"]]
    assert [(row.id, row.reason) for row in dropped] == [
        (f"line/{number:08d}", "unreadable_row") for number in range(1, 7)
    ]
    assert "line 2 holds list, not an object" in dropped[1].detail


@pytest.mark.parametrize("saved", [False, True], ids=["as on the Hub", "save_to_disk"])
def test_a_folder(saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "somebodys" / "questions"
    rows = {"train": numbered(3), "test": numbered(5)[3:]}
    if saved:
        parts = {name: datasets.Dataset.from_list(part) for name, part in rows.items()}
        datasets.DatasetDict(parts).save_to_disk(folder)
    else:
        (folder / "data").mkdir(parents=True)
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# Questions\n")
        for name, part in rows.items():
            pl.DataFrame(part).write_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    problems, dropped = load(source=str(folder), train=3, dev=0, test=2)
    assert not dropped
    for split, part in rows.items():
        found = {row.question for row in problems if row.split == split}
        assert found == {row["problem"] for row in part}
        assert {row.task for row in problems} == {"questions"}


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared test data is not here")
@pytest.mark.parametrize("name", ["gsm8k", "math500", "aime24", "aime25", "amc23"])
def test_real_benchmarks_load(name: str) -> None:
    source = str(SHARED / f"{name}.jsonl")
    problems, dropped = load(source=source, train=0, dev=0, test=30)
    assert len(problems) == 30
    assert all(row.task == name and row.answer and "." not in row.answer[-2:] for row in problems)
    assert {row.reason for row in dropped} <= {"duplicate"}
