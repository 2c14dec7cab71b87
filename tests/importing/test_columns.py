"""Columns that a user names, questions to the user, and what the log says about the fields."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import dto
from dto import tables
from dto.errors import DtoError
from dto.records import Dropped, Trajectory
from dto.runs.reader import RunReader
from dto.tags import DEFAULT_TAGS, ThinkTags
from dto.tasks.importing import Response, holds_pairs, read_responses
from dto.tasks.rows import Undecided, read_row
from dto.tasks.shapes import find, is_path
from dto.tasks.survey import WINDOW
from dto.tasks.task import FieldError
from tests.commands import told
from tests.importing.shapes import (
    PROBLEMS,
    Answer,
    Row,
    anthropic,
    choices,
    limo,
    open_thoughts,
    openr1,
    rows_of,
    says,
    user,
)
from tests.importing.test_shapes import EXPECTED, pairs_of, responses, write

WHOLE = "<think>\nIt is 5.\n</think>\n\n\\boxed{5}"

PATHS: list[tuple[Any, str, Any]] = [
    ({"a": 1}, "a", 1),
    ({"a": {"b": [{"c": 1}, {"c": 2}]}}, "a.b[1].c", 2),
    ({"a": {"b": [{"c": 1}, {}]}}, "a.b[].c", [1, None]),
    ({"a": [["x", "y"], ["z"]]}, "a[0][]", ["x", "y"]),
    ({"a": "x"}, "a[]", ["x"]),
    ({"a": {"p": {"v": 1}, "q": {"v": 0}}}, "a.*.v", [1, 0]),
    ({"a.b": 3, "a": {"b": 4}}, "a.b", 3),
    ({"a": "x ", "b": "y"}, "a + b", "x\n\ny"),
    ({"a": "x", "b": ""}, "a + b", "x"),
    ({"a": [1]}, "a[3]", None),
    ({"a": [1]}, "a.b", None),
    ({"a": "text"}, "a.*", None),
    ({"a": None}, "a.b", None),
    ({"a": float("nan")}, "a", None),
    ({"a": []}, "a[]", None),
]


@pytest.mark.parametrize(("row", "path", "value"), PATHS)
def test_paths(row: Mapping[str, Any], path: str, value: Any) -> None:
    assert find(row, path) == value and is_path(path)


@pytest.mark.parametrize("path", ["a..b", "a[", "a[x]", "[0].a", "", "a.", "a + "])
def test_no_paths(path: str) -> None:
    assert not is_path(path)


def mapped(question: str, gold: str, answers: list[Answer]) -> list[Row]:
    trials = [{"text": answer.conclusion, "cot": answer.thinking} for answer in answers]
    return [{"task": {"q": question}, "trials": trials, "meta": {"gold": gold}, "ok": [1, 0]}]


MAP = {"question": "task.q", "response": "trials[].text", "thinking": "trials[].cot",
       "answer": "meta.gold", "correct": "ok"}  # fmt: skip


def test_any_other_shape_is_mapped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dto")
    source = write(tmp_path / "rows.jsonl", [row for each in PROBLEMS for row in mapped(*each)])
    assert [row.correct for row in responses(source, columns=MAP)] == [True, False] * 2
    assert pairs_of(source, changes={"sample.map": MAP}) == EXPECTED
    assert "  response: trials[].text (2 each)" in caplog.messages


def test_map_on_the_command_line_is_part_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    question, gold, (answer, _) = PROBLEMS[0]
    row = {"q": question, "attempt": answer.conclusion, "cot": answer.thinking, "gold": gold}
    write(Path("rows.jsonl"), [row])
    options = [f"--map={each}" for each in ("question=q", "response=attempt", "thinking=cot")]
    code, said = told("import", "rows.jsonl", "--model", "nano", *options, capsys=capsys)
    assert code == 0, said
    (read,) = tables.read(Path("runs/rows/sample/rows.parquet"), Trajectory)
    assert (read.grade, read.text) == ("correct", answer.text.removeprefix("<think>\n"))
    recipe = yaml.safe_load(Path("runs/rows/recipe.yaml").read_text("utf-8"))
    columns = {"question": "q", "response": "attempt", "thinking": "cot"}
    assert recipe["sample"]["map"] == columns == RunReader(Path("runs/rows")).recipe.sample.map
    code, said = told("import", "rows.jsonl", "--model", "nano", *options[:2], capsys=capsys)
    assert code == 1 and "sample.map.thinking" in said  # another map, other rows


WRONG_MAPS = [
    (["answre=x"], r"there is no field 'answre' \(did you mean 'answer'\?\): use question, respon"),
    (["response"], "write it as field=column"),
    (["response="], "write it as field=column"),
    (["response=atempt"], r"no row has a value there \(did you mean 'attempt'\?\); the columns are "
                          "q, attempt"),
    (["response=attempt..x"], "which is no path such as"),
    (["response=attempt"], "no question"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), WRONG_MAPS)
def test_wrong_maps_are_refused(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("rows.jsonl"), [{"q": "1?", "attempt": "1"}])
    arguments = [f"--map={option}" for option in options]
    code, said = told("import", "rows.jsonl", "--model", "nano", *arguments, capsys=capsys)
    assert code == 1 and re.search(message, said) and "Traceback" not in said, said


def test_a_map_without_a_column_in_a_recipe_is_as_before() -> None:
    settings = dto.load_recipe("quickstart").sample
    assert settings.map == {} and "map" not in settings.model_dump()
    with pytest.raises(DtoError, match=r"sample\.map"):
        dto.load_recipe("quickstart", {"sample.map": {"respons": "x"}})


GOOD = {"question": "2 + 3?", "response": WHOLE, "answer": "5"}
UNDECIDED: list[tuple[Row, str]] = [
    (GOOD | {"completion": "<think>\n6</think>6"}, "response and completion can be the response, "
     "and they differ: choose with --map response=response or --map response=completion"),
    (GOOD | {"gold": "6"}, "answer and gold can be the answer, and they differ: choose with --map "
     "answer=answer or --map answer=gold"),
    (GOOD | {"problem": "2 + 4?"}, "question and problem can be the question"),
    ({"prompt": "Solve 2 + 3.", "question": "2 + 3?", "generations": [WHOLE]},
     "prompt and question can be the question"),
    (GOOD | {"thinking": "a", "reasoning": "b"}, "thinking and reasoning can be the thinking"),
    ({"messages": [user("1?"), says(WHOLE)], "response": "other"}, "messages and response can be"),
    ({"instruction": "2 +", "input": "3?", "output": "5", "response": WHOLE},
     "output and response can be the response, and they differ: choose with --map response=output"),
    ({"input": "2 + 3?", "output": "5", "response": WHOLE}, "output and response can be the resp"),
    ({**next(openr1(*PROBLEMS[0])), "ground_truth": "17"}, "answer and ground_truth can be the"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), UNDECIDED)
def test_what_is_not_clear_is_asked(row: Row, message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [GOOD, row])
    with pytest.raises(DtoError, match=re.escape(f"rows.jsonl, row 2: {message}")):
        holds_pairs(source)
    with pytest.raises(DtoError, match=re.escape(message)):
        dto.pairs_from([GOOD, row], "nano", data="shortest")


CLEAR: list[tuple[Row, str]] = [
    (GOOD | {"completion": WHOLE, "gold": " 5 ", "prompt": "2 + 3? "}, "5"),
    (GOOD | {"completion": None, "gold": "", "output": " "}, "5"),
    ({**GOOD, "answer": None, "solution": "6"}, "6"),
    ({**GOOD, "answer": None, "solution": "So \\boxed{7}"}, "7"),
    ({**GOOD, "answer": None, "solution": "So it is 7, as 3 + 4 is."}, ""),
    (GOOD | {"solution": "So \\boxed{7}"}, "5"),
    ({**GOOD, "answer": "3 + 2 = 5\n#### 1,005"}, "1005"),
    ({"prompt": [user("2 + 3?")], "question": "2 + 3?", "response": WHOLE}, ""),
    ({"messages": [user("2 + 3?")], "response": WHOLE, "target": 5.0}, "5"),
    (GOOD | {"choices": [{"label": "A", "text": "4"}, {"label": "B", "text": "5"}]}, "5"),
    (GOOD | {"choices": {"label": ["A", "B"], "text": ["4", "5"]}}, "5"),
    (GOOD | {"choices": ["4", "5"]}, "5"),
    (GOOD | {"choices": []}, "5"),
    ({"question": "2 + 3?", "choices": [{"text": WHOLE, "finish_reason": "stop"}]}, ""),
    (GOOD | {"generations": []}, "5"),
    (GOOD | {"generations": [None]}, "5"),
    (GOOD | {"deepseek_thinking_trajectory": "", "deepseek_attempt": ""}, "5"),
    ({"instruction": "2 +", "input": "3?", "output": "", "response": WHOLE}, ""),
    ({"input": "2 + 3?", "output": WHOLE, "response": WHOLE}, ""),
]


@pytest.mark.parametrize(("row", "gold"), CLEAR)
def test_what_is_clear_is_read(row: Row, gold: str, tmp_path: Path) -> None:
    (read,) = responses(write(tmp_path / "rows.jsonl", [row]))
    assert " ".join(read.problem.question.split()) == "2 + 3?"
    assert (read.problem.answer, read.text) == (gold, WHOLE)


@pytest.mark.parametrize("field", ["response=completion", "response=response"])
def test_a_map_decides(field: str, tmp_path: Path) -> None:
    row = GOOD | {"completion": "<think>\n6</think>6"}
    column = field.partition("=")[2]
    (read,) = responses(write(tmp_path / "rows.jsonl", [row]), columns={"response": column})
    assert read.text == row[column]


def test_a_mapped_column_has_one_use(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [{"question": "1?", "answer": WHOLE, "solution": "5"}])
    (read,) = responses(source, columns={"response": "answer"})
    assert (read.text, read.problem.answer) == (WHOLE, "5")
    (read,) = responses(source, columns={"response": "answer", "answer": "answer"})
    assert (read.text, read.problem.answer) == (WHOLE, "5")


BESIDE = {"question": "2 + 3?", "reasoning_content": "It is 5.", "final": "\\boxed{5}"}
BOTH = "<think>\nIt is 5.\n</think>\n\n\\boxed{5}"
MAPPED: list[tuple[Row, dict[str, str], str, bool | None]] = [
    (BESIDE, {"response": "final"}, BOTH, None),
    (BESIDE | {"correct": True}, {"response": "final"}, BOTH, True),
    (BESIDE, {"thinking": "reasoning_content"}, "<think>\nIt is 5.", None),
    (BESIDE | {"content": "6", "correct": True}, {"response": "final"}, "\\boxed{5}", None),
    (BESIDE | {"content": None}, {}, "<think>\nIt is 5.", None),
    ({"question": "2 + 3?", "thinking": "It is 5.", "level": 3}, {}, "<think>\nIt is 5.", None),
    ({"question": "2 + 3?", "thinking": "It is 5.", "answer": "5"}, {}, "<think>\nIt is 5.", None),
    ({"question": "2 + 3?", "reasoning": "It is 5.", "answer": "\\boxed{5}"},
     {"response": "answer"}, BOTH, None),
    ({"question": "2 + 3?", "thinking_trajectories": ["a"], "attempt": "b", "final": "6"},
     {"response": "final"}, "6", None),
]  # fmt: skip


@pytest.mark.parametrize(("row", "columns", "text", "correct"), MAPPED)
def test_thinking_and_verdicts_belong_to_one_response(
    row: Row, columns: dict[str, str], text: str, correct: bool | None, tmp_path: Path
) -> None:
    (read,) = responses(write(tmp_path / "rows.jsonl", [row]), columns=columns)
    assert (read.text, read.correct) == (text, correct)


HALF: list[tuple[Row, str]] = [
    ({"generations": [WHOLE], "answer": "5"}, r"no question of the shape OpenR1-Math .*--map"),
    ({"question": "1?", "deepseek_thinking_trajectory": "x", "solution": "1"}, "no respons.*--map"),
    ({"problem": "1?", "solution": "So \\boxed{1}", "answer": "1"}, "no response .*fields are "
     "problem, solution, answer: name its column, such as --map response=solution"),
    ({"custom_id": "1", "response": {"status_code": 200, "body": choices(says("1"))}},
     "no question .*--input FILE"),
    ({"custom_id": "1", "body": {"messages": [user("1?")]}, "response": {"body": {"choices": []}}},
     "no response of the shape OpenAI batch"),
    (BESIDE | {"reference_answer": "5"}, "reasoning_content is thinking, but no known column has a "
     "response; .* --map response=final; where the thinking never closed, --map thinking=reason"),
    ({"question": "1?", "reasoning": "x", "answer": "So it is \\boxed{1}."},
     "reasoning is thinking, .* --map response=answer; "),
    ({"problem": "1?", "generations": []}, "no response of the shape OpenR1-Math"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), HALF)
def test_half_a_shape_is_not_guessed(row: Row, message: str, tmp_path: Path) -> None:
    (dropped,) = read_responses(write(tmp_path / "rows.jsonl", [row]))
    assert isinstance(dropped, Dropped) and dropped.reason == "missing_field"
    assert re.search(message, dropped.detail), dropped.detail
    with pytest.raises(DtoError, match=message):
        dto.pairs_from([row], "nano", data="shortest")


SOLVED = GOOD | {"answer": None}
GOLDS: list[tuple[str, str]] = [
    ("We add. So $\\boxed{5}$", "5"),
    ("We add.\n\nSo it is \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
    ("We add. #### 1,005", "1005"),
    ("$\\boxed{5}$", "$\\boxed{5}$"),
    ("\\boxed{3} and \\boxed{5}", "\\boxed{3} and \\boxed{5}"),
    ("So \\boxed{5", "So \\boxed{5"),
    ("x + 5", "x + 5"),
]


@pytest.mark.parametrize(("text", "gold"), GOLDS)
def test_a_solution_as_the_gold_answer(text: str, gold: str, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [SOLVED | {"ref": text}, GOOD | {"answer": text}])
    first, _ = responses(source, columns={"answer": "ref"})
    _, second = responses(source)
    assert first.problem.answer == second.problem.answer == gold


@pytest.mark.parametrize("field", ["thinking", "correct"])
def test_a_map_that_preferences_do_not_use_is_refused(field: str, tmp_path: Path) -> None:
    row = {"prompt": "1?", "chosen": "1", "rejected": "2", "x": "y"}
    source = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DtoError, match=f"--map {field}=x: .* no column of {field}"):
        list(read_responses(source, columns={field: "x"}))
    assert len(responses(source, columns={"answer": "x"})) == 2
    (read,) = responses(source, columns={field: "x", "response": "chosen"})
    assert not read.whole


@pytest.mark.parametrize("last", [{"gold2": "5"}, {"gold2": None}])
def test_a_named_column_that_is_null_in_the_first_rows(
    last: Row, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dto")
    rows = [SOLVED | {"gold2": None}] * WINDOW
    source = write(tmp_path / "rows.jsonl", [*rows, SOLVED | last])
    if last["gold2"]:
        *_, read = responses(source, columns={"answer": "gold2"})
        assert read.problem.answer == "5"
    else:
        with pytest.raises(DtoError, match="--map answer=gold2: no row has a value there"):
            responses(source, columns={"answer": "gold2"})
    assert "--map answer=gold2: no value in the first 2,000 rows" in caplog.messages
    with pytest.raises(DtoError, match=r"--map answer=gold3: .* \(did you mean 'gold2'\?\)"):
        holds_pairs(source, {"answer": "gold3"})
    with pytest.raises(DtoError, match="--map answer=gold2: no row has a value there"):
        holds_pairs(write(tmp_path / "short.jsonl", rows[:9]), {"answer": "gold2"})


UNREAD: list[tuple[Row, Mapping[str, str], str]] = [
    (GOOD | {"response_id": "x", "tags": ["a"], "in": "b"}, {}, "response_id, tags, in"),
    (GOOD | {"quest": "x", "answers": "y"}, {}, "quest, answers"),
    (GOOD | {"meta": {"gold": "5"}, "gold_x": "y"}, {"answer": "meta.gold"}, "answer, gold_x"),
    (SOLVED | {"solution": "5", "box": "y"}, {}, "box"),
    ({"instruction": "1", "input": "2", "output": "3", "put": "4"}, {}, "put"),
    (GOOD | {"a.b": "5", "a": "c"}, {"answer": "a.b"}, "answer, a"),
    ({"prompt": "1?", "chosen": "1", "rejected": "2", "side": "x"}, {}, "side"),
]


@pytest.mark.parametrize(("row", "columns", "unread"), UNREAD)
def test_columns_that_are_not_read(
    row: Row,
    columns: Mapping[Any, str],
    unread: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "dto")
    source = write(tmp_path / "rows.jsonl", [row])
    list(read_responses(source, columns=columns, verbose=True))
    assert caplog.messages[-1] == f"  not read: {unread}"


def test_the_log_has_a_line_for_each_field(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dto")
    question, gold, (answer, _) = PROBLEMS[0]
    rows = [*rows_of(openr1), limo(question, gold, answer), open_thoughts(question, gold, answer),
            anthropic(question, gold, answer), {**GOOD, "answer": None}, GOOD]  # fmt: skip
    list(read_responses(write(tmp_path / "rows.jsonl", rows), verbose=True))
    assert caplog.messages == [
        "shape: OpenR1-Math (2 rows)",
        "  question: problem",
        "  response: generations[] (2 each)",
        "  thinking: tags in the response",
        "  answer: answer",
        "  correct: correctness_math_verify[]",
        "  finish: is_reasoning_complete[]",
        "  not read: solution, problem_type, question_type, source, uuid, correctness_count, "
        "messages",
        "shape: columns (2 rows)",
        "  question: question",
        "  response: response",
        "  thinking: tags in the response",
        "  answer: answer (1 row), none (1 row)",
        "shape: LIMO (1 row)",
        "  question: question",
        "  response: solution",
        "  thinking: the response before its final answer",
        "  answer: answer",
        "shape: OpenThoughts (1 row)",
        "  question: conversations",
        "  response: conversations",
        "  thinking: <|begin_of_thought|> … rewritten to <think>",
        "  answer: answer",
        "  not read: system",
        "shape: chat (1 row)",
        "  question: messages",
        "  response: messages",
        "  thinking: parts of the message",
        "  answer: answer",
    ]


ODD_TAGS = [
    ("<|begin_of_thought|>a", "<think>\na"),
    ("<|begin_of_thought|>a<|end_of_thought|>b", "<think>\na\n</think>b"),
    ("<|begin_of_thought|> a <|begin_of_thought|> b <|end_of_thought|> c <|end_of_thought|> d",
     "<think>\na <think>\nb\n</think> c\n</think> d"),
    ("<|begin_of_thought|>\na\n<|end_of_thought|>\n<|begin_of_solution|>b<|end_of_solution|>\n"
     "<|end_of_solution|>", "<think>\na\n</think>\n\nb"),
    ("The tag <|begin_of_thought|> begins it.", "The tag <|begin_of_thought|> begins it."),
    ("<|begin_of_thought|>" + " " * 2_000_000 + "a<|end_of_thought|>b", "<think>\na\n</think>b"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "read_as"), ODD_TAGS, ids=range(len(ODD_TAGS)))
def test_odd_tags_of_open_thoughts(text: str, read_as: str, tmp_path: Path) -> None:
    row = {"prompt": "1?", "response": text}
    (read,) = responses(write(tmp_path / "rows.jsonl", [row]))
    assert read.text == read_as


def test_tags_of_the_model_are_not_rewritten(tmp_path: Path) -> None:
    question, gold, (answer, _) = PROBLEMS[0]
    row = open_thoughts(question, gold, answer)
    source = write(tmp_path / "rows.jsonl", [row])
    own = ThinkTags("<|begin_of_thought|>", "<|end_of_thought|>")
    (read,) = responses(source, tags=own)
    assert read.text == row["conversations"][1]["value"] and "tags" not in read.left_out
    (read,) = responses(source, tags=ThinkTags("[THINK]", "[/THINK]"))
    assert read.text.startswith("[THINK]\n") and read.text.count("[/THINK]") == 1
    assert "<|" not in read.text and "tags" in read.left_out


def batch(tmp_path: Path, **last: Any) -> tuple[Path, Path]:
    asked, answered = [], []
    for place, (question, gold, answers) in enumerate(PROBLEMS):
        for answer in answers:
            custom_id = f"{place}-{len(asked)}"
            body = {"model": "m", "messages": [user(question)], "metadata": {"answer": gold}}
            asked.append({"custom_id": custom_id, "method": "POST",
                          "url": "/v1/chat/completions", "body": body})  # fmt: skip
            message = says(answer.conclusion, reasoning_content=answer.thinking)
            answered.append({"id": "r", "custom_id": custom_id, "error": None,
                             "response": {"status_code": 200, "request_id": "q",
                                          "body": choices(message)}})  # fmt: skip
    answered.reverse()  # an output is in no order
    (tmp_path / "batch").mkdir()
    inputs, outputs = tmp_path / "batch/input.jsonl", tmp_path / "batch/output.jsonl"
    write(inputs, asked)
    write(outputs, [*answered, *([{**answered[0], **last}] if last else [])])
    return inputs, outputs


def test_a_batch_is_joined_from_file_to_pairs(tmp_path: Path) -> None:
    inputs, outputs = batch(tmp_path)
    assert pairs_of(str(outputs), changes={"sample.batch_input": str(inputs)}) == EXPECTED
    assert pairs_of(str(tmp_path / "batch")) == EXPECTED


FAULTS: list[tuple[Row, str, str]] = [
    ({"response": None, "error": {"code": "batch_expired"}}, "failed_request", "batch_expired"),
    ({"response": {"status_code": 400, "body": {}}}, "failed_request", "status 400"),
    ({"custom_id": "other"}, "missing_field", "custom_id other: no such request"),
]


@pytest.mark.parametrize(("last", "reason", "detail"), FAULTS)
def test_failed_requests_of_a_batch_are_dropped(
    last: Row, reason: str, detail: str, tmp_path: Path
) -> None:
    inputs, outputs = batch(tmp_path, **last)
    *read, dropped = read_responses(str(outputs), batch_input=str(inputs))
    assert [isinstance(row, Response) for row in read] == [True] * 4
    assert isinstance(dropped, Dropped)
    assert dropped.reason == reason and detail in dropped.detail


def test_batches_that_cannot_be_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, outputs = batch(tmp_path)
    code, said = told("import", str(outputs), "--model", "nano", "--out", str(tmp_path / "run"),
                      capsys=capsys)  # fmt: skip
    assert code == 1 and "--input FILE" in said
    inputs.write_text(inputs.read_text("utf-8") * 2, encoding="utf-8")
    with pytest.raises(DtoError, match="custom_id 0-0 occurs twice"):
        list(read_responses(str(outputs), batch_input=str(inputs)))
    with pytest.raises(DtoError, match="has no custom_id"):
        list(read_responses(str(outputs), batch_input=write(tmp_path / "x.jsonl", [{"a": 1}])))
    assert json.loads(outputs.read_text("utf-8").splitlines()[0])["custom_id"] == "1-3"


@pytest.mark.parametrize("source", ["batch", "user/responses"])
def test_the_input_of_a_batch_goes_with_a_file(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, _ = batch(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DtoError, match="goes with one output file"):
        list(read_responses(source, batch_input=str(inputs)))


def test_a_folder_with_the_name_of_a_file_is_no_batch(tmp_path: Path) -> None:
    batch(tmp_path)
    (tmp_path / "batch/x.jsonl").mkdir()
    assert pairs_of(str(tmp_path / "batch")) == EXPECTED
    other = tmp_path / "other"
    (other / "x.jsonl").mkdir(parents=True)
    write(other / "a.jsonl", [{"question": "a?", "response": "<think>1</think>1", "answer": "1"}])
    assert len(list(read_responses(str(other)))) == 1


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"question": "a?", "my text": "<think>1</think>1"}, "--map 'response=my text'"),
        ({"question": "a?", "text": "<think>1</think>1"}, "--map response=text"),
    ],
)
def test_a_hint_can_be_pasted(row: Row, hint: str) -> None:
    with pytest.raises(FieldError) as error:
        read_row(row, DEFAULT_TAGS, {})
    assert hint in str(error.value)


def test_a_path_into_a_list_is_quoted() -> None:
    assert "--map 'answer=a[].b' or --map answer=c" in str(Undecided("answer", ["a[].b", "c"], "x"))
