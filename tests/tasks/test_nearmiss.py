"""Near misses of gold answers: those that are made, those that must not be, and none is right."""

from __future__ import annotations

from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dto.grading.compare import compare
from dto.tasks.nearmiss import LONGEST, MOST, GoldKind, NearMissKind, near_misses
from tests.grading import corpus

MATHS: GoldKind = "mathematics"
# Gold answer, what it is, and all near misses of a kind.
MADE: list[tuple[str, GoldKind, NearMissKind, set[str]]] = [
    ("7", "number", "sign", {"-7"}),
    ("-7", "number", "sign", {"7"}),
    ("127", "number", "digit", {"128"}),
    ("19", "number", "digit", {"18"}),
    ("0", "number", "digit", {"1"}),
    ("3.21", "number", "digit", {"4.21", "3.22"}),
    ("58,500", "number", "digit", {"59,500", "58,501"}),
    (r"10,\!080", "number", "digit", {r"11,\!080", r"10,\!081"}),
    (r"-\frac{1}{2}", "number", "sign", {r"\frac{1}{2}"}),
    (r"\frac{14}{3}", "number", "digit", {r"\frac{15}{3}", r"\frac{14}{4}"}),
    ("1/2", "number", "digit", {"2/2", "1/3"}),
    (r"27\%", "number", "digit", {r"28\%"}),
    (r"\$36", "number", "sign", {r"\$-36"}),
    ("x = 5", MATHS, "sign", {"x = -5"}),
    ("x=5", MATHS, "digit", {"x=6"}),
    ("6 - 5i", MATHS, "sign", {"-6 - 5i"}),
    (r"3\sqrt{13}", MATHS, "digit", {r"4\sqrt{13}", r"3\sqrt{14}"}),
    ("5r^5", MATHS, "digit", {"6r^5", "5r^6"}),
    ("5r^5", MATHS, "letter", {"5p^5"}),
    ("p - q", MATHS, "letter", {"r - q", "p - r"}),
    ("y = 2x+3", MATHS, "letter", {"y = 2p+3"}),
    ("x^2 - x", MATHS, "letter", {"p^2 - x", "x^2 - p"}),
    (r"\left(3, \frac{\pi}{2}\right)", MATHS, "sign",
     {r"\left(-3, \frac{\pi}{2}\right)", r"\left(3, -\frac{\pi}{2}\right)"}),
    (r"\text{Evelyn}", "words", "letter", {r"\text{Evelyq}"}),
    ("no solution", "words", "letter", {"no solutioq"}),
    ("(C)", "letter", "letter", {"(A)", "(B)", "(D)"}),
    (r"\text{(C)}", MATHS, "letter", {r"\text{(A)}", r"\text{(B)}", r"\text{(D)}"}),
    (r"5 \text{ cm}", "number", "unit", {r"5 \text{ km}"}),
    (r"15\mbox{ cm}^2", "number", "unit", {r"15\mbox{ km}^2"}),
    (r"60 \text{ miles per hour}", "number", "unit", {r"60 \text{ miles per minute}"}),
    ("5 cm", "number", "unit", {"5 km"}),
    (r"90^\circ", "number", "unit", {r"90\text{ radians}"}),
    ("204_5", MATHS, "base", {"204_6"}),
    ("4210_{5}", MATHS, "base", {"4210_{6}"}),
    ("40_9", MATHS, "base", {"40_11"}),  # one that names no base may be one in base 10
    ("3, 5, 7", MATHS, "element", {"5, 7", "3, 7", "3, 5"}),
    ("1,-2", MATHS, "element", {"1", "-2"}),
    (r"\{1,2\}", MATHS, "element", {r"\{1\}", r"\{2\}"}),
    ("(1,2,3)", MATHS, "element", {"(2,3)", "(1,3)", "(1,2)"}),
    (r"(0,9) \cup (9,36)", MATHS, "element", {"(0,9)", "(9,36)"}),
    ("(3,4]", MATHS, "bracket", {"[3,4]", "(3,4)"}),
    (r"\left[-\frac{1}{2}, 2\right)", MATHS, "bracket",
     {r"\left(-\frac{1}{2}, 2\right)", r"\left[-\frac{1}{2}, 2\right]"}),
    (r"(-\infty, 0]", MATHS, "bracket", {r"(-\infty, 0)"}),
    (r"x \in [-2,7]", MATHS, "bracket", {r"x \in (-2,7]", r"x \in [-2,7)"}),
    (r"(-\infty,2) \cup (3,\infty)", MATHS, "bracket",
     {r"(-\infty,2] \cup (3,\infty)", r"(-\infty,2) \cup [3,\infty)"}),
]  # fmt: skip
# Gold answers that no change of a kind makes another answer for certain.
NEVER: list[tuple[str, GoldKind, NearMissKind]] = [
    ("0", "number", "sign"),
    ("0.0", "number", "sign"),
    (r"0 \text{ cm}", "number", "unit"),
    (r"5 \text{ apples}", "number", "unit"),
    ("90", "number", "unit"),
    ("3.14159", "number", "digit"),  # decimals are rounded
    ("0x + 5", MATHS, "digit"),
    ("(-1)^{2}", MATHS, "sign"),
    ("x^2 = 0", MATHS, "digit"),
    ("5x = 0", MATHS, "digit"),
    ("(2-x)(x-2)", MATHS, "sign"),
    (r"i^2", MATHS, "digit"),
    ("x^2+C", MATHS, "digit"),  # C may be anything
    (r"\frac{\pi}{2} + k\pi", MATHS, "digit"),
    (r"\frac{n\pi}{2}, n \in \mathbb{Z}", MATHS, "letter"),
    (r"\pm 3", MATHS, "sign"),
    ("f(x)=x^2", MATHS, "letter"),
    ("-2 < x < 7", MATHS, "letter"),
    ("twelve", "number", "letter"),
    (r"\sin 2x", MATHS, "digit"),
    ("1, 1", MATHS, "element"),
    (r"\{\frac{1}{2}, \frac{2}{4}, 3\}", MATHS, "element"),
    (r"\{2,2,3\}", MATHS, "digit"),
    (r"\{2\}", MATHS, "element"),
    ("(1,2)", MATHS, "element"),
    ("(2,1)", MATHS, "bracket"),  # a point
    ("(a,b)", MATHS, "bracket"),
    (r"\{a,b\}", MATHS, "element"),
    ("[1,1]", MATHS, "bracket"),
    (r"(-\infty,\infty)", MATHS, "bracket"),
    (r"[1,2] \cup [2,3]", MATHS, "bracket"),
    (r"(1,5) \cup (2,3)", MATHS, "element"),
    (r"(1,2) \cup (2,3)", MATHS, "digit"),
    ("7_8", MATHS, "base"),
    ("增函数", "words", "letter"),
]


