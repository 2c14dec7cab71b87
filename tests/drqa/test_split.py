from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.drqa.split import alike, goes_over_all, others, quoted, split
from tests.drqa.responses import HEADED, NATALIA, SPLIT, THREE, WENG

FIGURES = (("48", "72"), ("50", "10"), ("3", "624"))


@pytest.mark.parametrize("thinking", SPLIT.values(), ids=SPLIT)
def test_each_question_has_its_reasoning(thinking):
    pieces = split(thinking, THREE)
    assert [piece.reason for piece in pieces] == ["", "", ""]
    for piece, figures in zip(pieces, FIGURES, strict=True):
        text = thinking[piece.heading.end : piece.span.end]
        assert all(figure in text for figure in figures)
        assert not any(own[1] in text for own in FIGURES if own is not figures)


@pytest.mark.parametrize("thinking", SPLIT.values(), ids=SPLIT)
def test_chains_do_not_say_which_question_they_are_about(thinking):
    for number, piece in enumerate(split(thinking, THREE), start=1):
        text = thinking[piece.heading.end : piece.span.end]
        assert not others(text, number, THREE[number - 1])
        chain = alike(text, number)
        assert not others(chain, None, THREE[number - 1])
        assert "\n" not in chain and "*" not in chain.replace(" * ", "") and "  " not in chain
        assert chain[0] not in " :：,，."


TOLD = (
    "she sold 48 / 2 = 24, so 72.", "50 minutes are 10 dollars.", "he writes 3 * 2 * 104 = 624.",
)  # fmt: skip
MANNERS = {
    "hash": ("### Problem 1\n", "### Problem 2\n", "### Problem 3\n"),
    "titles": ("### Problem 1: Natalia\n", "### Problem 2: Weng\n", "### Problem 3: James\n"),
    "bold titles": ("**Problem 1: clips** ", "**Problem 2: pay** ", "**Problem 3: letters** "),
    "bold": ("**Question 1**: ", "**Question 2**: ", "**Question 3**: "),
    "bold lines": ("**1. Problem 1**\n", "**2. Problem 2**\n", "**3. Problem 3**\n"),
    "remarks": ("Problem 1 (clips): ", "Problem 2 (pay): ", "Problem 3 (letters): "),
    "short": ("Q1: ", "Q2: ", "Q3: "),
    "words": ("Question one: ", "Question two: ", "Question three: "),
    "signs": ("Question #1: ", "Question #2: ", "Question #3: "),
    "for": ("For question 1, ", "For question 2, ", "For question 3, "),
    "asks": ("Question 1 asks how many she sold. ", "Question 2 asks how much she earned. ",
             "Question 3 is about letters. "),
    "lines": ("Let's start with problem 1.\n", "Now, let's move on to problem 2.\n",
              "Finally, let's tackle problem 3.\n"),
    "ordinals": ("Let me begin with the first problem. ", "Next, the second problem. ",
                 "Lastly, the third problem. "),
    "next and last": ("Let me begin with the first problem. ", "On to the next problem. ",
                      "Now the last problem. "),
    "chinese": ("第一题：", "第二题：", "第三题："),
    "chinese after": ("问题一：", "问题二：", "问题三："),
    "chinese titles": ("题目1：", "题目2：", "题目3："),
    "chinese bold": ("**第1题**\n", "**第2题**\n", "**第3题**\n"),
    "chinese spoken": ("先看第一个问题，", "再看第二个问题，", "最后看第三个问题，"),
    "chinese next": ("好，第一题，", "下一题。", "最后一题。"),
}  # fmt: skip


@pytest.mark.parametrize("manner", MANNERS.values(), ids=MANNERS)
def test_the_manner_of_a_heading_leaves_no_trace(manner):
    told = zip(manner, TOLD, strict=True)
    thinking = "Okay, there are three of them.\n\n" + "\n\n".join(
        f"{heading}{text}\nWait, let me check: {text}" for heading, text in told
    )
    pieces = split(thinking, THREE)
    assert [piece.reason for piece in pieces] == ["", "", ""]
    for number, (piece, text) in enumerate(zip(pieces, TOLD, strict=True), start=1):
        chain = alike(thinking[piece.heading.end : piece.span.end], number)
        assert chain == f"{text[0].upper()}{text[1:]} Wait, let me check: {text}"


