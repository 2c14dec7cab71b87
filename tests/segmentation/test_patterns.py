"""Candidates that belong to an open pattern stay in it; loops are one segment."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.nano.thinking import OVERTHINKING, think
from dto.nano import chains
from dto.segmentation.features import Masks, split
from dto.segmentation.patterns import CYCLES, LONGEST_CYCLE, Granularity, by_rules, loops
from dto.segmentation.worker import pipeline, segment_text

STEP = "We take 7 and multiply it by 8, which is 56, and then we add 5, which makes it 61 in all. "
LONG = STEP * 4

# (what it is, the paragraphs, how the patterns begin by the rules alone)
RULES = [
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
    ("paragraphs", "begins"), [row[1:] for row in RULES], ids=[row[0] for row in RULES]
)
@pytest.mark.parametrize("border", ["\n\n", "\n \n", "\n"])
def test_which_cues_open_a_pattern_by_the_rules(
    paragraphs: list[str], begins: list[str], border: str
) -> None:
    text = border.join(paragraphs)
    nlp = pipeline("pattern")
    candidates = list(nlp.get_pipe("dto_patterns").candidates(nlp(text), text, Masks(text)))
    found = [text[cut.start :] for cut in by_rules(text, candidates)]
    assert len(found) == len(begins)
    assert all(text.startswith(start) for text, start in zip(found, begins, strict=True))


# (what it is, the paragraphs, how the patterns after the first begin)
MODEL = [
    (
        "checks of a chain of sums",
        [
            "7 times 8 ends in 6. 6 plus 5 ends in 1. So the last digit is 1.",
            "Wait, let me check that again. 7 times 8 ends in 6. 6 plus 5 ends in 1. So the last "
            "digit is 1.",
            "Hmm, let me go through it once more. 7 times 8 ends in 6. 6 plus 5 ends in 1.",
            "Alternatively, I can start from the top. 7 times 8 ends in 6.",
        ],
        ["Wait, let", "Hmm, let", "Alternatively"],
    ),
    (
        "a formula begins a sentence, and none is inside one",
        [
            "We have $x^2 + 1 = 2$. $x$ is 1 or -1. So there are two of them.",
            "Wait, is that right? $1 + 1 = 2$, yes. $(-1)^2 + 1 = 2$, yes.",
            "Alternatively, draw it: $y = x^2 + 1. Wait, y$ is 2 twice.",
        ],
        ["Wait, is", "Alternatively"],
    ),
    (
        "code is no thought",
        [
            "First, I will write a loop over the list.",
            "```python\nfor x in y:\n    pass\n\n# Wait, let me check.\n# Alternatively, map.\n```",
            "Wait, what about the empty list? Then nothing is returned, and that is fine.",
        ],
        ["Wait, what"],
    ),
]


@pytest.mark.parametrize(
    ("paragraphs", "begins"), [row[1:] for row in MODEL], ids=[row[0] for row in MODEL]
)
@pytest.mark.parametrize("border", ["\n\n", "\n \n"])
def test_what_opens_a_pattern(paragraphs: list[str], begins: list[str], border: str) -> None:
    text = border.join(paragraphs)
    found = [text[segment.start :] for segment in segment_text(text)[1:]]
    assert [start for start in begins if not any(each.startswith(start) for each in found)] == []
    assert all(
        any(text[cut.start :].startswith(each[:9]) for each in paragraphs)
        for cut in segment_text(text)
    )


def test_each_doubt_of_the_embedded_model_opens_a_pattern() -> None:
    """Its texts were not learned from: exits must still lie where it begins to doubt."""
    random = Random(0)
    written = chains("train", random)
    opened = []
    for _ in range(60):
        text = think(next(written), OVERTHINKING, random).text
        cuts = {cut.start for cut in segment_text(text)}
        doubts = re.finditer(r"\n\n(?=But wait|Wait|Hmm|Alternatively|Let me double)", text)
        opened += [doubt.end() in cuts for doubt in doubts]
    assert len(opened) > 100
    assert sum(opened) >= 0.97 * len(opened)


def test_each_script_has_its_own_judge() -> None:
    """Around Chinese the rules decide as they do without English, around English the model."""
    chinese = [
        "".join(f"首先，七乘以{n}等于{7 * n}。" for n in range(9)),
        "等等，让我再检查一下。" + "".join(f"七乘以{n}是{7 * n}。" for n in range(9)),
    ]
    english = [STEP * 2, "Wait, is that right? Let me check it again. " + STEP]
    both = "\n\n".join([*chinese, *english])
    begins = [both[cut.start :][:4] for cut in segment_text(both)[1:]]
    assert begins[0] == "等等，让"
    assert "Wait" in begins
    alone = "\n\n".join(chinese)
    assert [cut.start for cut in segment_text(both) if cut.start < len(alone)] == [
        cut.start for cut in segment_text(alone)
    ]


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


@pytest.mark.slow
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
    starts = {each.start for each in split(text)}
    assert {cut.start for cut in patterns} - {cut.start for cut in cues} <= starts


LOOPS = [
    "No. ", "Wait. ", "Wait.\n\n", "What if?\n\n", "So\n", ".\n\n", "等等。", "Hmm...\n",
    "Wait, no. But wait. ", "Wait. Is it 5? Hmm. It is 5.\n\n", "等等，不对。再想想。\n",
    "A. B. C. D. E. F. G. H. I. J. K. L.\n\n",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("granularity", ["pattern", "cue"])
@pytest.mark.parametrize("end", ["", "So it is 6.\n\nThe answer is 6."])
def test_a_loop_is_one_segment(loop: str, granularity: Granularity, end: str) -> None:
    text = "It is 5. " + loop * 3_000 + end
    cuts = segment_text(text, granularity)
    assert "".join(text[cut.start : cut.end] for cut in cuts) == text
    [repeated] = [cut for cut in cuts if cut.kind == "loop"]
    assert repeated.end - repeated.start > 2_900 * len(loop)
    assert len(cuts) < 20
    assert not end or repeated.end <= text.index("So it is 6")


@pytest.mark.parametrize("stray", ['"', "$x ", "wait ", "“", "等等", "\n", " ", "`"])
def test_what_never_ends_a_sentence_is_segmented(stray: str) -> None:
    text = stray * 3_000
    assert "".join(text[cut.start : cut.end] for cut in segment_text(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "It is 5. " + "Wait. " * CYCLES + "It is 6.",  # said once more: a loop
        "".join(f"Wait, it is {n}. " for n in range(50)),
        "".join(f"Year {n}: {n} pairs\n\n" for n in range(50)),
        "Total: 20.\n\nTotal: 20.\n\nStill 20.\n\n" * 2,
        "".join(f"A{n}. " for n in range(LONGEST_CYCLE + 1)) * 6,
    ],
)
def test_what_is_no_loop(text: str) -> None:
    assert loops(text, split(text)) == []


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["Wait. ", "Hmm. ", "It is 5. ", "So 6. ", "No.\n\n"]), max_size=60)
)
def test_loops_lie_apart_and_repeat_what_is_before(pieces: list[str]) -> None:
    text = "".join(pieces)
    sentences = split(text)
    said = [text[each.start : each.end].split() for each in sentences]
    after = 0
    for loop in loops(text, sentences):
        assert after <= loop.start < loop.stop <= len(sentences)
        after = loop.stop
        assert any(
            said[loop.start - cycle : loop.stop - cycle] == said[loop.start : loop.stop]
            for cycle in range(1, len(loop) // CYCLES + 1)
        )
