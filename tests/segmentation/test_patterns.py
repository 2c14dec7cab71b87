"""Candidates that belong to an open pattern stay in it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dto.segmentation.worker import segment_text

STEP = "We take 7 and multiply it by 8, which is 56, and then we add 5, which makes it 61 in all. "
LONG = STEP * 4

# (what it is, the paragraphs, how the patterns begin)
TABLE = [
    ("a check has its own paragraph", [STEP, "Wait, let me check. " + STEP], ["Wait"]),
    ("a second Wait inside a check", [STEP, "Wait, is it? " + STEP + "Wait, 7 or 6?"], ["Wait"]),
    (
        "each paragraph that checks",
        [STEP, "Wait, is it? " + STEP, "Wait, 7? " + STEP],
        ["Wait"] * 2,
    ),
    (
        "short checks, each a paragraph",
        ["7 + 5 = 12.", "Wait, 7 + 5? It is 12.", "Wait, 2? Yes."],
        ["Wait", "Wait"],
    ),
    ("a line of a derivation", [LONG, "So x = 3.", "Then y = 4."], []),
    (
        "a paragraph that sums up",
        [LONG, "So it is 61 in all, and that means that the last digit is 1."],
        ["So it"],
    ),
    (
        "a string of one-liners",
        [STEP, "What if it is 3?", "Another idea: 4.", "What if it is 5?"],
        ["What if it is 3"],
    ),
    ("or maybe, on one line each", [STEP, "Or maybe 3.", "Or maybe 4.", "Or maybe 5."], []),
    (
        "a new kind ends the string",
        [STEP, "What if it is 3?", "Wait, no. " + STEP],
        ["What", "Wait"],
    ),
    ("a Wait deep in a paragraph", [LONG + "Wait, let me check that. " + LONG], ["Wait"]),
    ("a Wait near its end", [LONG + "Wait, no."], []),
    ("a Wait near its start", [STEP + "Wait, no. " + LONG], []),
    ("a weak cue inside a paragraph", [LONG + "So " + LONG], []),
    ("an answer", [STEP, "The answer is 5."], ["The answer"]),
    (
        "Chinese",
        ["首先，七乘以八等于五十六。" * 3, "等等，让我再检查一下，是五十六。", "不过，答案是六。"],
        ["等等", "不过，答案"],
    ),
]


@pytest.mark.parametrize(
    ("paragraphs", "begins"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
@pytest.mark.parametrize("border", ["\n\n", "\n \n", "\n"])
def test_what_opens_a_pattern(paragraphs: list[str], begins: list[str], border: str) -> None:
    text = border.join(paragraphs)
    found = [text[segment.start :] for segment in segment_text(text)[1:]]
    assert len(found) == len(begins)
    assert all(text.startswith(start) for text, start in zip(found, begins, strict=True))


WORDS = [
    "Wait",
    "But wait",
    "Hmm",
    "So",
    "Alternatively",
    "等等",
    "或者",
    "但",
    "🙂",
    "é",
    "5",
    "x",
]
SIGNS = [".", "...", "。", ",", "$", "`", "\\[", "\\]", '"', "“", "”", "```\n"]
SPACES = [" ", "\n", "\n\n", "\r\n", "\t", "- ", "1. ", "\u3000", "\ud7ff"]
pieces = st.sampled_from([*WORDS, *SIGNS, *SPACES])


@settings(max_examples=200)
@given(st.lists(pieces, max_size=60).map("".join) | st.text(max_size=80))
def test_segments_tile_any_text(text: str) -> None:
    cues = segment_text(text, "cue")
    patterns = segment_text(text, "pattern")
    for segments in (cues, patterns):
        assert "".join(text[segment.start : segment.end] for segment in segments) == text
        assert all(segment.end > segment.start for segment in segments)
        assert all(text.startswith(s.cue, text.find(s.cue, s.start, s.end)) for s in segments)
        assert [segment.kind for segment in segments[:1]] == ["opening"][: len(text)]
    assert {segment.start for segment in patterns} <= {segment.start for segment in cues}


@pytest.mark.parametrize(
    "loop", ["No. ", "Wait. ", "Wait.\n\n", "What if?\n\n", "So\n", '"', "$x ", "等等。"]
)
def test_a_model_caught_in_a_loop_is_segmented(loop: str) -> None:
    text = loop * 3_000
    assert "".join(text[cut.start : cut.end] for cut in segment_text(text)) == text