DROPPED = {
    "within a line": ("Question 1: 72. Next, question 2: 10. And question 3: 624.",
                      ["runs_on", "no_heading", "no_heading"]),
    "in a sentence": ("Question 1: 72.\n\nQuestion 2: 10. The third problem gives 624.",
                      ["", "runs_on", "no_heading"]),
    "an idiom": ("Question 1: 48.\n\nThe second problem is that May is half.\n\nQuestion 2: 10."
                 "\n\nBack to question 1: 72.\n\nQuestion 3: 6.", ["interleaved", "", ""]),
    "no heading": ("She sold 48 + 24 = 72. Then 10 dollars. Then 624.", ["no_heading"] * 3),
    "empty": ("", ["no_heading"] * 3),
    "missing": ("Question 1: 72.\n\nQuestion 3: 624.", ["runs_on", "no_heading", ""]),
    "first missing": ("So 72.\n\nQuestion 2: 10.\n\nQuestion 3: 6.", ["no_heading", "", ""]),
    "back again": ("Question 1: 72.\n\nQuestion 2: 10.\n\nGoing back to question 1, yes, 72.\n\n"
                   "Question 3: 624.", ["interleaved", "", ""]),
    "all again": ("Question 1: 72.\n\nQuestion 2: 10.\n\nQuestion 3: 624.\n\nLet me check all the "
                  "answers.\n\nQuestion 1: 72.\n\nQuestion 2: 10.\n\nQuestion 3: 624.",
                  ["interleaved"] * 3),
    "extra": ("Question 1: 7.\n\nQuestion 2: 1.\n\nQuestion 3: 6.\n\nQuestion 4: 9.",
              ["extra_number"] * 3),
    "shared": ("These problems are alike. " + "Each is a product of rates. " * 30 + "\n\n"
               + HEADED, ["shared_reasoning"] * 3),
    "steps": ("1. April: 48.\n2. May: 24.\n3. Sum: 72.", ["no_heading"] * 3),
    "another order": ("Question 3: 624.\n\nQuestion 1: 72.\n\nQuestion 2: 10.", ["", "", ""]),
    "summary": ("Question 1: 72.\n\nQuestion 2: 10.\n\nQuestion 3: 624.\n\nSo the answers are 72, "
                "10 and 624.", ["", "", ""]),
}  # fmt: skip


@pytest.mark.parametrize(("thinking", "reasons"), DROPPED.values(), ids=DROPPED)
def test_what_cannot_be_split_has_its_reason(thinking, reasons):
    assert [piece.reason for piece in split(thinking, THREE)] == reasons


def test_a_summary_belongs_to_nobody():
    thinking = DROPPED["summary"][0]
    piece = split(thinking, THREE)[2]
    assert thinking[slice(*piece.span)].strip() == "Question 3: 624."


@pytest.mark.parametrize(
    "text",
    [
        "As in question 1, we halve it.",
        "The previous problem was easier.",
        "Unlike the third problem this has a rate.",
        "和第三题一样，乘以52。",
        "All three questions are alike.",
        "这三道题都一样。",
        "和上一题一样。",
        "Now the next question.",
    ],
)
def test_other_questions_are_named(text):
    assert others(text, 2, THREE[1])


@pytest.mark.parametrize(
    "text",
    [
        "So for question 2 it is 10.",
        "The question asks for dollars.",
        "第二题是10美元。",
        "I know how these problems go.",
        "我再看一下题目。",
    ],
)
def test_the_own_question_is_none_of_them(text):
    assert not others(text, 2, THREE[1])


def test_what_the_question_itself_says_is_not_held_against_its_chain():
    question = "In question 3 of a test, 40 % were right. How many of 50?"
    assert not others("So in question 3 it is 20.", None, question)
    assert others("So in question 4 it is 20.", None, question)


def test_a_quoted_question_is_found():
    text = "We saw that she sold half as many clips in May. How many clips did Natalia sell?"
    assert quoted(text, THREE[1], [NATALIA])
    assert not quoted(text, NATALIA, THREE[1:])
    assert not quoted("She did 50 minutes.", NATALIA, THREE[1:])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("624. Let me double-check everything: 72, 10 and 624.", True),
        ("624. To sum up all the answers: 72, 10, 624.", True),
        ("是624。检查一下所有结果：72，10，624。", True),
        ("624. Let me double-check everything: 12 times 52 is 624.", False),
        ("48 and 24 are 72, and 50 minutes are 10.", False),
        ("Let me check each step: 72 / 3.", False),
    ],
)
def test_a_chain_that_goes_over_all_answers_is_found(text, found):
    assert goes_over_all(text, ["72", "10"]) is found
    assert not goes_over_all(text, ["", ""])


