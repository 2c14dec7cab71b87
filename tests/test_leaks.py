"""Test questions that stand in the training set: equal ones are left out, near copies are told."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto import tables
from dto.pipeline import open_run, run_stages
from dto.recipe import EvaluateSettings, ProblemSettings, Recipe
from dto.records import Dropped, Problem
from dto.reporting.funnel import funnel, funnel_section
from dto.runs.reader import RunReader
from dto.tasks import load as loading
from dto.tasks.importing import imported_problems
from dto.tasks.load import load_problems
from dto.tasks.overlap import Index, same_as
from dto.tasks.problems import load_test_sets

TRAIN = (
    "A farmer has seventeen sheep and sells all but nine of them at the market on the last day "
    "of May. How many sheep does the farmer have left in June?"
)
MOVED = TRAIN.replace("seventeen", "twenty").replace("in June", "after that")
OTHER = (
    "A baker has seventeen loaves, gives four away in the morning and eats two in the evening. "
    "How many loaves are there for the neighbours on the next day?"
)
CHINESE = "一个农夫有十七只羊除了九只以外都跑了请问农夫现在还有多少只羊"


def write(path: Path, questions: list[str], **more: str) -> str:
    rows = [{"problem": each, "answer": str(n), **more} for n, each in enumerate(questions)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(**settings: Any) -> tuple[dict[str, list[Problem]], list[Dropped]]:
    found: dict[str, list[Problem]] = {"train": [], "dev": [], "test": []}
    dropped = []
    for row in load_problems(ProblemSettings(**settings), seed=0):
        if isinstance(row, Dropped):
            dropped.append(row)
        else:
            found[row.split].append(row)
    return found, dropped


def fillers(count: int) -> list[str]:
    return [f"What is {n} and {n + 3} together, if anything?" for n in range(count)]


@pytest.mark.parametrize(
    ("test", "train", "same", "near"),
    [
        (TRAIN, TRAIN, True, False),
        (TRAIN, f"  {TRAIN.upper()}\n".replace(" HAS ", "\n\thas\u00a0"), True, False),
        ("What is 2+2?", "what is  2+2?", True, False),
        ("What is 2+2?", "What is ２+２?", True, False),  # full-width digits
        ("What is 2+2?", "What is 2-2?", False, False),
        ("What is 2+2?", "What is 2+3?", False, False),
        ("What is 2+2?", f"What is 2+2? {OTHER}", False, False),  # too short to be part of one
        (TRAIN, MOVED, False, True),
        (TRAIN, f"{OTHER} {TRAIN}", False, True),  # a part of a longer one
        (TRAIN, OTHER, False, False),
        (CHINESE, f"问：{CHINESE}", False, True),
        (CHINESE, CHINESE.replace("农夫", "老师").replace("羊", "牛"), False, False),
        (CHINESE, CHINESE.replace("请问", " 请问"), False, True),  # a space is none in Chinese
    ],
)
def test_what_is_the_same_question(
    test: str, train: str, same: bool, near: bool, tmp_path: Path
) -> None:
    tests = write(tmp_path / "test.jsonl", [test])
    source = write(tmp_path / "train.jsonl", [train, *fillers(3)])
    found, dropped = load(source=source, test_source=tests, train=4 - same, dev=0, test=1)
    assert [row.question for row in found["test"]] == [test]
    assert [row.reason for row in dropped] == ["duplicate"] * same
    marked = [row for row in found["train"] if "near_duplicate" in row.metadata]
    assert [row.question for row in marked] == [train.strip()] * near
    assert all(row.metadata["near_duplicate"].endswith(found["test"][0].id) for row in marked)
    assert not found["test"][0].metadata

    settings = {"train": 3, "dev": 0, "test": 1, "near_duplicates": "drop"}
    found, dropped = load(source=source, test_source=tests, **settings)
    assert [row.reason for row in dropped] == ["duplicate"] * same + ["near_duplicate"] * (
        near and len(dropped) > same
    )
    if same or near:
        assert train.strip() not in [row.question for row in found["train"]]
    assert len(found["train"]) == 3 and not any(row.metadata for row in found["train"])


def test_dev_is_kept_from_test_and_train_from_both(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()

    parts = {"test": [TRAIN], "dev": [OTHER, TRAIN.lower()], "train": [MOVED, OTHER.upper(), "1?"]}
    made = [
        loading._Part(split, split, loading.Task("rows", "rows"), None, False,
                       [{"problem": each, "answer": "1"} for each in questions])
        for split, questions in parts.items()
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_parts", lambda *_: made)
        found, dropped = load(source="rows", train=2, dev=1, test=1)
    assert Counter(row.reason for row in dropped) == {"duplicate": 2}
    assert [row.question for row in found["dev"]] == [OTHER]
    copies = {row.question: row.metadata.get("near_duplicate") for row in found["train"]}
    assert copies.keys() == {MOVED, "1?"}
    assert copies["1?"] is None and str(copies[MOVED]).endswith(found["test"][0].id)


def test_what_is_dropped_is_made_up_for_or_missed(tmp_path: Path) -> None:
    tests = write(tmp_path / "test.jsonl", [TRAIN])
    source = write(tmp_path / "train.jsonl", [MOVED, *fillers(2)])
    settings = {"source": source, "test_source": tests, "dev": 0, "test": 1}
    from dto.errors import DtoError

    with pytest.raises(DtoError, match="has 2 usable rows left for train, the recipe asks for 3"):
        load(**settings, train=3, near_duplicates="drop")
    assert len(load(**settings, train=3)[0]["train"]) == 3


def test_test_sets_of_other_tasks_are_compared_with_what_is_trained_on(tmp_path: Path) -> None:
    tests = write(tmp_path / "contest.jsonl", [TRAIN, TRAIN.upper(), OTHER, "What is 2+2?"])
    taken = [Problem(name, "t", "train", question, "1")
             for name, question in (("a", MOVED), ("b", "what is 2+2?"))]  # fmt: skip
    for setting, near in ((None, 1), ("drop", 0)):
        recipe = Recipe(
            name="r",
            problems=ProblemSettings(near_duplicates=setting),
            evaluate=EvaluateSettings(tasks=(tests,)),
        )
        rows = list(load_test_sets(recipe, taken))
        kept = [row for row in rows if isinstance(row, Problem)]
        reasons = Counter(row.reason for row in rows if isinstance(row, Dropped))
        assert len(kept) == 1 + near
        copies = [row.metadata["near_duplicate"] for row in kept if row.metadata]
        assert [each.split()[-1] for each in copies] == ["a"] * near
        # TRAIN in capitals is the same test question twice, that of 2+2 is trained on
        assert reasons == Counter(duplicate=2, near_duplicate=1 - near)


def test_imported_questions_stay_and_those_to_measure_by_give_way(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    rows = [{"prompt": each, "response": "<think>\nx\n</think>\n\n1", "answer": "1"}
            for each in (MOVED, "What is 2+2?")]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own = write(tmp_path / "own.jsonl", [TRAIN, OTHER, "what  is 2+2?"])
    for setting, near in ((None, 1), ("drop", 0)):
        settings = ProblemSettings(source=own, dev=0, test=1 + near, near_duplicates=setting)
        found = list(imported_problems(str(path), settings, seed=0))
        problems = [row for row in found if isinstance(row, Problem)]
        train = [row for row in problems if row.split == "train"]
        tests = {row.question: row.metadata for row in problems if row.split == "test"}
        assert {row.question for row in train} == {MOVED, "What is 2+2?"}
        assert OTHER in tests and (TRAIN in tests) == bool(near)
        if near:
            copied = next(row.id for row in train if row.question == MOVED)
            assert tests[TRAIN]["near_duplicate"].endswith(copied)


def record(place: Path, recipe: Recipe) -> None:
    run = open_run(place, recipe)
    run_stages(run, ["problems"])
    run.close()


def test_near_copies_are_told_before_anything_is_sampled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = Recipe(
        name="r",
        problems=ProblemSettings(
            source=write(tmp_path / "train.jsonl", [MOVED, *fillers(3)]),
            test_source=write(tmp_path / "test.jsonl", [TRAIN]),
            train=4,
            dev=0,
            test=1,
        ),
    )
    with caplog.at_level(logging.WARNING, "dto"):
        record(tmp_path / "run", recipe)
    rows = list(tables.read(tmp_path / "run" / "problems" / "rows.parquet", Problem))
    (copy,) = (row for row in rows if row.metadata)
    assert "problems: 1 of 4 train problems repeat half or more" in caplog.text
    assert f"such as {copy.id} ({copy.metadata['near_duplicate']})" in caplog.text
    counts = funnel(RunReader(tmp_path / "run"))
    assert counts["near_duplicates"] == {"train": 1}
    told = " ".join(funnel_section(counts, recipe).facts)
    assert "at least half of a question of another split: 1 in train" in told


def test_nothing_is_told_where_nothing_is_copied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "train.jsonl", [TRAIN, OTHER, *fillers(8)])
    recipe = Recipe(name="r", problems=ProblemSettings(source=source, train=5, dev=3, test=2))
    with caplog.at_level(logging.WARNING, "dto"):
        record(tmp_path / "run", recipe)
    assert tables.count(tmp_path / "run" / "problems" / "rows.parquet") == 10
    assert "repeat half or more" not in caplog.text
    assert funnel(RunReader(tmp_path / "run"))["near_duplicates"] == {}


SPACES = st.text(" \t\n\u00a0\u2003", min_size=1, max_size=3)


@given(st.lists(st.text("abcxyz0123456789+-=?²", min_size=1), min_size=1, max_size=20), st.data())
def test_spaces_and_case_make_no_other_question(words: list[str], data: st.DataObject) -> None:
    text = " ".join(words)
    spaced = "".join(
        word.upper() + data.draw(SPACES) if data.draw(st.booleans()) else word + " "
        for word in words
    )
    assert same_as(text) == same_as(spaced)
    assert same_as(text) != same_as(f"{text} 7")
    index = Index()
    index.add("row", text)
    assert (hit := index.find(spaced)) is not None and hit.share == 1


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x1c", "\r"])
def test_a_line_of_json_ends_at_a_line_feed_alone(mark: str, tmp_path: Path) -> None:
    rows = [{"id": f"2/{n}", "reason": "error", "detail": f"server said{mark}no"} for n in range(3)]
    for stage in ("batch", "train"):
        (tmp_path / stage).mkdir()
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (tmp_path / stage / "dropped.jsonl").write_text("".join(lines), "utf-8", newline="\n")
        (tmp_path / stage / "manifest.json").write_text(json.dumps({"rows": 0}))
    assert [asdict(row) for row in RunReader(tmp_path).dropped("batch")] == rows
    assert funnel(RunReader(tmp_path))["dropped"]["train"] == {"error": 3}
