"""Examples in the report: which rows, what is struck through, what is not shown."""

from __future__ import annotations

import html
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dto import tables
from dto.recipe import make_recipe
from dto.records import (
    EvaluationRow,
    Grade,
    OptimizedTrajectory,
    Outcome,
    Problem,
    Segment,
    Span,
    Trajectory,
    Verdict,
)
from dto.reporting import examples
from dto.reporting.examples import MOST_CHARACTERS, Part, examples_section
from dto.reporting.page import OmittedSection, Section
from dto.runs.reader import RunReader

PIECES = ("one ", "two ", "three ", "four ")


def trajectory(number: int, pieces: Sequence[str], grade: Grade) -> Trajectory:
    text = f"<think>{''.join(pieces)}</think>\\boxed{{{number}}}"
    inside = Span(7, 7 + len("".join(pieces)))
    return Trajectory(
        f"p{number:02d}/000", f"p{number:02d}", "nano", 0, 0, (1,), (5,) * 100, "sampled", text,
        inside, Span(inside.end + 8, len(text)), Span(1, 99), "stop", grade,
    )  # fmt: skip


def write_run(
    path: Path,
    versions: Sequence[tuple[Outcome, int, Sequence[int]]] = (),
    answers: Sequence[tuple[Grade, Grade, int]] = (),
    *,
    pieces: Sequence[str] = PIECES,
    settings: dict[str, Any] | None = None,
    keep: bool = True,
    question: str = "Question of",
) -> RunReader:
    """A run with an optimized version each (outcome, tokens after, kept segments) that leaves after
    the third of four segments, and with answers (base, trained, tokens of trained; base: 100)."""
    path.mkdir(parents=True, exist_ok=True)
    recipe = make_recipe({"name": "toy"}, settings)
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    problems, sampled, segments, optimized = [], [], [], []
    for number, (outcome, after, kept) in enumerate(versions):
        row = trajectory(number, pieces, "wrong" if outcome == "repaired" else "correct")
        sampled.append(row)
        start = row.thinking.start
        for index, piece in enumerate(pieces):
            chars = Span(start, start := start + len(piece))
            id = Segment.make_id(row.id, index)
            segments.append(Segment(id, row.id, index, Span(0, 1), chars, 1, "", "opening"))
        verdicts = tuple(Verdict(n, "redundant", 0.0, pruned=True) for n in {0, 1, 2} - {*kept})
        optimized.append(
            OptimizedTrajectory(
                row.id, row.id, row.problem_id, 2, tuple(kept), (5,), f"short {number}", Span(0, 1),
                Span(0, 1), "", 1.0, 100, after, 0.0, 0.0, outcome, verdicts,
            )
        )  # fmt: skip
    rows = []
    for number, (base, trained, tokens) in enumerate(answers):
        for model, grade, count in (("base", base, 100), ("trained", trained, tokens)):
            id = EvaluationRow.make_id(model, "none", f"p{number:02d}", 0)
            text = f"answer of {model} to {number}" if keep else ""
            rows.append(
                EvaluationRow(
                    id, model, "none", f"p{number:02d}", 0, 0, grade, "", "", "closed", count, 0, 0,
                    count, 1, 0.0, text=text,
                )
            )  # fmt: skip
    for number in range(max(len(versions), len(answers))):
        split = "train" if versions else "test"
        text = f"{question} {number}?"
        problems.append(Problem(f"p{number:02d}", "toy", split, text, f"gold {number}"))
    for stage, record, content in (
        ("problems", Problem, problems),
        ("sample", Trajectory, sampled),
        ("segment", Segment, segments),
        ("prune", OptimizedTrajectory, optimized),
        ("evaluate", EvaluationRow, sorted(rows, key=lambda row: row.id)),
    ):
        if content:
            (path / stage).mkdir()
            tables.write(path / stage / "rows.parquet", record, content)
    return RunReader(path)


def section(run: RunReader) -> Section:
    made = examples_section(run, "none", "runs/toy")
    assert isinstance(made, Section)
    return made


