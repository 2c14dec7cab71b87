"""Real vocabularies: what is published of them, and whatever the toolkit does to their ids."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GenerationConfig

from dto.grading import Grader
from dto.protocols import Completion
from dto.recipe import SegmentSettings
from dto.records import Dropped, FinishReason, Problem, Trajectory
from dto.tags import DEFAULT_TAGS
from dto.text import StopReader, TagReader, tag_token
from dto.trajectories import Reading, make_trajectory, opens_thinking, read_response
from tests.byte_level import byte_level
from tests.segmenting import segment
from tests.vocabularies import DEEPSEEK, NAMES, QWEN3, R1, model_folder, tokenizer, vocabulary

OPEN, CLOSE = DEFAULT_TAGS.open, DEFAULT_TAGS.close

PROBLEM = Problem("p" * 16, "toy", "test", "5 + 3?", "8")


def encode(name: str, text: str) -> list[int]:
    return list(tokenizer(name).encode(text, add_special_tokens=False))


def spelt(name: str, text: str) -> list[int]:
    """The ids of a text whose tags are spelt out, as where a model writes about them."""
    ids: list[int] = []
    for part in text.replace("think>", "think\0>").split("\0"):
        ids += encode(name, part)
    assert not set(ids) & set(vocabulary(name).think)
    return ids


def written(name: str, *parts: str) -> list[int]:
    """Ids of parts: a tag by itself is its token, and one inside a part is spelt."""
    ids: list[int] = []
    for part in parts:
        ids += encode(name, part) if part in (OPEN, CLOSE) else spelt(name, part)
    return ids


# The facts.


@pytest.mark.slow
def test_what_is_published_of_qwen_s_vocabulary() -> None:
    for name in (R1, QWEN3):
        texts = tokenizer(name).batch_decode([[token] for token in range(151_643)])
        ends = [text for text in texts if text.endswith("\n\n") and text.strip()]
        assert len(ends) == 528
        assert {".\n\n", ").\n\n", "]\n\n", "}\n\n", "。\n\n"} < set(ends)
        assert {"{\\", "}{"} < set(texts)
        assert encode(name, "1234") == [16, 17, 18, 19]
    assert vocabulary(R1).end_ids == (151_643,)
    assert tokenizer(R1).bos_token_id == 151_646
    assert vocabulary(QWEN3).end_ids == (151_645, 151_643)


@pytest.mark.parametrize("name", NAMES)
def test_the_tags_are_tokens_and_not_special(name: str) -> None:
    words = vocabulary(name)
    assert words.think == tuple(tag_token(words.tokenizer, tag) for tag in (OPEN, CLOSE))
    for token in words.think:
        assert not words.tokenizer.added_tokens_decoder[token].special
    assert words.tokenizer.eos_token_id == words.end_ids[0]


def rendered(name: str, **arguments: object) -> str:
    messages = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "hm</think>\n\n4"},
        {"role": "user", "content": "3+3?"},
    ]
    return str(
        tokenizer(name).apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **arguments
        )
    )


def test_the_templates_begin_a_response_as_published() -> None:
    assert rendered(R1).endswith("<｜User｜>3+3?<｜Assistant｜><think>\n")
    assert rendered(QWEN3).endswith("3+3?<|im_end|>\n<|im_start|>assistant\n")
    assert rendered(QWEN3, enable_thinking=True) == rendered(QWEN3)
    closed = "<think>\n\n</think>\n\n"
    assert rendered(QWEN3, enable_thinking=False) == rendered(QWEN3) + closed
    assert rendered(DEEPSEEK, thinking=True).endswith("<｜Assistant｜><think>")
    assert rendered(DEEPSEEK).endswith("<｜Assistant｜></think>")
    for name in NAMES:
        assert "hm" not in rendered(name)
        ids = encode(name, rendered(name, **vocabulary(name).template))
        assert opens_thinking(tokenizer(name), ids) == vocabulary(name).opens


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_model_folder_has_the_vocabulary_and_the_eos_list(name: str, tmp_path: Path) -> None:
    folder = model_folder(name, tmp_path)
    loaded = AutoTokenizer.from_pretrained(folder)
    text = "是 8 \\).\n\nWait, \\boxed{\\frac{1}{2}}<think>1234</think>\n\n"
    assert loaded.encode(text) == tokenizer(name).encode(text)
    assert loaded.chat_template == tokenizer(name).chat_template
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    assert tuple(ends if isinstance(ends, list) else [ends]) == vocabulary(name).end_ids


# Segments.


async def trajectory(name: str, ids: list[int], finish: FinishReason = "stop") -> Trajectory:
    prompt = encode(name, "<think>\n")
    return await make_trajectory(
        PROBLEM,
        Completion(tuple(ids), "", finish),
        model="m",
        sample=0,
        seed=0,
        prompt_ids=prompt,
        tokenizer=tokenizer(name),
        grader=Grader(workers=1),
    )


pieces = st.sampled_from(
    [
        *(
            "Wait, ",
            "But wait",
            "Alternatively, ",
            "Hmm",
            "等等",
            "，或者",
            "So 8",
            "x = 8",
            "好的",
        ),
        *(
            "🙂",
            "👩‍👩",
            "é",
            "1234",
            "$x$",
            "\\( x \\)",
            "\\[ y \\]",
            "{-3}",
            "\\frac{1}{2}",
            '"8?"',
        ),
        *(
            ". ",
            "。",
            "...",
            ").",
            "\\).",
            "]",
            "}",
            "\n\n",
            "\n",
            " ",
            ".\n\n",
            "?\n\n",
            "）。\n\n",
        ),
    ]
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@given(thinking=st.lists(pieces, min_size=1, max_size=30).map("".join), closed=st.booleans())
@settings(max_examples=60)
async def test_segments_tile_ids_and_text(name: str, thinking: str, closed: bool) -> None:
    ids = encode(name, thinking + ("</think>\n\n8" if closed else ""))
    row = await trajectory(name, ids, "stop" if closed else "length")
    found = segment(row, tokenizer(name), SegmentSettings(granularity="cue"))
    if isinstance(found, Dropped):
        assert not thinking.strip() or row.thinking_tokens.length == 0
        return
    for spans, whole in (
        ([each.tokens for each in found], row.thinking_tokens),
        ([each.chars for each in found], row.thinking),
    ):
        assert spans[0].start == whole.start and spans[-1].end == whole.end
        assert all(one.end == two.start for one, two in pairwise(spans))
        assert all(span.length > 0 for span in spans)
    for each in found[:-1]:
        prefix = tokenizer(name).decode(row.token_ids[: each.tokens.end])
        assert prefix == row.text[: each.chars.end]
    for each in found:
        assert each.tokens.start < each.exit <= each.tokens.end
        left_out = tokenizer(name).decode(row.token_ids[each.exit : each.tokens.end])
        assert not left_out.strip()


# Tags.


def parts(reading: Reading) -> tuple[str, str, bool]:
    text = reading.text
    return text[slice(*reading.thinking)], text[slice(*reading.conclusion)], reading.closed


READINGS = [
    # what a model writes, whether its prompt opened the thinking; thinking, conclusion, closed
    (("a", CLOSE, "\n\nb"), True, "a", "\n\nb", True),
    ((OPEN, "\na", CLOSE, "b"), False, "\na", "b", True),
    ((OPEN, "\na", CLOSE, "b"), True, "\na", "b", True),
    # quoted: spelt out, in thinking, in the conclusion, before the tag is opened
    (("use the `</think>` tag", CLOSE, "b"), True, "use the `</think>` tag", "b", True),
    (("a `</think>` tag", CLOSE, "no </think>"), True, "a `</think>` tag", "no </think>", True),
    (("`<think>` and `</think>`", CLOSE, "b"), True, "`<think>` and `</think>`", "b", True),
    (("so `</think>` it is",), True, "so `</think>` it is", "", False),
    ((OPEN, "`<think>` `</think>`", CLOSE, "b"), False, "`<think>` `</think>`", "b", True),
    (("<think> is a tag.",), False, "", "<think> is a tag.", True),
    # nested
    ((OPEN, "a", OPEN, "b", CLOSE, "c", CLOSE, "done"), False, f"a{OPEN}b{CLOSE}c", "done", True),
    (("a", OPEN, "b", CLOSE, "c", CLOSE, "Answer"), True, f"a{OPEN}b{CLOSE}c", "Answer", True),
    (("a", OPEN, "b", CLOSE, "Answer"), True, f"a{OPEN}b", "Answer", True),
    ((OPEN, "a", OPEN, "b"), False, f"a{OPEN}b", "", False),
    # repeated and orphaned
    (("r", CLOSE, "Here is", CLOSE, "done"), True, "r", f"Here is{CLOSE}done", True),
    ((CLOSE, " ", CLOSE, " x"), True, "", " x", True),
    (("r", CLOSE, "\n", CLOSE, CLOSE, "x"), True, "r", "x", True),
    (("thought\n", CLOSE, "\nanswer"), False, "thought\n", "\nanswer", True),
    (("a", CLOSE, "b ", OPEN, "c"), False, "a", f"b {OPEN}c", True),
    # none, or nothing in it
    (("plain answer",), False, "", "plain answer", True),
    ((OPEN, "never"), False, "never", "", False),
    ((OPEN, "\n\n", CLOSE, "\n\n8"), False, "\n\n", "\n\n8", True),
    (("\n", CLOSE, "\n\n8"), True, "\n", "\n\n8", True),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("said", "opened", "thinking", "conclusion", "closed"), READINGS)
def test_only_the_tag_s_own_token_opens_and_closes(
    name: str, said: tuple[str, ...], opened: bool, thinking: str, conclusion: str, closed: bool
) -> None:
    prompt = encode(name, "<think>\n" if opened else "\n")
    ids = written(name, *said)
    for ends in ((), *((end,) for end in vocabulary(name).end_ids)):
        reading = read_response(tokenizer(name), prompt, [*ids, *ends])
        assert parts(reading) == (thinking, conclusion, closed)
        inside = tokenizer(name).decode(ids[slice(*reading.thinking_tokens)])
        assert inside == thinking
    reader = TagReader(tokenizer(name), CLOSE)
    pieces = [tokenizer(name).decode([token]) for token in ids]
    assert any([reader.read([token], piece) for token, piece in zip(ids, pieces, strict=True)]) == (
        CLOSE in said
    )


def test_a_tag_that_the_tokenizer_spells_is_found_in_the_text() -> None:
    plain = byte_level(tags_are_tokens=False)
    ids = plain.encode("a</think>b", add_special_tokens=False)
    assert tag_token(plain, CLOSE) is None
    assert parts(read_response(plain, plain.encode("<think>"), ids)) == ("a", "b", True)
    reader = TagReader(plain, CLOSE)
    seen = [reader.read([token], plain.decode([token])) for token in ids]
    assert seen.count(True) == 1 and not seen[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("said", ["So 8", "So 8 \\boxed{8}", "`</think>` \\boxed{8}", ""])
async def test_an_end_inside_the_thinking_is_truncated(name: str, said: str) -> None:
    for end in vocabulary(name).end_ids:
        row = await trajectory(name, [*spelt(name, said), end])
        assert (row.grade, row.text, row.conclusion.length) == ("truncated", said, 0)
        assert row.thinking_tokens.length == len(row.token_ids) - (1 if said else 0) or not said


# Stop strings.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("text", "stop"),
    [("解答：8", "答"), ("a{1}})", "}"), ("{\\frac{1}{2}}", "}"), ("x}.\n\n", "}"), ("好🙃", "🙃")],
)
def test_a_stop_string_is_found_in_whichever_tokens(name: str, text: str, stop: str) -> None:
    reader = StopReader(tokenizer(name).backend_tokenizer, (stop,))
    read = ""
    for token in encode(name, text):
        piece, found = reader.read(token)
        assert (found == stop) == (stop in piece)
        read += piece
    assert read == text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "grade", "reason"),
    [("9^{9^{9^{9}}}", "wrong", "grader_timeout"), ("9", "wrong", ""), ("8", "correct", "")],
)
async def test_why_an_answer_was_given_up_stays_with_the_trajectory(
    answer: str, grade: str, reason: str
) -> None:
    made = await trajectory(R1, written(R1, "So.\n", CLOSE, f"\n\n\\boxed{{{answer}}}"))
    assert (made.grade, made.reason) == (grade, reason)
