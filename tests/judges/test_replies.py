"""What a judge writes, read strictly."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.llm_judge import SCORES, read_verdicts, schema

ASKED = [2, 3, 4]
KEEP = '{"reason": "needed", "verdict": "keep"}'
HARM = '{"reason": "wrong", "verdict": "harmful"}'
WHOLE = f'{{"2": {KEEP}, "3": {HARM}, "4": {KEEP}}}'
GOOD = {2: "keep", 3: "harmful", 4: "keep"}
NOTHING = dict.fromkeys(ASKED, "unjudged")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (WHOLE, GOOD),
        (f"\n {WHOLE}\n", GOOD),
        (f"```json\n{WHOLE}\n```", GOOD),
        (f"```\n{WHOLE}```", GOOD),
        (f"Pattern 3 is {{wrong}}.\n</think>\n\n{WHOLE}", GOOD),
        (WHOLE.replace("needed", "ends in </think>, {2}"), GOOD),
        (WHOLE.replace('"needed"', '"needed", "confidence": 0.9'), GOOD),
        # garbage
        ("", NOTHING),
        ("I would keep all of them.", NOTHING),
        ("[]", NOTHING),
        ("null", NOTHING),
        ("7", NOTHING),
        ('"keep"', NOTHING),
        ("[" * 100_000, NOTHING),
        (f"Here you are: {WHOLE}", NOTHING),
        (f"{WHOLE} {WHOLE}", NOTHING),
        (f"[{WHOLE}]", NOTHING),
        (f'{{"verdicts": {WHOLE}}}', NOTHING),
        (WHOLE.replace('"', "'"), NOTHING),
        (WHOLE[:-1], NOTHING),
        (WHOLE[: len(WHOLE) // 2], NOTHING),
        ("{}", NOTHING),
        # half of the verdicts
        (f'{{"2": {HARM}}}', {2: "harmful", 3: "unjudged", 4: "unjudged"}),
        (f'{{"4": {KEEP}, "3": {KEEP}}}', {2: "unjudged", 3: "keep", 4: "keep"}),
        # wrong indices: shifted, made up, or beside the right ones
        (f'{{"1": {KEEP}, "2": {HARM}, "3": {KEEP}}}', NOTHING),
        (f'{{"2": {KEEP}, "3": {HARM}, "9": {KEEP}}}', NOTHING),
        (f'{{"pattern 2": {KEEP}, "3": {HARM}, "4": {KEEP}}}', NOTHING),
        (f'{{"02": {KEEP}, "3": {HARM}, "4": {KEEP}}}', NOTHING),
        (f'{{"\\ud800": {KEEP}}}', NOTHING),
        (f'{{"1": {KEEP}, {WHOLE[1:]}', GOOD),
        # twice
        (f'{{"2": {KEEP}, {WHOLE[1:]}', GOOD | {2: "unjudged"}),
        (
            WHOLE.replace('"verdict": "harmful"', '"verdict": "keep", "verdict": "harmful"'),
            GOOD | {3: "unjudged"},
        ),
        # outside the enumeration, and entries that are none
        (WHOLE.replace("harmful", "needless"), GOOD | {3: "unjudged"}),
        (WHOLE.replace("harmful", "Harmful"), GOOD | {3: "unjudged"}),
        (WHOLE.replace("harmful", "unjudged"), GOOD | {3: "unjudged"}),
        (WHOLE.replace(HARM, '"harmful"'), GOOD | {3: "unjudged"}),
        (WHOLE.replace(HARM, "3"), GOOD | {3: "unjudged"}),
        (WHOLE.replace(HARM, "null"), GOOD | {3: "unjudged"}),
        (WHOLE.replace(HARM, "[]"), GOOD | {3: "unjudged"}),
        (WHOLE.replace(HARM, "{}"), GOOD | {3: "unjudged"}),
        (WHOLE.replace(HARM, '{"verdict": "harmful"}'), GOOD | {3: "unjudged"}),
        (WHOLE.replace('"wrong"', "null"), GOOD | {3: "unjudged"}),
        (WHOLE.replace('"harmful"', '["harmful"]'), GOOD | {3: "unjudged"}),
    ],
)
def test_each_verdict_stands_for_itself(text: str, found: dict[int, str]) -> None:
    said = read_verdicts(text, ASKED)
    assert {number: words.verdict for number, words in said.items()} == found
    assert all(words.reason for words in said.values())


def test_a_reason_is_one_line_that_can_be_written() -> None:
    text = '{"2": {"reason": "two\\n lines,\\u0000 and \\ud800 half", "verdict": "redundant"}}'
    (words,) = read_verdicts(text, [2]).values()
    assert words.reason.startswith("two lines,")
    assert "\n" not in words.reason and words.reason.encode("utf-8")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.sampled_from(ASKED),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("1234") | st.text(), inner),
)


@given(st.text() | JSON.map(json.dumps), st.lists(st.integers(2, 9), min_size=1, unique=True))
def test_nothing_that_a_model_writes_is_an_error(text: str, numbers: list[int]) -> None:
    said = read_verdicts(text, numbers)
    assert list(said) == numbers
    assert {words.verdict for words in said.values()} <= {*SCORES, "unjudged"}


@given(
    st.dictionaries(
        st.integers(2, 60), st.tuples(st.sampled_from([*SCORES]), st.text()), min_size=1
    )
)
def test_what_keeps_to_the_schema_is_read_whole(given: dict[int, tuple[str, str]]) -> None:
    wanted = schema([*given])
    entries = {str(n): {"reason": why, "verdict": kind} for n, (kind, why) in given.items()}
    assert wanted["required"] == [*entries] and not wanted["additionalProperties"]
    for name, entry in entries.items():
        assert wanted["properties"][name]["required"] == [*entry]
    said = read_verdicts(json.dumps(entries), [*given])
    assert {n: words.verdict for n, words in said.items()} == {
        n: kind for n, (kind, _) in given.items()
    }