def titles(run: RunReader) -> list[str]:
    found = re.findall(r"<h3>(.*?)</h3>", section(run).html)
    return [re.sub(r"<.*?>", "", title) for title in found]


def test_what_an_exit_cut_and_what_was_pruned_are_told_apart(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [("shortened", 40, (0, 2))])
    text = section(run).html
    assert '<del class="pruned">two </del>' in text and '<del class="cut">four </del>' in text
    assert "&lt;think&gt;one <del" in text and "</del>three <del" in text
    assert "</del>&lt;/think&gt;\\boxed{0}</div>" in text
    assert "short 0" in text and "Question of 0?" in text and "gold 0" in text
    assert "correct, 100 tokens" in text and "correct, 40 tokens" in text


@pytest.mark.parametrize(
    ("after", "median"), [([10], 0), ([10, 20], 1), ([30, 10, 20], 2), ([50, 50, 50, 50], 1)]
)
@pytest.mark.parametrize("outcome", ["shortened", "repaired"])
def test_the_row_with_the_median_saving_is_shown(
    tmp_path: Path, outcome: Outcome, after: list[int], median: int
) -> None:
    """Of an even number the lower saving; of equal ones the first by id."""
    run = write_run(tmp_path / "run", [(outcome, tokens, (0, 1, 2)) for tokens in after])
    assert f"short {median}</div>" in section(run).html
    assert titles(run)[0].endswith(f": the median of {len(after)}")


def test_each_group_has_an_example_and_none_is_shown_twice(tmp_path: Path) -> None:
    rows: list[tuple[Outcome, int, Sequence[int]]] = [
        ("shortened", 50, (0, 2)),
        ("shortened", 40, (0, 2)),
        ("shortened", 30, (0, 1, 2)),
        ("repaired", 20, (0, 1, 2)),
        ("unchanged", 100, (0, 1, 2)),
    ]
    run = write_run(tmp_path / "run", rows)
    assert titles(run) == [
        "A right response, shortened: the median of 3",
        "A right response with pruned patterns: the median of 2",
        "A response that was not right, repaired: the median of 1",
    ]
    shown = re.findall(r"short (\d)</div>", section(run).html)
    assert len(shown) == len(set(shown)) == 3 and "4" not in shown


def test_answers_include_one_that_got_worse(tmp_path: Path) -> None:
    answers: list[tuple[Grade, Grade, int]] = [
        ("correct", "correct", 50),
        ("correct", "correct", 90),
        ("correct", "wrong", 20),
        ("truncated", "correct", 30),
        ("wrong", "wrong", 10),
        ("correct", "failed", 10),
    ]
    run = write_run(tmp_path / "run", answers=answers)
    assert titles(run) == [
        "A test answer, right before and after training: the median of 2",
        "A test answer that training made wrong: the median of 1",
        "A test answer that training made right: the median of 1",
    ]
    text = section(run).html
    for number in (1, 2, 3):
        assert f"answer of base to {number}" in text and f"answer of trained to {number}" in text
    assert "truncated, 100 tokens" in text and "wrong, 20 tokens" in text


def test_the_same_rows_in_any_order_of_groups(tmp_path: Path) -> None:
    """The choice depends on savings and ids, not on how a table was written."""
    savings = random.Random(0).sample(range(10, 90), 21)
    run = write_run(tmp_path / "run", [("shortened", after, (0, 1, 2)) for after in savings])
    middle = sorted(savings)[10]
    assert f"short {savings.index(middle)}</div>" in section(run).html


@pytest.mark.parametrize(
    ("settings", "copied"),
    [
        ({}, True),
        ({"problems.source": "mine.jsonl"}, True),
        ({"problems.source": "gsm8k"}, False),
        ({"problems.test_source": "math500"}, False),
        ({"problems.test_source": "somebody/set"}, False),
        ({"problems.source": "gsm8k", "problems.test_source": "mine.jsonl"}, True),
    ],
)
def test_test_sets_of_others_are_not_copied(
    tmp_path: Path, settings: dict[str, Any], copied: bool
) -> None:
    run = write_run(tmp_path / "run", answers=[("correct", "correct", 50)], settings=settings)
    made = examples_section(run, "none", "runs/toy")
    assert isinstance(made, Section if copied else OmittedSection)


