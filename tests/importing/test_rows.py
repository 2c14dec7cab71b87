"""Rows of prompt and response become trajectories, or are dropped with their reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import polars
import pytest

from dto.context import Context, without_engine
from dto.errors import DtoError
from dto.grading import Grader
from dto.recipe import ModelSettings, Recipe, SegmentSettings
from dto.records import Dropped, Trajectory
from dto.stages.segment import segment
from dto.tasks.imported import to_trajectory
from dto.tasks.importing import Response, read_responses
from tests.byte_level import byte_level

SETTINGS = ModelSettings(name="m")
WHOLE = "<think>\nIt is 5.\n\nWait, no.\n</think>\n\nIt is \\boxed{5}."
BARE = WHOLE.removeprefix("<think>\n")
ASKED = {"role": "user", "content": "2 + 3?"}


def context(tokenizer: Any, **settings: Any) -> Context:
    recipe = Recipe(name="r", model=SETTINGS, segment=SegmentSettings(**settings))
    return without_engine(recipe, cast(Any, None), tokenizer)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


READABLE: list[tuple[str, Mapping[str, Any]]] = [
    ("prompt and response", {"prompt": "2 + 3?", "response": WHOLE}),
    ("without the opening tag", {"question": "2 + 3?", "completion": BARE}),
    ("thinking beside", {"problem": "2 + 3?", "thinking": "It is 5.\n\nWait, no.",
                         "conclusion": "It is \\boxed{5}."}),
    ("reasoning_content", {"prompt": "2 + 3?", "reasoning_content": "It is 5.\n\nWait, no.",
                           "content": "It is \\boxed{5}."}),
    ("thinking beside a response", {"prompt": "2 + 3?", "thinking": "<think>It is 5.\n\nWait, no.",
                                    "response": "It is \\boxed{5}."}),
    ("messages", {"messages": [{"role": "system", "content": "x"}, ASKED,
                               {"role": "assistant", "content": WHOLE}]}),
    ("messages with reasoning", {"messages": [ASKED, {
        "role": "assistant", "reasoning_content": "It is 5.\n\nWait, no.",
        "content": "It is \\boxed{5}."}]}),
    ("from and value", {"conversations": [{"from": "human", "value": "2 + 3?"},
                                          {"from": "gpt", "value": WHOLE}]}),
    ("lists of from and value", {"conversations": {"from": ["human", "gpt"],
                                                   "value": ["2 + 3?", WHOLE]}}),
    ("messages as JSON", {"messages": json.dumps([ASKED, {"role": "assistant",
                                                          "content": WHOLE}])}),
    ("messages in the columns", {"prompt": [ASKED],
                                 "completion": [{"role": "assistant", "content": WHOLE}]}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("row",), [(row,) for _, row in READABLE], ids=[row[0] for row in READABLE]
)
@pytest.mark.parametrize("opens", [True, False])
async def test_forms_of_a_row(row: Mapping[str, Any], opens: bool, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [{**row, "answer": 5}])
    (response,) = read_responses(source)
    assert isinstance(response, Response)
    assert (response.problem.question, response.problem.answer) == ("2 + 3?", "5")
    tokenizer = byte_level(opens)
    async with Grader() as grader:
        trajectory = await to_trajectory(response, tokenizer, SETTINGS, grader)
    assert trajectory.ids_from == "encoded"
    assert (trajectory.grade, trajectory.answer, trajectory.finish_reason) == (
        "correct",
        "5",
        "stop",
    )
    assert trajectory.text[slice(*trajectory.thinking)].strip() == "It is 5.\n\nWait, no."
    assert trajectory.text[slice(*trajectory.conclusion)].strip() == "It is \\boxed{5}."
    whole = tokenizer.decode((*trajectory.prompt_ids, *trajectory.token_ids))
    assert whole.count("<think>") == whole.count("</think>") == whole.count("<eos>") == 1
    segments = await segment(trajectory, context(tokenizer, granularity="cue"))
    assert isinstance(segments, list)
    assert [each.cue for each in segments] == ["", "Wait"]


BAD: list[tuple[Any, str]] = [
    ({"response": WHOLE}, "missing_field"),
    ({"prompt": "2 + 3?"}, "missing_field"),
    ({"prompt": "2 + 3?", "response": None}, "missing_field"),
    ({"prompt": None, "response": WHOLE}, "missing_field"),
    ({"prompt": 5.5, "response": [["x"]]}, "wrong_type"),
    ({"prompt": "2 + 3?", "response": {"text": WHOLE}}, "wrong_type"),
    ({"prompt": "2 + 3?", "response": True}, "wrong_type"),
    ({"prompt": "2 + 3?", "response": WHOLE, "answer": [5]}, "wrong_type"),
    ({"messages": "hello"}, "wrong_type"),
    ({"messages": []}, "missing_field"),
    ({"messages": [ASKED]}, "missing_field"),
    ({"messages": [{"role": "assistant", "content": WHOLE}]}, "several_turns"),
    ({"messages": [ASKED, {"role": "assistant", "content": "5"}] * 2}, "several_turns"),
    ({"prompt": "2 + 3?", "completion": [ASKED, ASKED]}, "several_turns"),
    ({"prompt": "2 + 3?", "completion": []}, "missing_field"),
    (["2 + 3?", WHOLE], "unreadable_row"),
    ({"prompt": " ", "response": WHOLE}, "empty_question"),
    ({"prompt": "2 + 3?", "response": " \n"}, "empty_response"),
    ({"prompt": "2 + 3?", "response": "<think>\n\n</think>"}, "empty_response"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_row_is_dropped_and_the_next_is_read(row: Any, reason: str, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [row, {"prompt": "2 + 3?", "response": WHOLE}])
    dropped, response = read_responses(source)
    assert isinstance(dropped, Dropped) and isinstance(response, Response)
    assert dropped.reason == reason
    assert "row 1: " in dropped.detail or "line 1 holds list" in dropped.detail


async def grade_of(row: Mapping[str, Any], tmp_path: Path, opens: bool = True) -> tuple[str, ...]:
    (response,) = read_responses(write(tmp_path / "rows.jsonl", [row]))
    assert isinstance(response, Response)
    async with Grader() as grader:
        trajectory = await to_trajectory(response, byte_level(opens), SETTINGS, grader)
    return trajectory.grade, trajectory.reason, trajectory.finish_reason


async def test_without_a_gold_answer_the_grade_is_failed(tmp_path: Path) -> None:
    row = {"prompt": "2 + 3?", "response": WHOLE, "gold": None}
    assert await grade_of(row, tmp_path) == ("failed", "no_gold_answer", "stop")


async def test_a_wrong_answer(tmp_path: Path) -> None:
    row = {"prompt": "2 + 3?", "response": WHOLE, "gold": "6"}
    assert await grade_of(row, tmp_path) == ("wrong", "", "stop")


@pytest.mark.parametrize(
    "row", [{"response": "<think>\nIt is 5."}, {"thinking": "It is 5."}, {"response": "It is 5."}]
)
async def test_thinking_that_never_closed_is_truncated(row: dict[str, str], tmp_path: Path) -> None:
    whole = {"prompt": "2 + 3?", "answer": "5", **row}
    assert await grade_of(whole, tmp_path) == ("truncated", "", "length")


async def test_a_response_without_thinking_is_all_conclusion(tmp_path: Path) -> None:
    row = {"prompt": "2 + 3?", "answer": "5", "response": "It is \\boxed{5}."}
    assert await grade_of(row, tmp_path, opens=False) == ("correct", "", "stop")


CHOICE = {"message": {"role": "assistant", "content": WHOLE}}
CLOSED = {"question": "2 + 3?", "answer": "5"}
ENDS: list[tuple[str, Mapping[str, Any], bool]] = [
    ("a choice", {"choices": [CHOICE | {"finish_reason": "length"}]}, True),
    ("a choice that stops", {"choices": [CHOICE | {"finish_reason": "stop"}]}, False),
    ("a batch", {"custom_id": "1", "body": {"messages": [ASKED]}, "response": {"body": {
        "choices": [CHOICE | {"finish_reason": "length"}]}}}, True),
    ("a log", {"request": {"messages": [ASKED]}, "response": {
        "choices": [CHOICE | {"finish_reason": "length"}]}}, True),
    ("Responses API", {"input": "2 + 3?", "output": [{"type": "message", "role": "assistant",
        "content": [{"type": "output_text", "text": WHOLE}]}],
        "incomplete_details": {"reason": "max_output_tokens"}}, True),
    ("an Anthropic log", {"request": {"messages": [ASKED]}, "response": {
        "role": "assistant", "content": [{"type": "text", "text": WHOLE}],
        "stop_reason": "max_tokens"}}, True),
    ("an Anthropic batch", {"custom_id": "1", "result": {"message": {
        "role": "assistant", "content": [{"type": "text", "text": WHOLE}],
        "stop_reason": "max_tokens"}}}, True),
    ("inspect", {"input": "2 + 3?", "messages": [ASKED, CHOICE["message"]], "output": {
        "choices": [CHOICE | {"stop_reason": "max_tokens"}]}}, True),
    ("a message", {"messages": [ASKED, CHOICE["message"] | {"stop_reason": "max_tokens"}]}, True),
    ("a message that ends", {"messages": [ASKED, CHOICE["message"] | {"stop_reason": "end_turn"}]},
     False),
    ("a column", {"response": WHOLE, "finish_reason": "MAX_TOKENS"}, True),
    ("an empty column", {"response": WHOLE, "finish_reason": None, "stop_reason": 151645}, False),
    ("a list", {"generations": [WHOLE], "finish_reasons": ["length"]}, True),
    ("a flag", {"response": WHOLE, "is_truncated": True}, True),
    ("a flag as text", {"response": WHOLE, "is_truncated": "false"}, False),
    ("incomplete thinking", {"generations": [WHOLE], "is_reasoning_complete": [False]}, True),
    ("complete thinking", {"generations": [WHOLE], "is_reasoning_complete": [True]}, False),
]  # fmt: skip


@pytest.mark.parametrize(("_", "row", "cut"), ENDS, ids=[row[0] for row in ENDS])
async def test_a_response_that_the_token_limit_cut_off_has_no_eos(
    _: str, row: Mapping[str, Any], cut: bool, tmp_path: Path
) -> None:
    (response,) = read_responses(write(tmp_path / "rows.jsonl", [CLOSED | row]))
    assert isinstance(response, Response) and response.cut == cut
    tokenizer = byte_level(True)
    async with Grader() as grader:
        trajectory = await to_trajectory(response, tokenizer, SETTINGS, grader)
    assert isinstance(trajectory, Trajectory)
    assert (trajectory.token_ids[-1] == tokenizer.eos_token_id) is not cut
    ends = ("truncated", "length") if cut else ("correct", "stop")
    assert (trajectory.grade, trajectory.finish_reason) == ends


SEVERAL: list[tuple[Mapping[str, Any], list[bool]]] = [
    ({"generations": [WHOLE, BARE], "finish_reasons": ["stop", "length"]}, [False, True]),
    ({"responses": [WHOLE, BARE], "finish_reason": "length"}, [True, True]),
    ({"responses": [WHOLE, BARE], "finish_reasons": ["stop"] * 3}, [False, False]),
    ({"choices": [CHOICE, CHOICE | {"finish_reason": "length"}]}, [False, True]),
]


@pytest.mark.parametrize(("row", "cut"), SEVERAL)
def test_the_end_of_each_response(row: Mapping[str, Any], cut: list[bool], tmp_path: Path) -> None:
    read = list(read_responses(write(tmp_path / "rows.jsonl", [CLOSED | row])))
    assert [isinstance(each, Response) and each.cut for each in read] == cut


def test_rows_of_one_question_are_its_samples(tmp_path: Path) -> None:
    row = {"prompt": "2 + 3?", "response": WHOLE}
    other = {"prompt": "2 + 4?", "response": WHOLE}
    rows = list(read_responses(write(tmp_path / "rows.jsonl", [row, other, row])))
    assert [each.sample for each in rows if isinstance(each, Response)] == [0, 0, 1]


def test_parquet_and_other_field_names(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    columns = {"instruction": ["2 + 3?"], "completion": [WHOLE], "source": ["x"]}
    polars.DataFrame(columns).write_parquet(path)
    (response,) = read_responses(str(path))
    assert isinstance(response, Response)
    assert (response.problem.question, response.text) == ("2 + 3?", WHOLE)


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DtoError, match=r"rows\.jsonl"):
        list(read_responses(str(tmp_path / "rows.jsonl")))


async def test_a_tokenizer_without_chat_template(tmp_path: Path) -> None:
    (response,) = read_responses(
        write(tmp_path / "rows.jsonl", [{"prompt": "2 + 3?", "response": WHOLE}])
    )
    assert isinstance(response, Response)
    tokenizer = byte_level.__wrapped__()
    tokenizer.chat_template = None
    async with Grader() as grader:
        with pytest.raises(DtoError, match="chat template"):
            await to_trajectory(response, tokenizer, SETTINGS, grader)


async def test_real_traces_import_and_segment() -> None:
    shared = Path(__file__).parents[2] / "../shared/data"
    if not shared.is_dir():
        pytest.skip("the shared traces are not there")
    tokenizer = byte_level()
    async with Grader() as grader:
        for name, most in (("traces-en.jsonl", 5), ("traces-zh.jsonl", 2)):
            responses = [
                row for _, row in zip(range(most), read_responses(str(shared / name)), strict=False)
            ]
            for response in responses:
                assert isinstance(response, Response)
                trajectory = await to_trajectory(response, tokenizer, SETTINGS, grader)
                segments = await segment(trajectory, context(tokenizer))
                assert isinstance(segments, list) and len(segments) > 2
                text = "".join(trajectory.text[slice(*each.chars)] for each in segments)
                assert text == trajectory.text[slice(*trajectory.thinking)]
