"""What an import got: figures of a run, lines for people, warnings."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto import tables
from dto.recipe import make_recipe, resolve
from dto.records import Dropped, Grade, Problem, Span, Trajectory
from dto.runs import manifest
from dto.runs.reader import RunReader
from dto.statistics import Estimate
from dto.tasks.importing import Response
from dto.tasks.summary import Agreement, DroppedRows, Summary, read, summarize
from tests.commands import dto, told

NANO = Path(resolve("nano"))
needs_nano = pytest.mark.skipif(not NANO.is_dir(), reason="the embedded model is not here")


def problem(question: str, answer: str = "1") -> Problem:
    return Problem(Problem.make_id("imported", question, answer), "imported", "train", question,
                   answer)  # fmt: skip


def response(question: str, text: str = "x", sample: int = 0, **fields: Any) -> Response:
    answer = fields.pop("answer", "1")
    return Response(problem(question, answer), sample, text, **fields)


def trajectory(row: Response, grade: Grade, tokens: int = 5, thinking: int = 3) -> Trajectory:
    return Trajectory(
        id=Trajectory.make_id(row.problem.id, row.sample), problem_id=row.problem.id, model="m",
        sample=row.sample, seed=0, prompt_ids=(1, 2), token_ids=(7,) * tokens, ids_from="encoded",
        text=row.text, thinking=Span(0, 1), conclusion=Span(1, 1),
        thinking_tokens=Span(0, thinking),
        finish_reason="length" if grade == "truncated" else "stop",
        grade=grade, answer="1", reason="no_gold_answer" if grade == "failed" else "",
    )  # fmt: skip


def run_of(
    path: Path, rows: list[Trajectory], dropped: list[Dropped] | None = None, **settings: Any
) -> RunReader:
    """A run whose stage `sample` is finished, with these rows."""
    recipe = make_recipe(
        {"name": "r", "model": {"name": "nano"}, "sample": {"imported": "somewhere/rows.jsonl"}},
        settings, "test",
    )  # fmt: skip
    (path / "sample").mkdir(parents=True)
    rows = sorted(rows, key=lambda row: row.id)
    tables.write(path / "sample" / "rows.parquet", Trajectory, rows)
    lines = [json.dumps({"id": row.id, "reason": row.reason, "detail": row.detail}) + "\n"
             for row in dropped or []]  # fmt: skip
    (path / "sample" / "dropped.jsonl").write_text("".join(lines))
    manifest.write(path / "sample", {"digest": "abc", "rows": len(rows)})
    return RunReader(path, recipe)


def test_the_figures_of_a_run(tmp_path: Path) -> None:
    one = response("a?", correct=True, left_out=("system_prompt", "image"))
    second = Response(one.problem, 1, "y", correct=False)  # of the same row
    again = response("a?", sample=2, correct=True)
    gone = Dropped("row/00000003", "missing_field", "row 3 has no question")
    plain = response("b?", "z", correct=True, left_out=("image",))
    without = response("c?", answer="")
    rows: list[Response | Dropped] = [one, second, again, gone, plain, without]
    table = [
        trajectory(one, "correct", 4),
        trajectory(second, "wrong", 6),
        trajectory(again, "truncated", 2_047),
        trajectory(plain, "wrong", 10, thinking=0),
        trajectory(without, "failed", 8),
    ]
    lost = [
        gone,
        Dropped("x", "unreadable_gold", "gold"),
        Dropped("y", "unreadable_gold", "gold 2"),
    ]
    found = summarize(run_of(tmp_path, table, lost), rows)
    assert replace(found, agreement=None) == Summary(
        source="rows.jsonl", digest="abc", paired=False, rows=5, responses=5, problems=3,
        grades={"correct": 1, "wrong": 2, "truncated": 1, "failed": 1}, no_gold=1, unclosed=1,
        no_thinking=1, left_out={"system_prompt": 1, "image": 2}, duplicates=1,
        tokens=(8, 2_047, 2_047), long=1, context=2_048,
        dropped={"missing_field": DroppedRows(1, "row 3 has no question"),
                 "unreadable_gold": DroppedRows(2, "gold")},
    )  # fmt: skip
    verdicts = found.agreement
    assert verdicts is not None and verdicts.count == 4
    assert (verdicts.both_right, verdicts.both_wrong, verdicts.more, verdicts.fewer) == (1, 1, 2, 0)
    assert set(verdicts.more_ids) == {table[2].id, table[3].id} and verdicts.fewer_ids == ()
    assert verdicts.kappa.value == pytest.approx(0.2)
    assert verdicts.kappa.low <= 0.2 <= verdicts.kappa.high
    text = "\n".join(found.lines())
    for part in (
        "rows.jsonl: 5 rows: 5 responses to 3 questions",
        "1 correct, 2 wrong, 1 truncated, 1 failed",
        "no gold answer   1",
        "thinking         1 never closed",
        "without thinking 1",
        "left out         system prompt of 1 row, image of 2 rows",
        "duplicates       1 (same question, same response)",
        "tokens           median 8, 90 % below 2,047, longest 2,047",
        "dropped          2 unreadable_gold: gold",
        "source's verdict 2 of 4 agree with our grade, kappa 0.20",
        f"2 right for the source, not for us: {', '.join(sorted((table[2].id, table[3].id)))}",
    ):
        assert part in text, part
    (warning,) = found.warnings()
    assert warning == "3 of 5 rows are dropped, 2 as unreadable_gold, such as gold"


def test_a_response_that_was_cut_off_is_not_one_that_never_closes(tmp_path: Path) -> None:
    rows = [response("a?", cut=True), response("b?"), response("c?")]
    table = [trajectory(row, "truncated") for row in rows[:2]] + [trajectory(rows[2], "correct")]
    found = summarize(run_of(tmp_path, table), rows)
    assert (found.cut, found.unclosed, found.grades["truncated"]) == (1, 1, 2)
    lines = list(found.lines())
    assert "cut off          1 by the token limit, as the source says" in lines
    assert "thinking         1 never closed" in lines


def test_a_run_without_rows(tmp_path: Path) -> None:
    found = summarize(run_of(tmp_path, [], [Dropped("x", "foreign_tags", "[THINK]")]), [])
    assert (found.responses, found.tokens, found.agreement) == (0, (0, 0, 0), None)
    assert "0 rows: 0 responses" in next(found.lines()) and list(found.warnings()) == []


@pytest.mark.parametrize(
    ("texts", "tag"),
    [
        (["<|begin|>a", "<|begin|>b", "c"], "<|begin|>"),
        (["\n[THINK] a", "[THINK]b"], "[THINK]"),
        (["<a>x", "b"], ""),
        (["<think>x", "<think>y"], ""),
        (["a < b and c > d", "1 < 2>"], ""),
    ],
)
def test_the_tag_that_most_responses_begin_with(texts: list[str], tag: str, tmp_path: Path) -> None:
    rows = [response(f"{number}?", text) for number, text in enumerate(texts)]
    table = [trajectory(row, "truncated") for row in rows]
    assert summarize(run_of(tmp_path, table), rows).tag == tag


@pytest.mark.parametrize(
    ("begin", "tag"), [("[THINK]", ""), ("<think>", "<think>"), ("[OTHER]", "[OTHER]")]
)
def test_the_tag_of_the_model_is_no_other(begin: str, tag: str, tmp_path: Path) -> None:
    rows = [response(f"{number}?", f"{begin}{number}") for number in range(4)]
    run = run_of(tmp_path, [trajectory(row, "truncated") for row in rows])
    model = run.recipe.model.model_copy(update={"think": ("[THINK]", "[/THINK]")})
    run = RunReader(tmp_path, run.recipe.model_copy(update={"model": model}))
    assert summarize(run, rows).tag == tag


BASE = Summary("rows.jsonl", "abc", False, rows=8, responses=8, problems=8,
               grades={"correct": 8}, context=2_048)  # fmt: skip


def lost(foreign: int, missing: int = 0) -> dict[str, DroppedRows]:
    return {
        "missing_field": DroppedRows(missing, "row 3 has no question"),
        "foreign_tags": DroppedRows(foreign, "[THINK]: set model.think"),
    }


WARNED: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("all is well", {}, ()),
    ("half are truncated", {"unclosed": 4}, ()),
    ("most are truncated", {"unclosed": 5},
     ("5 of 8 responses never close", "--map thinking=FIELD", "--set 'model.think=")),
    ("their tag is known", {"unclosed": 8, "tag": "<|begin|>"}, ("begin with <|begin|>",)),
    ("half have no gold", {"no_gold": 4}, ()),
    ("most have no gold", {"no_gold": 8}, ("8 of 8 responses have no gold", "--map answer=FIELD")),
    ("pairs need no gold", {"no_gold": 8, "paired": True}, ()),
    ("thinking is a summary", {"left_out": {"summary": 1}}, ("1 row had a summary", "not the mod")),
    ("a system prompt is left out", {"left_out": {"system_prompt": 8}}, ()),
    ("most are too long", {"long": 5}, ("5 of 8 responses do not fit", "2,048 tokens")),
    ("the context is unknown", {"long": 5, "context": 0}, ()),
    ("half of the rows are dropped", {"rows": 16, "dropped": lost(8)}, ()),
    ("most rows are dropped", {"rows": 17, "dropped": lost(7, missing=2)},
     ("9 of 17 rows are dropped, 7 as foreign_tags, such as [THINK]: set model.think",)),
    ("all rows are dropped, where the run stops", 
     {"rows": 9, "responses": 0, "dropped": lost(9)}, ()),
]  # fmt: skip


@pytest.mark.parametrize(("_", "changes", "parts"), WARNED, ids=[row[0] for row in WARNED])
def test_warnings(_: str, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    lines = list(replace(BASE, **changes).warnings())
    assert len(lines) == bool(parts) and all("\n" not in line for line in lines)
    assert all(part in lines[0] for part in parts)


def test_what_was_left_out_is_worded() -> None:
    text = "\n".join(replace(BASE, left_out={"summary": 2, "prompt": 1, "image": 1}).lines())
    parts = "full thinking (a summary was imported) of 2 rows, sent prompt of 1 row, image of 1 row"
    assert f"left out         {parts}" in text


def test_pairs_have_no_grades_in_their_lines() -> None:
    text = "\n".join(replace(BASE, paired=True, no_gold=8).lines())
    assert "correct" not in text and "gold" not in text


COUNTS = st.integers(0, 10**6)


@given(COUNTS, COUNTS, COUNTS, st.dictionaries(st.text(min_size=1), st.text(), max_size=3))
def test_a_summary_is_read_as_it_was_written(
    rows: int, more: int, tokens: int, dropped: dict[str, str]
) -> None:
    kappa = Estimate(0.5, nan if more % 2 else 0.1, 0.9, rows, rows)
    written = replace(
        BASE, rows=rows, tokens=(tokens, tokens, tokens), left_out={"image": more},
        dropped={reason: DroppedRows(more, text) for reason, text in dropped.items()},
        agreement=Agreement(rows, rows, more, 0, kappa, ("a", "b"), ()),
    )  # fmt: skip
    adapter = tables.adapter(Summary)
    back = adapter.validate_python(json.loads(json.dumps(adapter.dump_python(written))))
    assert repr(back) == repr(written)
    assert list(back.lines()) == list(written.lines())


def test_a_summary_of_other_rows_is_not_read(tmp_path: Path) -> None:
    run = run_of(tmp_path, [])
    assert read(run) is None
    data = tables.adapter(Summary).dump_python(BASE)
    (tmp_path / "import.json").write_text(json.dumps(data))
    assert read(run) == BASE
    (tmp_path / "import.json").write_text(json.dumps(data | {"digest": "old"}))
    assert read(run) is None
    for broken in ("{", "[]", json.dumps(data | {"rows": "many"})):
        (tmp_path / "import.json").write_text(broken)
        assert read(run) is None


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def write_rows(name: str, **fields: str) -> None:
    """Eight questions with right responses; `fields` are formats of more fields."""
    rows = []
    for number in range(8):
        values = {"question": "{0} + 1?", "answer": "{1}", **fields}
        rows.append({key: value.format(number, number + 1) for key, value in values.items()})
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


GOOD = "<think>\nIt is {1}.\n\nWait, it is {1}.\n</think>\n\n\\boxed{{{1}}}"


@needs_nano
@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_an_import_says_what_it_got(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dto")
    write_rows("my rows.jsonl", response=GOOD)
    code, out, err = dto("import", "my rows.jsonl", "--model", "nano", capsys=capsys)
    assert code == 0, err
    assert out.startswith("my rows.jsonl: 8 rows: 8 responses to 8 questions\n")
    assert "8 correct, 0 wrong, 0 truncated, 0 failed" in out and "warning" not in out
    hint = next(line for line in out.splitlines() if "continue with: " in line)
    *_, last = hint.replace("FILE|HUB", "chains").partition("continue with: ")
    assert shlex.split(last)[:3] == ["dto", "run", "runs/my rows"]
    assert "import    my rows.jsonl: 8 rows: 8 responses to 8 questions, grades 8" in caplog.text
    summary = json.loads(Path("runs/my rows/import.json").read_text())
    assert summary["grades"] == {"correct": 8}
    again = dto("import", "my rows.jsonl", "--model", "nano", capsys=capsys)
    assert (again[0], again[1]) == (0, out)
    code, plan, err = dto(*shlex.split(last)[1:], "--dry-run", capsys=capsys)
    assert code == 0 and "train" in plan, err
    changes = shlex.split(last)[3:]
    code, _, err = dto("segment", "runs/my rows", *changes, capsys=capsys)
    assert code == 0 and len(read_problems("runs/my rows", "dev")) == 300, err
    settings = ["--set", "problems.source=chains", "--set", "problems.dev=3"]
    ready = [*settings, "--set", "problems.test=3", "--out", "ready"]
    code, out, err = dto("import", "my rows.jsonl", "--model", "nano", *ready, capsys=capsys)
    assert code == 0 and out.endswith("ready: continue with: dto run ready\n"), err


def read_problems(run: str, split: str) -> list[Problem]:
    rows = RunReader(Path(run)).rows("problems", Problem)
    return [row for row in rows if row.split == split]


@needs_nano
@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_an_import_without_gold_warns_and_its_run_stops_with_the_reason(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_rows("a.jsonl", response=GOOD, answer="")
    command = ("import", "a.jsonl", "--model", "nano")
    code, out = told(*command, capsys=capsys)
    assert code == 0 and "8 of 8 responses have no gold answer" in caplog.text
    assert "warning" not in out  # the log had it
    assert "warning: 8 of 8 responses have no gold" in told(*command, capsys=capsys)[1]
    assert dto("segment", "runs/a", capsys=capsys)[0] == 0
    for _ in range(2):  # computed, and already finished
        code, _, err = dto("estimate", "runs/a", capsys=capsys)
        assert code == 1 and err.count("dto: error: ") == 1 and err.endswith("the reasons\n"), err
        assert "estimate: none of 8 trajectories can be used: 8 no_gold_answer: " in err
        assert "--map answer=FIELD" in err and "runs/a/estimate/dropped.jsonl" in err
    write_rows("a.jsonl", response=GOOD)
    code, out = told(*command, "--recompute", "--yes", capsys=capsys)
    assert code == 0 and "8 correct" in out, out
    for stage in ("segment", "estimate"):
        code, _, err = dto(stage, "runs/a", "--recompute", "--yes", capsys=capsys)
        assert code == 0, err
    assert tables.count(Path("runs/a/estimate/rows.parquet")) >= 8


@needs_nano
@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_an_import_of_thinking_that_never_closes_warns(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_rows("a.jsonl", response="<reason>It is {1}.</reason> \\boxed{{{1}}}")
    code, out = told("import", "a.jsonl", "--model", "nano", capsys=capsys)
    assert code == 0 and "0 correct, 0 wrong, 8 truncated" in out
    assert "most of them begin with <reason>" in caplog.text