def test_answers_that_were_not_kept_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", answers=[("correct", "correct", 50)], keep=False)
    assert isinstance(examples_section(run, "none", "runs/toy"), OmittedSection)


def test_titles_lead_to_the_viewer_if_it_is_there(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [("shortened", 40, (0, 1, 2))], [("correct", "wrong", 9)])
    assert "dto view runs/toy" in section(run).text[0] and "<a " not in section(run).html
    (run.path / "view.html").write_text("")
    found = re.findall(r'<a href="(.*?)">', section(run).html)
    assert [html.unescape(address) for address in found] == [
        "../view.html#p00/000",
        "../view.html#p00/000&list=evaluation",
    ]
    assert "view.html" in section(run).text[0]


def test_an_answer_leads_to_its_own_sample(tmp_path: Path) -> None:
    """The id of a problem alone would lead to its first sample."""
    run = write_run(tmp_path / "run", answers=[("correct", "wrong", 9)])
    rows = list(tables.read(run.table("evaluate"), EvaluationRow))
    moved = [
        replace(row, sample=2, id=EvaluationRow.make_id(row.model, row.exit, row.problem_id, 2))
        for row in rows
    ]
    tables.write(run.table("evaluate"), EvaluationRow, moved)
    (run.path / "view.html").write_text("")
    assert "../view.html#p00/002&amp;list=evaluation" in section(run).html


def test_texts_are_escaped_and_private_names_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "very-secret-value")
    bad = "<script>alert(1)</script>"
    pieces = (f"{bad} ", f"{tmp_path}/run ", "very-secret-value ", "\u202eabc\x1b ")
    question = f"{bad} {tmp_path}/run"
    rows: list[tuple[Outcome, int, Sequence[int]]] = [("shortened", 40, (0, 1, 2))]
    run = write_run(tmp_path / "run", rows, pieces=pieces, question=question)
    text = section(run).html
    assert "<script" not in text and "&lt;script&gt;" in text
    assert str(tmp_path) not in text and "very-secret-value" not in text
    assert "\u202e" not in text and "\x1b" not in text and "‹U+202E›abc‹␛›" in text


@pytest.mark.parametrize(
    "text",
    ["می\u200cخواهم", "क्\u200dष", "\U0001f469\u200d\U0001f4bb", "\ue000", "a\u00a0b"],
    ids=["Persian", "Hindi", "an emoji", "private use", "a space that does not break"],
)
def test_characters_that_scripts_need_stay(text: str, tmp_path: Path) -> None:
    rows: list[tuple[Outcome, int, Sequence[int]]] = [("shortened", 40, (0, 1, 2))]
    run = write_run(tmp_path / "run", rows, pieces=(f"{text} ", *PIECES[1:]))
    assert f"{text} " in section(run).html and "‹" not in section(run).html


@pytest.mark.parametrize("sizes", [(5, 5), (30_000,), (9_999, 30_000), (10_000, 10_001), (1,) * 7])
def test_a_long_text_loses_its_middle(sizes: Sequence[int]) -> None:
    parts = [Part(chr(97 + place) * size, "cut") for place, size in enumerate(sizes)]
    whole = "".join(part.text for part in parts)
    clipped = examples._clipped(parts)
    remarks = [part.text for part in clipped if part.kind == "left-out"]
    rest = "".join(part.text for part in clipped if part.kind != "left-out")
    if len(whole) <= MOST_CHARACTERS:
        assert rest == whole and not remarks
        return
    half = MOST_CHARACTERS // 2
    assert rest == whole[:half] + whole[len(whole) - half :]
    assert remarks == [f"[{len(whole) - MOST_CHARACTERS:,} characters are left out here]"]


def test_a_run_without_texts_has_no_examples(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [("unchanged", 100, (0, 1, 2))])
    made = examples_section(run, "none", "runs/toy")
    assert isinstance(made, OmittedSection) and made.title == "Examples"
