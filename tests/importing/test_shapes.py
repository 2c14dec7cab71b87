"""Every known shape, from a file to pairs; what each row carries, and what the log tells."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import dto
from dto.tasks.importing import Response, read_responses
from tests.importing.shapes import KNOWN, PROBLEMS, Known, rows_of


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def responses(source: str, **options: Any) -> list[Response]:
    return [row for row in read_responses(source, **options) if isinstance(row, Response)]


EXPECTED = sorted(
    (question, short.text.removeprefix("<think>\n"), long.text.removeprefix("<think>\n"))
    for question, _, (short, long) in PROBLEMS
)


def pairs_of(source: str, **options: Any) -> list[tuple[str, str, str]]:
    """Question, chosen and rejected of the pairs of a file."""
    pairs = dto.pairs_from(source, "nano", data="shortest", **options)
    questions = {each[0] for each in PROBLEMS}
    asked = [next(each for each in questions if each in row["prompt"]) for row in pairs]
    rows = zip(asked, pairs["chosen"], pairs["rejected"], strict=True)
    return sorted((question, chosen, rejected) for question, chosen, rejected in rows)


@pytest.mark.parametrize("known", KNOWN.values(), ids=list(KNOWN))
def test_from_a_file_to_pairs(
    known: Known, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dto")
    source = write(tmp_path / "rows.jsonl", rows_of(known.form))
    assert pairs_of(source) == EXPECTED
    lines = [line for line in caplog.messages if line.startswith("shape: ")]
    assert [line.partition(" (")[0] for line in lines] == [f"shape: {known.shape}"]


@pytest.mark.parametrize("known", KNOWN.values(), ids=list(KNOWN))
def test_verdicts_of_the_source_and_parts_left_out(known: Known, tmp_path: Path) -> None:
    read = responses(write(tmp_path / "rows.jsonl", rows_of(known.form)))
    assert [(row.sample, row.correct) for row in read] == [*enumerate(known.correct)] * 2
    assert {row.left_out for row in read} == {known.left_out}
    assert {row.problem.question for row in read} == {question for question, _, _ in PROBLEMS}
    if known.shape != "preferences":
        assert {row.problem.answer for row in read} == {"5", "9"}
