"""Cues count at the start of a sentence, and nowhere else."""

from __future__ import annotations

import pytest
import spacy

from dto.exits.monitor import cue_at_end
from dto.languages import DEFAULT, KINDS, load_language
from dto.segmentation.features import split
from dto.segmentation.worker import segment_text

B = "It is 5. "  # something for the cue to follow

FIRES = [
    (B + "Wait, no.", "Wait"),
    (B + "wait, no.", "wait"),
    (B + "WAIT, no.", "WAIT"),
    (B + "But wait, no.", "wait"),
    (B + "Oh, wait. It is.", "wait"),
    (B + "Hmm, so, wait.", "wait"),
    (B + "Hmm... wait, no.", "wait"),
    (B + "Alternatively, it is 6.", "Alternatively"),
    (B + "Hold on. It is 6.", "Hold on"),
    (B + "Let’s double-check this.", "Let’s double-check"),
    (B + "Another idea: it is 6.", "Another idea"),
    (B + "To be thorough, it is 6.", "To be thorough"),
    (B + "I must check the sum.", "I must check"),
    (B + "So the answer is: 5.", "the answer is"),
    ("It is 5... wait, no.", "wait"),
    ("It is 5… Wait, no.", "Wait"),
    ("Is it 5? Wait, no.", "Wait"),
    ("It is 5\nWait, no.", "Wait"),
    ("x = 5\nwait, no.", "wait"),
    ("It is 5:\n\n- Wait, no.", "Wait"),
    ("It is 5:\n2. **Wait**, no.", "Wait"),
    ("It is 5:\n### Wait\nno.", "Wait"),
    ('He said "it is 5." Wait, no.', "Wait"),
    ("It is $5$. Wait, no.", "Wait"),
    ("It costs $5. Wait, it costs $6. Right.", "Wait"),
    ("It is \\(5\\). Wait, no.", "Wait"),
    ("是五。等等，不是。", "等等"),
    ("是五。不过，等等，不是。", "等等"),
    ("是五。但等一下，不是。", "等一下"),
    ("是五！或者是六。", "或者"),
    ("是五？让我再检查一下。", "让我再检查"),
    ("It is 5. 等等，不是。", "等等"),
    ("是五。Wait, no.", "Wait"),
]

SILENT = [
    B + "Waiting is fun.",
    B + "I wait for it.",
    B + "They had to wait, then left.",
    B + "It is 5, wait, no.",
    B + "The sum of 1, 2, ..., wait.",
    B + "Compare 3 vs. wait times.",
    "The line is\nwrapped and they\nwait for it.",
    B + "$x. Wait, y$ holds.",
    B + "\\[ x. Wait, \\text{so} \\] holds.",
    B + "\\( x. Wait \\) holds.",
    B + "$$\nWait, x\n$$\n",
    B + "`x. Wait, y` holds.",
    B + "\n```python\nWait, x\n# wait\n```\n",
    B + '"It is 6. Wait, no," he said.',
    B + "“It is 6. Wait, no,” he said.",
    B + "\n> Wait, no.\n",
    "是五。「是六。等等，不是」他说。",
    "是五。我在这里等等他。",
    "是五。他说六或者七。",
]


@pytest.mark.parametrize(("text", "cue"), FIRES)
def test_a_cue_at_the_start_of_a_sentence_cuts(text: str, cue: str) -> None:
    assert [segment.cue for segment in segment_text(text, "cue")] == ["", cue]


@pytest.mark.parametrize("text", SILENT)
def test_a_cue_anywhere_else_does_not(text: str) -> None:
    assert [segment.cue for segment in segment_text(text, "cue")] == [""]


# Where sentences end, as users of sentence splitters report it.
REPORTED = [
    ("We get approx. 100. Wait, no.", ["We get approx. 100.", "Wait, no."]),
    ("It is 5 vs. 6 in eq. 7. Wait, no.", ["It is 5 vs. 6 in eq. 7.", "Wait, no."]),
    (
        "the government office. (Weekly off on Sunday) Wait, no.",
        ["the government office.", "(Weekly off on Sunday) Wait, no."],
    ),
    (
        "the government office. (Weekly off on Sunday.) Wait, no.",
        ["the government office.", "(Weekly off on Sunday.)", "Wait, no."],
    ),
    ("It is I. Do not wait. Hmm.", ["It is I.", "Do not wait.", "Hmm."]),
    ('He said "stop." Wait, no.', ['He said "stop."', "Wait, no."]),
    ("He said “stop.” Wait, no.", ["He said “stop.”", "Wait, no."]),
    ("B follows A. Then comes C. Wait.", ["B follows A.", "Then comes C.", "Wait."]),
    (
        "It was 2014. But x = 3.14. Alternatively, no.",
        ["It was 2014.", "But x = 3.14.", "Alternatively, no."],
    ),
    ("Hmm... wait... Wait, maybe not.", ["Hmm...", "wait...", "Wait, maybe not."]),
    ("1, 2, ..., 9. So it is 9!", ["1, 2, ..., 9.", "So it is 9!"]),
    ("Steps:\n1. Take 7.\n2. Add 5.", ["Steps:", "1. Take 7.", "2. Add 5."]),
    ("It is $5. Wait, it is $6.", ["It is $5.", "Wait, it is $6."]),
    ("So $x = 1.5. y$ is 2. $z$ is 3.", ["So $x = 1.5. y$ is 2.", "$z$ is 3."]),
    ("是五。「是六。不」他说。等等！", ["是五。", "「是六。不」他说。", "等等！"]),
]