@pytest.mark.parametrize(("gold", "kind", "changed", "answers"), MADE)
def test_near_misses_of_every_kind_are_made(
    gold: str, kind: GoldKind, changed: NearMissKind, answers: set[str]
) -> None:
    assert {each.answer for each in near_misses(gold, kind) if each.kind == changed} == answers


def test_every_kind_has_an_example() -> None:
    assert {changed for *_, changed, _ in MADE} == set(get_args(NearMissKind))


@pytest.mark.parametrize(("gold", "kind", "changed"), NEVER)
def test_what_may_change_nothing_is_not_changed(
    gold: str, kind: GoldKind, changed: NearMissKind
) -> None:
    assert [each for each in near_misses(gold, kind) if each.kind == changed] == []


@pytest.mark.parametrize(
    "gold", ["", " ", "7" * (LONGEST + 1), "{", r"\frac{1}{", "9^{9^{9^{9}}}!"]
)
def test_what_has_no_known_form_has_none(gold: str) -> None:
    assert near_misses(gold, MATHS) == ()


def test_programs_have_none() -> None:
    assert near_misses('{"prompt": "", "test": "", "entry_point": "f"}', "program") == ()


numbers = st.one_of(
    st.integers(-(10**12), 10**12).map(str),
    st.fractions(max_denominator=999).map(
        lambda f: rf"{'-' * (f < 0)}\frac{{{abs(f.numerator)}}}{{{f.denominator}}}"
    ),
    st.fractions(max_denominator=999).map(str),
    st.decimals(-99, 99, places=2).map(str),
    st.integers(1000, 10**9).map("{:,}".format),
)
units = st.sampled_from(["", r"\%", r"^\circ", r" \text{ cm}", r"\text{ hours}", " cm"])


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(numbers, units)
def test_a_near_miss_of_a_number_is_another_number(number: str, unit: str) -> None:
    """The grader decides them all, by fractions."""
    gold = number + unit
    for each in near_misses(gold, "number"):
        assert compare(gold, each.answer, "math") is False, each


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(st.lists(numbers.filter(lambda text: "," not in text), min_size=2, max_size=4, unique=True),
       st.sampled_from([("", ""), ("(", ")"), (r"\{", r"\}"), ("[", ")")]))  # fmt: skip
def test_a_near_miss_of_several_numbers_is_another_answer(
    parts: list[str], brackets: tuple[str, str]
) -> None:
    gold = f"{brackets[0]}{','.join(parts)}{brackets[1]}"
    for each in near_misses(gold, MATHS):
        assert compare(gold, each.answer, "math") is False, each


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(1, 999))
def test_near_misses_of_fractions_are_other_fractions(top: int, bottom: int) -> None:
    """Checked without the grader."""
    for each in near_misses(f"{top}/{bottom}", "number"):
        assert Fraction(each.answer) != Fraction(top, bottom)


anything = st.one_of(
    st.text("\\{}()[]fracsqt$ 0123456789,.%^_-+/xyπ<=|&", max_size=40),
    st.sampled_from(sorted({row[0] for row in corpus.MATH})),
)


@settings(max_examples=500, deadline=None)
@given(anything, st.sampled_from(get_args(GoldKind)))
def test_all_are_other_texts_few_and_the_same_again(gold: str, kind: GoldKind) -> None:
    made = near_misses(gold, kind)
    assert made == near_misses(gold, kind)
    answers = [each.answer for each in made]
    assert len(set(answers)) == len(answers) and gold.strip() not in answers
    for changed in get_args(NearMissKind):
        assert sum(each.kind == changed for each in made) <= MOST