def test_a_question_that_names_others_is_no_turn_to_them():
    """The second question is not taken up where the first one's words stand on a line."""
    own = "Question 2 of a test gives 5 points, question 1 gives 7. How many do both give?"
    thinking = (
        "First question: there are two numbers.\n\nQuestion 2 gives 5 and the other 7: 12.\n\n"
        "Second question: 50 minutes are 10 dollars."
    )
    first, second = split(thinking, [own, WENG])
    assert "gives 5 and the other 7: 12." in thinking[slice(*first.span)]
    assert thinking[second.heading.end : second.span.end].strip() == "50 minutes are 10 dollars."
    titled = split("Question 1: 12.\n\nQuestion 2: 10.", [own, WENG])
    assert [piece.reason for piece in titled] == ["", ""]
    doubtful = split("Question 1: 12.\n\nQuestion 2 is simple, 10.", [own, WENG])
    assert [piece.reason for piece in doubtful] == ["runs_on", "no_heading"]


PARAGRAPHS = st.lists(
    st.text("abc 0123456789+=,", min_size=1, max_size=60).map(lambda text: f"x {text}.").filter(
        lambda text: "q" not in text
    ),
    min_size=1,
    max_size=3,
)  # fmt: skip


HEADINGS = st.sampled_from(["Question {}.", "**Problem {}**", "For question {},", "第{}题："])


@given(st.lists(PARAGRAPHS, min_size=2, max_size=5), HEADINGS)
def test_headed_paragraphs_come_back(parts, heading):
    bodies = ["\n\n".join(part) for part in parts]
    thinking = "\n\n".join(
        f"{heading.format(number)} {body}" for number, body in enumerate(bodies, start=1)
    )
    pieces = split(thinking, ["?"] * len(parts))
    assert [piece.reason for piece in pieces] == [""] * len(parts)
    found = [thinking[piece.heading.end : piece.span.end].strip() for piece in pieces]
    assert found == [body.strip() for body in bodies]


WORDS = st.sampled_from(
    ["Question 1", "Question 2", "Problem 3:", "the second question", "\n", "\n\n", " ", "1.", "2.",
     "3.", "So 7.", "**", "all the questions", "第一题", "下一题", "next question", "\\boxed{7}"]
)  # fmt: skip


@given(st.lists(WORDS, max_size=40).map("".join), st.integers(2, 4))
def test_pieces_never_overlap(thinking, k):
    pieces = split(thinking, ["Add 7 to it?"] * k)
    assert len(pieces) == k
    spans = sorted(piece.span for piece in pieces if not piece.reason)
    assert all(before.end <= after.start for before, after in pairwise(spans))
    for piece in pieces:
        if not piece.reason:
            assert piece.span.start <= piece.heading.end <= len(thinking)
            assert alike(thinking[piece.heading.end : piece.span.end], 1) is not None


ALIKE = {
    "opening": ("Okay, let me work through this.\n\n7 times 8 ends in 6.", "7 times 8 ends in 6."),
    "own number": ("So for question 2 the last digit is 6.", "The last digit is 6."),
    "in brackets": ("It is 6 (question 2).", "It is 6."),
    "markup": ("## Solution\n\n**Step:** `x` = \\boxed{7}", "Step: `x` = 7"),
    "bullets": ("- 3 pages\n- 2 friends", "3 pages 2 friends"),
    "numbering": ("1. April: 48\n2. May: 24", "April: 48 May: 24"),
    "a figure": ("The sum is\n72.", "The sum is 72."),
    "closing": ("3 + 4 = 7. That looks right. I am sure.", "3 + 4 = 7."),
    "titles": ("x = 7\n\n**Final Answer**\n\\boxed{7}", "X = 7 7"),
    "chinese": ("嗯，好的，首先，48 + 24 = 72。没错。", "48 + 24 = 72。"),
    "nested box": ("So \\boxed{\\frac{1}{2}} it is 1.", "\\frac{1}{2} it is 1."),
    "open box": ("So \\boxed{7", "7"),
    "nothing": ("\n \n", ""),
}


@pytest.mark.parametrize(("text", "chain"), ALIKE.values(), ids=ALIKE)
def test_alike(text, chain):
    assert alike(text, 2) == chain


@given(st.text(max_size=200), st.integers(1, 5))
def test_alike_has_no_white_space_to_tell(text, number):
    chain = alike(text, number)
    assert chain == " ".join(chain.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["\\boxed{" * 25_000, "Question 1. 7\n" * 20_000, "So, now, " * 20_000, "1. 7\n" * 40_000,
     "a" * 200_000, " \n" * 100_000, "the first problem " * 10_000],
)  # fmt: skip
def test_a_looping_response_takes_no_time(text):
    assert len(split(text, THREE)) == 3
    assert isinstance(alike(text, 1), str)
    others(text, 1, "?")
    quoted(text, THREE[0], THREE[1:])