@pytest.mark.parametrize(("text", "sentences"), REPORTED)
def test_where_sentences_end(text: str, sentences: list[str]) -> None:
    assert [text[each.start : each.end].strip() for each in split(text)] == sentences


@pytest.mark.parametrize(
    ("text", "cues"),
    [
        ("We get approx. 100. Wait, no.", ["Wait"]),
        ("the government office. (Weekly off on Sunday) Wait, no.", []),
        ("It is I. Do not wait.", []),
        ('He said "stop." Wait, no.', ["Wait"]),
        ("B follows A. Then comes C. Wait.", ["Wait"]),
        ("It was 2014. But x = 3.14. Alternatively, no.", ["But", "Alternatively"]),
        ("It is 5. Hmm... wait... Wait, maybe", ["wait"]),
    ],
)
def test_cues_behind_such_ends(text: str, cues: list[str]) -> None:
    assert [segment.cue for segment in segment_text(text, "cue")[1:]] == cues


def test_a_monitor_of_exits_looks_at_cues_of_the_lexicons() -> None:
    for cue in (cue for name in DEFAULT for cue in load_language(name).transitions):
        text = f"It is 5. {cue.capitalize()}" if cue.isascii() else f"是五。{cue}"
        assert cue_at_end(text) == text.rindex(text[-len(cue) :])
    assert cue_at_end("It is 5. Suppose") is None  # a cue, but no transition


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        (B + "But wait, no.", "But wait"),
        (B + "Hmm. Wait, no.", "Hmm. Wait"),
        ("It is 5:\n2. **Wait**, no.", "2. **Wait"),
        (B + "\n\nWait, no.", "Wait"),
        ("是五。不过，等等。", "不过，等等"),
    ],
)
def test_the_cut_is_before_openers_and_markers_and_after_white_space(
    text: str, begins: str
) -> None:
    second = segment_text(text, "cue")[1]
    assert text[second.start :].startswith(begins)


@pytest.mark.parametrize(
    ("cue", "kind"),
    [
        ("Wait", "verification"),
        ("Alternatively", "alternative"),
        ("Suppose", "hypothesis"),
        ("To summarize", "summary"),
        ("The answer is", "conclusion"),
        ("首先", "hypothesis"),
        ("答案是", "conclusion"),
    ],
)
def test_each_cue_has_a_kind(cue: str, kind: str) -> None:
    opening, segment = segment_text(f"{B}\n\n{cue} 5.", "cue")
    assert (opening.kind, segment.kind) == ("opening", kind)


def test_a_stray_sign_hides_nothing() -> None:
    for stray in ("`", "$", '"', "\\[", "“", "\n```\n"):
        text = f"It is {stray} 5. Wait, no."
        assert [segment.cue for segment in segment_text(text, "cue")] == ["", "Wait"], stray


def test_the_lexicons_are_lower_case_and_name_no_unknown_list() -> None:
    for language in map(load_language, DEFAULT):
        assert set(language.cues) == set(KINDS)
        cues = [
            cue for kind in KINDS for strength in ("strong", "weak")
            for cue in language.phrases(kind, strength)
        ]  # fmt: skip
        assert all(cue == cue.lower() and "{" not in cue for cue in cues)
        assert set(language.transitions) <= set(cues)


def test_the_component_tiles_a_spacy_document() -> None:
    nlp = spacy.blank("xx")
    nlp.add_pipe("dto_patterns", config={"granularity": "cue"})
    text = "It is 5. Wait, no. 等等，是六。"
    doc = nlp(text)
    assert [span.label_ for span in doc.spans["patterns"]] == [
        "opening",
        "verification",
        "verification",
    ]
    assert "".join(span.text_with_ws for span in doc.spans["patterns"]) == text
    assert list(doc._.dto_patterns) == segment_text(text, "cue")
