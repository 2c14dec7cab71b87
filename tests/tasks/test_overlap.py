"""What counts as the same question, and what as a part of one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.tasks.overlap import Index, grams, words

LONG = " ".join(f"word{n}" for n in range(40))
BOILERPLATE = "where m and n are relatively prime positive integers, find the value of m plus n."


def index(*texts: str, n: int = 13) -> Index:
    made = Index(n)
    for number, text in enumerate(texts):
        made.add(str(number), text)
    return made


@pytest.mark.parametrize(
    ("known", "asked", "share"),
    [
        (LONG, LONG, 1.0),
        (LONG, LONG.upper().replace(" ", "\n ") + "?", 1.0),
        (LONG, f"First {LONG} and something else besides.", 1.0),  # a part of a longer one
        (LONG, " ".join(LONG.split()[:13]), 1.0),
        (LONG, " ".join(LONG.split()[:12]), 0.0),  # twelve words are no 13-gram
        ("What is 1 + 1?", "what  is 1 + 1?", 1.0),
        ("What is 1 + 1?", "What is 1 - 1?", 0.0),  # short ones: equal, signs and all
        ("一个农夫有十七只羊除了九只以外都跑了", "问：一个农夫有十七只羊除了九只以外都跑了", 1.0),
        (f"{LONG} {BOILERPLATE}", f"{LONG.replace('word', 'Wort')} {BOILERPLATE}", 4 / 44),
    ],
)
def test_share_of_the_shorter_question(known: str, asked: str, share: float) -> None:
    hit = index("Something else.", known).find(asked)
    assert (0.0 if hit is None else hit.share) == pytest.approx(share)
    assert hit is None or hit.where == "1"


def test_a_hit_names_the_row_that_shares_most_and_shows_what() -> None:
    half = " ".join(LONG.split()[:20])
    hit = index(f"{half} other", LONG).find(LONG)
    assert hit is not None and hit.where == "1"
    assert hit.phrase == " ".join(LONG.split()[:13])


def test_a_whole_copy_is_not_hidden_by_a_longer_question_with_more_in_common() -> None:
    asked = " ".join(f"word{n}" for n in range(200))
    copied = " ".join(asked.split()[100:126])
    common = " ".join(f"word{n}" if n < 60 else f"other{n}" for n in range(200))
    hit = index(common, copied).find(asked)
    assert hit is not None and (hit.where, hit.share) == ("1", 1.0)


def test_questions_can_be_added_after_a_look_up() -> None:
    made = index("One?")
    assert made.find("Two?") is None
    made.add("two", "Two?")
    assert (hit := made.find("two?")) is not None and hit.where == "two"
    assert Index().find("Two?") is None


@given(st.text(), st.integers(2, 15))
def test_every_question_overlaps_with_itself(text: str, n: int) -> None:
    hit = index("another one entirely", text, n=n).find(text)
    assert hit is not None and hit.share == 1.0


@pytest.mark.slow
@given(st.lists(st.sampled_from("abcd"), max_size=30), st.integers(2, 5))
def test_grams_are_equal_where_the_words_are(letters: list[str], n: int) -> None:
    found = grams(" ".join(letters), n)
    spelled = [tuple(letters[at : at + n]) for at in range(len(letters) - n + 1)]
    assert len(found) == max(1, len(spelled))
    assert len(set(found.tolist())) == max(1, len(set(spelled)))


def test_words_of_chinese_are_characters() -> None:
    assert words("求 $x_1+2$ 的值") == ["求", "x", "1", "2", "的", "值"]
