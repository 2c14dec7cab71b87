"""Bad and odd input: what is dropped says so, and what can be read is read whole."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dto
from dto.errors import DtoError
from dto.grading import Grader
from dto.recipe import ModelSettings, ProblemSettings
from dto.records import Dropped, Trajectory
from dto.tags import DEFAULT_TAGS
from dto.tasks.imported import to_trajectory
from dto.tasks.importing import (
    Response,
    holds_pairs,
    imported_problems,
    is_whole,
    read_responses,
)
from dto.tasks.messages import Content, read_content
from dto.tasks.rows import read_row, read_sides
from dto.tasks.survey import WINDOW, is_preference
from dto.tasks.task import FieldError
from tests.byte_level import byte_level
from tests.importing.shapes import KNOWN, PROBLEMS, Row, openr1, rows_of, s1k, says, trl, user
from tests.importing.test_shapes import EXPECTED, pairs_of, responses, write

WHOLE = "<think>\nIt is 5.\n</think>\n\n\\boxed{5}"
GOOD = {"question": "2 + 3?", "response": WHOLE, "answer": "5"}
NONE = ProblemSettings(train=0, dev=0, test=0)


@pytest.mark.parametrize("content", ["", "\n\n", " \n"])
def test_an_empty_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    assert not holds_pairs(str(path)) and list(read_responses(str(path))) == []
    with pytest.raises(DtoError, match="has no row that can be read: it is empty"):
        list(imported_problems(str(path), NONE, 0))


def test_one_row(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [next(openr1(*PROBLEMS[0]))])
    assert pairs_of(source) == EXPECTED[:1]


def test_all_shapes_in_one_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dto")
    forms = [known for known in KNOWN.values() if known.shape != "preferences"]
    rows = [row for known in forms for row in rows_of(known.form)]
    read = list(read_responses(write(tmp_path / "rows.jsonl", rows), verbose=True))
    assert Counter(row.reason for row in read if isinstance(row, Dropped)) == {"duplicate": 4}
    assert len(read) == 4 * len(forms) + 4
    shapes = [line for line in caplog.messages if line.startswith("shape: ")]
    assert len(shapes) == len({known.shape for known in forms})
    assert "shape: OpenR1-Math (4 rows)" in shapes and "shape: chat (16 rows)" in shapes


def test_preferences_among_responses_are_refused(tmp_path: Path) -> None:
    rows = [GOOD, *trl(*PROBLEMS[0])]
    source = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DtoError, match=r"1 are preferences \(chosen, rejected\) and 1 are resp"):
        list(read_responses(source))
    (read,) = responses(source, columns={"response": "chosen"})
    assert read.text == PROBLEMS[0][2][0].text and not read.whole


@pytest.mark.parametrize("bad", [{"text": "5"}, [5], [user("1?")], {"role": "x"}])
def test_preferences_that_cannot_be_read_are_no_responses(bad: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "1?", "chosen": bad, "rejected": bad}] * 2
    source = write(tmp_path / "rows.jsonl", rows)
    assert holds_pairs(source)
    lost = [row for row in read_responses(source) if isinstance(row, Dropped)]
    assert len(lost) == 2 and not any("--map response" in row.detail for row in lost)
    assert not holds_pairs(write(tmp_path / "more.jsonl", [*rows, GOOD]))


def test_columns_that_are_null_in_the_first_rows(tmp_path: Path) -> None:
    empty: Row = {"prompt": None, "chosen": None, "rejected": None, "generations": None}
    pairs = [row | {"generations": None} for row in rows_of(trl)]
    path = tmp_path / "rows.parquet"
    polars.DataFrame([empty] * 1000 + pairs, infer_schema_length=None).write_parquet(path)
    assert holds_pairs(str(path))
    read = list(read_responses(str(path)))
    assert [row.reason for row in read if isinstance(row, Dropped)] == ["missing_field"] * 1000
    assert len(read) == 1004
    rows = [GOOD | {"answer": None}] * 1000 + [GOOD]
    golds = [row.problem.answer for row in responses(write(tmp_path / "rows.jsonl", rows))]
    assert golds == [""] * 1000 + ["5"]


def test_beyond_the_first_rows_what_is_not_clear_is_dropped(tmp_path: Path) -> None:
    rows = [GOOD] * WINDOW + [GOOD | {"gold": "6"}, GOOD | {"gold": "5"}]
    *_, dropped, last = read_responses(write(tmp_path / "rows.jsonl", rows))
    assert isinstance(dropped, Dropped) and isinstance(last, Response)
    assert dropped.reason == "undecided" and "--map answer=gold" in dropped.detail


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x1c", "\ufeff"])
def test_line_separators_are_text(mark: str, tmp_path: Path) -> None:
    text = f"<think>\nIt{mark}is 5.\n</think>\n\n\\boxed{{5}}"
    path = tmp_path / "rows.jsonl"
    line = f'{{"question": "2{mark}+ 3?", "response": "{text}", "answer": "5"}}\n'
    line = line.replace("\n", "\\n").removesuffix("\\n") + "\n"
    line = (
        line.replace("\\boxed", "\\\\boxed").replace("\x0b", "\\u000b").replace("\x1c", "\\u001c")
    )
    path.write_text(line * 2, encoding="utf-8")
    read = responses(str(path))
    assert [(row.text, row.sample) for row in read] == [(text, 0), (text, 1)]
    assert {row.problem.question for row in read} == {f"2{mark}+ 3?"}


def test_half_a_surrogate_pair(tmp_path: Path) -> None:
    bad = GOOD | {"response": WHOLE.replace("It", "\ud83d")}
    dropped, read = read_responses(write(tmp_path / "rows.jsonl", [bad, GOOD]))
    assert isinstance(dropped, Dropped) and dropped.reason == "unreadable_row"
    assert isinstance(read, Response)
    rows = [bad, *rows_of(openr1)]
    pairs = dto.pairs_from(rows, "nano", data="shortest", out=tmp_path / "out")
    assert len(pairs) == 2
    assert [row.reason for row in dto.Run(tmp_path / "out").dropped("sample")] == ["unreadable_row"]


def test_rows_of_ten_megabytes(tmp_path: Path) -> None:
    thinking = "Wait, let me check that again.\n\n" * 350_000
    rows = [
        GOOD | {"response": f"<think>\n{thinking}</think>\n\n\\boxed{{5}}"},
        {"messages": [user("2 + 3?"), says("\\boxed{5}", reasoning_content=thinking)]},
        {"question": "1?", "solution": f"{thinking}\\boxed{{5}}", "answer": "5"},
    ]
    source = write(tmp_path / "rows.jsonl", rows)
    start = time.process_time()
    read = responses(source)
    assert time.process_time() - start < 10
    assert [len(row.text) > 10_000_000 for row in read] == [True] * 3


TAGGED = [
    ("nested", "a <think> b </think> c", "It is \\boxed{5}.", "a <think> b </think> c"),
    ("repeated", "<think>\n<think>\na", "It is \\boxed{5}.", "a"),
    ("closed", "a\n</think>", "It is \\boxed{5}.", "a"),
    ("closed twice", "a\n</think>\n</think>", "It is \\boxed{5}.", "a"),
    ("empty", "", "It is \\boxed{5}.", ""),
    ("both", "a", "<think>\nb\n</think>\n\nIt is \\boxed{5}.", "b"),
]


@pytest.mark.parametrize(
    ("thinking", "text", "thought"), [row[1:] for row in TAGGED], ids=[row[0] for row in TAGGED]
)
async def test_nested_and_repeated_tags(
    thinking: str, text: str, thought: str, tmp_path: Path
) -> None:
    row = {"prompt": "2 + 3?", "reasoning_content": thinking, "content": text, "answer": "5"}
    (response,) = responses(write(tmp_path / "rows.jsonl", [row]))
    async with Grader() as grader:
        read = await to_trajectory(response, byte_level(), ModelSettings(name="m"), grader)
    assert isinstance(read, Trajectory) and read.grade == "correct"
    assert read.text[slice(*read.thinking)].strip() == thought
    assert read.text[slice(*read.conclusion)].strip() == "It is \\boxed{5}."


PARTLY: list[tuple[Row, str]] = [
    ({"thinking": "It is 5."}, "<think>\nIt is 5."),
    ({"response": "", "thinking": "It is 5."}, "<think>\nIt is 5."),
    ({"messages": [user("2 + 3?"), says(None, reasoning="It is 5.")]}, "<think>\nIt is 5."),
    ({"response": "It is 5."}, "It is 5."),
    ({"response": "It is 5.", "thinking": None}, "It is 5."),
    ({"response": "It is 5.", "thinking": ""}, "<think>\n\n</think>\n\nIt is 5."),
]


@pytest.mark.parametrize(("row", "text"), PARTLY)
def test_thinking_alone_and_answer_alone(row: Row, text: str, tmp_path: Path) -> None:
    row = row if "messages" in row else {"prompt": "2 + 3?", **row}
    (read,) = responses(write(tmp_path / "rows.jsonl", [row]))
    assert read.text == text


QUOTES = "The tag `</think>` closes it. \\boxed{5}"
THOUGHT_AT: list[tuple[Row, str, str]] = [
    (says("5", reasoning_content="", reasoning="a"), "<think>\na\n</think>\n\n5",
     "reasoning of the message"),
    (says([{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "5"}],
          reasoning_content=" "), "<think>\na\n</think>\n\n5", "parts of the message"),
    (says([{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "5"}], reasoning="b"),
     "<think>\nb\n</think>\n\n5", "reasoning of the message"),
    (says("5", reasoning_content="", reasoning=None), "<think>\n\n</think>\n\n5",
     "reasoning_content of the message"),
    (says("5", reasoning_content="a", reasoning={"effort": "low"}),
     "<think>\na\n</think>\n\n5", "reasoning_content of the message"),
    (says(QUOTES, reasoning_content="a"), f"<think>\na\n</think>\n\n{QUOTES}",
     "reasoning_content of the message"),
    (says("<think>\nb\n</think>\n\n5", reasoning="a"), "<think>\nb\n</think>\n\n5",
     "tags in the response"),
    (says("b\n</think>\n\n5", reasoning="a"), "b\n</think>\n\n5", "tags in the response"),
    (says("<|begin_of_thought|>b<|end_of_thought|>5", reasoning="a"), "<think>\nb\n</think>5",
     "<|begin_of_thought|> … rewritten to <think>"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "text", "place"), THOUGHT_AT)
def test_where_the_thinking_of_a_message_is(message: Row, text: str, place: str) -> None:
    read = read_row({"messages": [user("1?"), message]}, DEFAULT_TAGS, {})
    assert (read.texts, read.fields["thinking"]) == ((text,), place)


@pytest.mark.parametrize(("response", "text", "place"), [
    ("5", "<think>\na\n</think>\n\n5", "thinking"),
    (QUOTES, f"<think>\na\n</think>\n\n{QUOTES}", "thinking"),
    (WHOLE, WHOLE, "tags in the response"),
])  # fmt: skip
def test_where_the_thinking_of_columns_is(response: str, text: str, place: str) -> None:
    row = {"question": "1?", "thinking": "a", "response": response}
    read = read_row(row, DEFAULT_TAGS, {})
    assert (read.texts, read.fields["thinking"]) == ((text,), place)


def samples(task: str, number: int, filters: list[str], text: str = "5") -> list[Row]:
    return [{"doc": {"question": f"{task} {number}?"}, "target": "5", "resps": [[text]],
             "filter": name} for name in filters]  # fmt: skip


@pytest.mark.parametrize(("rows", "duplicates"), [
    ([*samples("aime", 1, ["none"]), *samples("gsm8k", 1, ["strict", "flexible"])], 1),
    ([*samples("gsm8k", 1, ["strict"]), *samples("gsm8k", 1, ["strict"])], 0),
    ([*samples("gsm8k", 1, ["strict"]), *samples("gsm8k", 1, ["flexible"], "6")], 0),
    ([*samples("gsm8k", 1, ["strict", "flexible"]), *samples("gsm8k", 2, ["flexible"])], 1),
])  # fmt: skip
def test_only_what_repeats_a_response_under_another_filter_is_a_duplicate(
    rows: list[Row], duplicates: int, tmp_path: Path
) -> None:
    read = list(read_responses(write(tmp_path / "rows.jsonl", rows)))
    lost = [row.reason for row in read if isinstance(row, Dropped)]
    assert lost == ["duplicate"] * duplicates


async def test_a_verdict_that_we_do_not_share_is_kept(tmp_path: Path) -> None:
    rows = [GOOD | {"correct": False}, GOOD | {"correct": "yes"}, GOOD | {"is_correct": 1},
            GOOD | {"correct": "maybe"}, GOOD]  # fmt: skip
    read = responses(write(tmp_path / "rows.jsonl", rows))
    assert [row.correct for row in read] == [False, True, True, None, None]
    async with Grader() as grader:
        first = await to_trajectory(read[0], byte_level(), ModelSettings(name="m"), grader)
    assert isinstance(first, Trajectory) and first.grade == "correct"


VERDICTS: list[tuple[Row, list[bool | None]]] = [
    ({"prompt": "1?", "completion": "1", "reward": "1.0"}, [True]),
    ({"prompt": "1?", "completion": "1", "correct": "False"}, [False]),
    ({"prompt": "1?", "completion": "1", "correct": "0"}, [False]),
    ({"prompt": "1?", "completion": "1", "correct": {"by": "us"}}, [None]),
    ({"prompt": "1?", "completion": "1", "reward": 0.5}, [False]),
    ({"prompt": "1?", "completion": "1", "reward": 1.2}, [True]),
    ({"problem": "1?", "generations": ["1", "2"], "correctness_math_verify": [True, None]},
     [True, None]),
    ({"problem": "1?", "generations": ["1", "2"], "correct": True}, [None, None]),
    ({"doc": {"problem": "1?"}, "resps": [["1", "2"]], "exact_match": 0.5}, [None, None]),
    ({"input": "1?", "output": {"choices": [{"message": says("1")}]},
      "scores": {"a": {"value": "C"}, "b": {"value": "I"}}}, [None]),
    ({"input": "1?", "output": {"choices": [{"message": says("1")}]},
      "scores": {"a": {"value": "C"}, "b": {"value": "N"}}}, [True]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "correct"), VERDICTS)
def test_verdicts(row: Row, correct: list[bool | None], tmp_path: Path) -> None:
    assert [each.correct for each in responses(write(tmp_path / "rows.jsonl", [row]))] == correct


SOME: list[tuple[Row, list[tuple[str, bool | None, bool]]]] = [
    ({"generations": ["a", ""], "correctness_math_verify": [True, False]}, [("a", True, False)]),
    ({"generations": ["a", None], "correctness_math_verify": [True, False]}, [("a", True, False)]),
    ({"generations": [None, "b", "c"], "correctness_math_verify": [True, None, False],
      "finish_reasons": ["stop", "length", "stop"]}, [("b", None, True), ("c", False, False)]),
    ({"responses": [None, "b"], "correct": [True, False]}, [("b", False, False)]),
    ({"responses": [" ", "<think>\n</think>", "c"]}, [("c", None, False)]),
    ({"thinking_trajectories": ["x", "y"], "attempt": [None, "b"]},
     [("<think>\nx", None, False), ("<think>\ny\n</think>\n\nb", None, False)]),
    ({"choices": [{"message": says("a")}, {"message": says("")}]}, [("a", None, False)]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "kept"), SOME)
def test_an_empty_response_of_several_is_dropped_alone(
    row: Row, kept: list[tuple[str, bool | None, bool]], tmp_path: Path
) -> None:
    row = {"question": "1?", **row}
    read = list(read_responses(write(tmp_path / "rows.jsonl", [row, GOOD])))
    *first, last = (each for each in read if isinstance(each, Response))
    assert [(each.text, each.correct, each.cut) for each in first] == kept
    assert last.text == WHOLE and [each.sample for each in first] == [*range(len(kept))]
    lost = [each for each in read if isinstance(each, Dropped)]
    total = len(row.get("generations") or row.get("responses") or row.get("choices") or kept)
    assert [each.reason for each in lost] == ["empty_response"] * (total - len(kept))
    assert all("row 1: response " in each.detail and not is_whole(each) for each in lost)


UNEQUAL: list[tuple[Row, str]] = [
    ({"problem": "1?", "generations": ["1", "2"], "correctness_math_verify": [True]},
     "unequal_lists"),
    ({"problem": "1?", "generations": ["1", "2"], "finish_reasons": ["stop", "stop", "length"]},
     "unequal_lists"),
    (s1k(*PROBLEMS[0][:2], PROBLEMS[0][2][0]) | {"thinking_trajectories": ["a", "b"]},
     "unequal_lists"),
    ({"input": "1?", "target": ["1", "2"], "output": {"choices": [{"message": says("1")}]}},
     "several_golds"),
    ({"problem": "1?", "generations": []}, "missing_field"),
    ({"problem": "1?", "generations": ["", " "]}, "empty_response"),
    ({"problem": "1?", "generations": ["", None]}, "empty_response"),
    ({"problem": "1?", "generations": [None, None]}, "missing_field"),
    ({"problem": "1?", "generations": [{"a": 1}]}, "wrong_type"),
    ({"messages": [user("1?"), says([{"type": "hologram"}])]}, "wrong_type"),
    ({"messages": [user("1?"), says([5])]}, "wrong_type"),
    ({"messages": [user([{"type": "image_url", "image_url": {}}]), says("1")]}, "empty_question"),
    ({"messages": [user("1?"), says("", tool_calls=[{"id": 1}]), {"role": "tool", "content": "1"},
                   says("1")]}, "several_turns"),
    ({"conversations": "[not json"}, "wrong_type"),
    ({"input": [{"type": "message", "role": "user", "content": "1?"},
                {"type": "message", "role": "assistant", "content": "1"},
                {"type": "message", "role": "user", "content": "2?"}],
      "output": "2"}, "several_turns"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), UNEQUAL)
def test_rows_that_do_not_fit_together_are_dropped(row: Row, reason: str, tmp_path: Path) -> None:
    dropped, read = read_responses(write(tmp_path / "rows.jsonl", [row, GOOD]))
    assert isinstance(dropped, Dropped) and isinstance(read, Response)
    assert dropped.reason == reason, dropped.detail


def test_other_languages_from_file_to_pairs(tmp_path: Path) -> None:
    question = "四十二加一是多少？ Wie viel? كم؟"
    long = "<think>\n四十二加一。\n\n等等，让我再检查一下。 Ähm.\n</think>\n\n答案是 \\boxed{43}。"
    short = "<think>\n四十三。 ثلاثة\n</think>\n\n答案是 \\boxed{43}。"
    rows = [{"question": question, "response": text, "answer": "43"} for text in (long, short)]
    (pair,) = dto.pairs_from(write(tmp_path / "rows.jsonl", rows), "nano", data="shortest")
    assert question in pair["prompt"]
    assert (pair["chosen"], pair["rejected"]) == (short.removeprefix("<think>\n"),
                                                  long.removeprefix("<think>\n"))  # fmt: skip


ANSWERED = [{"type": "message", "role": "assistant",
             "content": [{"type": "output_text", "text": "1"}]}]  # fmt: skip
LEFT_OUT: list[tuple[Row, tuple[str, ...]]] = [
    ({"messages": [user([{"type": "input_image"}, {"type": "text", "text": "1?"}]), says("1")]},
     ("image",)),
    ({"messages": [user([{"type": "text", "text": "1?"}, {"type": "input_file"}]), says("1")]},
     ("file",)),
    ({"messages": [{"role": "developer", "content": "x"}, user("1?"), says("1")]},
     ("system_prompt",)),
    ({"system_prompt": "x", "prompt": "1?", "response": "1"}, ("system_prompt",)),
    ({"tools": [{"type": "function"}], "prompt": "1?", "response": "1"}, ("tools",)),
    ({"messages": [user("1?"), says("1", tool_calls=[{"id": "a"}])]}, ("tools",)),
    ({"input": "1?", "output": [{"type": "reasoning", "summary": [], "encrypted_content": "x"},
                                {"type": "message", "role": "assistant",
                                 "content": [{"type": "output_text", "text": "1"}]}]},
     ("redacted_thinking",)),
    ({"custom_id": "1", "body": {"input": [
        {"type": "message", "role": "system", "content": "Be brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "1?"}]}]},
      "response": {"body": {"output": ANSWERED}}}, ("system_prompt",)),
    ({"custom_id": "1", "body": {"input": "1?", "instructions": "Be brief"},
      "response": {"body": {"output": ANSWERED}}}, ("system_prompt",)),
    ({"request": {"messages": [user("1?")], "system": [{"type": "text", "text": "Be brief"}]},
      "response": says([{"type": "text", "text": "1"}])}, ("system_prompt",)),
    ({"request": {"messages": [user("1?")], "system": []}, "response": says("1")}, ()),
    ({"input": [{"type": "input_text", "text": "1?"}], "output": ANSWERED}, ()),
    ({"input": "1?", "output": ANSWERED, "instructions": None}, ()),
    ({"input": "1?", "messages": [user("1?"), says("1")], "output": {"choices": [1]}}, ()),
    ({"doc": {"question": "1?"}, "resps": [["1"]], "arguments": [["Q: 0?\nA: 0\nQ: 1?\nA:"]]},
     ("prompt",)),
    ({"doc": {"question": "1?"}, "resps": [["1"]],
      "arguments": [["<|im_start|>user\n1?<|im_end|>"]]}, ("prompt",)),
    ({"doc": {"question": "1?"}, "resps": [["1"]], "arguments": [["1? "]]}, ()),
    ({"doc": {"question": "1?"}, "resps": [["1"]]}, ()),
    ({"prompt": "<|im_start|>user\n1?<|im_end|>", "question": "1?", "response": "1"}, ()),
    ({"system": "", "tools": [], "prompt": "1?", "response": "1"}, ()),
]  # fmt: skip


@pytest.mark.parametrize(("row", "left_out"), LEFT_OUT)
def test_parts_that_are_not_imported_are_named(
    row: Row, left_out: tuple[str, ...], tmp_path: Path
) -> None:
    (read,) = responses(write(tmp_path / "rows.jsonl", [row]))
    assert read.left_out == left_out and read.problem.question == "1?" and read.text == "1"


TEMPLATED = [
    ("<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n<think>\n", True),
    ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n1?<|eot_id|>", True),
    ("<｜begin▁of▁sentence｜><｜User｜>1?<｜Assistant｜><think>\n", True),
    ("<start_of_turn>user\n1?<end_of_turn>", True),
    ("<s>[INST] 1? [/INST]", True),
    ("What does <|endoftext|> mean?", False),
    ("Is <x|y> = <|x|> for |x| < 1?", False),
    ("Which is larger: <user> or |user|?", False),
]


@pytest.mark.parametrize(("prompt", "templated"), TEMPLATED)
def test_a_prompt_with_a_chat_template_is_no_question(
    prompt: str, templated: bool, tmp_path: Path
) -> None:
    rows: list[Row] = [
        {"request": {"prompt": prompt}, "response": {"choices": [{"text": WHOLE}]}},
        {"prompt": prompt, "response": WHOLE},
        {"prompt": prompt, "generations": [WHOLE]},
    ]
    read = list(read_responses(write(tmp_path / "rows.jsonl", rows)))
    reasons = [row.reason for row in read if isinstance(row, Dropped)]
    assert reasons == ["templated_prompt"] * 3 * templated
    pairs = [{"prompt": prompt, "chosen": "1", "rejected": "2"}]
    read = list(read_responses(write(tmp_path / "pairs.jsonl", pairs)))
    assert isinstance(read[0], Dropped) == templated


def test_a_row_that_occurs_twice_is_two_samples(tmp_path: Path) -> None:
    read = responses(write(tmp_path / "rows.jsonl", [GOOD, GOOD]))
    assert [row.sample for row in read] == [0, 1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "thinking", "from", "value", "message"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
NAMES = ["messages", "conversations", "prompt", "question", "input", "response", "output",
         "generations", "thinking", "answer", "solution", "correct", "reward", "choices", "doc",
         "resps", "request", "custom_id", "body", "scores", "chosen", "rejected"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5))
def test_any_row_is_read_or_refused_with_a_reason(row: dict[str, Any]) -> None:
    try:
        paired = is_preference(row, {})
        read = (read_sides if paired else read_row)(row, DEFAULT_TAGS, {})
    except FieldError as error:
        assert error.reason and str(error)
    else:
        assert read.question and any(read.texts) and len(read.texts) == len(read.correct)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["text", "output_text"]), st.text()), min_size=1))
def test_text_parts_are_joined_whole(parts: list[tuple[str, str]]) -> None:
    content = read_content([{"type": kind, "text": text} for kind, text in parts], "response")
    assert content == Content(None, "".join(text for _, text in parts))


def test_generations_of_a_table(tmp_path: Path) -> None:
    """The cells of OpenR1 as CSV are JSON lists."""
    question, gold, answers = PROBLEMS[0]
    (row,) = openr1(question, gold, answers)
    cells = {
        name: json.dumps(value) if isinstance(value, list) else value
        for name, value in row.items()
        if name != "messages"
    }
    path = tmp_path / "rows.csv"
    polars.DataFrame([cells]).write_csv(path)
    assert [(each.text, each.correct) for each in responses(str(path))] == [
        (answers[0].text, True),
        (answers[1].text, False),
    ]
