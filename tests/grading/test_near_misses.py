r"""Near misses of gold answers: which are made, which are not, and what holds for all of them."""

from __future__ import annotations

import contextlib
import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.nearmiss import MOST, near_misses
from benchmarks.nearmiss.changes import KINDS, NearMissKind
from benchmarks.nearmiss.reading import as_words, differ
from dto.grading import Grader
from tests.grading import corpus

SHARED = Path(__file__).parents[2] / "../shared/data"

# Gold answer, kind, a near miss that must be among those made when all are asked for.
MADE: list[tuple[str, NearMissKind, str]] = [
    ("7", "sign", "-7"),
    ("-7", "sign", "7"),
    (r"-\frac{1}{2}", "sign", r"\frac{1}{2}"),
    ("x=5", "sign", "x=-5"),
    ("6 - 5i", "sign", "6 + 5i"),
    ("(-2,1)", "sign", "(2,1)"),
    (r"x^{-2}", "sign", "x^{2}"),
    ("127", "digit", "128"),
    ("127", "digit", "1127"),
    ("127", "digit", "12"),
    ("127", "digit", "217"),
    (r"10,\!080", "digit", r"10,\!081"),
    ("58,500", "digit", "58,400"),
    ("27", "scale", "270"),
    ("27", "scale", "2700"),
    ("27", "scale", "2.7"),
    ("27", "scale", "0.27"),
    ("3.21", "scale", "321"),
    ("58,500", "scale", "58"),
    ("3, 5, 7", "element", "3, 7"),
    ("1,-2", "element", "1"),
    (r"\{1,2\}", "element", r"\{1\}"),
    (r"\{1,2\}", "element", r"\{1,2, 97\}"),
    ("(1,2,3)", "element", "(1,3)"),
    (r"(0,9) \cup (9,36)", "element", "(0,9) "),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "element", r"\begin{pmatrix} 1  \end{pmatrix}"),
    ("(1,2)", "order", "(2,1)"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", "order", r"\begin{pmatrix} 2 & 1 \end{pmatrix}"),
    ("(3,4]", "bracket", "[3,4]"),
    ("(3,4]", "bracket", "(3,4)"),
    (r"(-\infty, 0]", "bracket", r"(-\infty, 0)"),
    ("6c", "letter", "6"),
    (r"2\theta", "letter", "2"),
    (r"\alpha\beta", "sign", r"-\alpha\beta"),
    ("(x,y)=(1,2)", "digit", "(x,y)=(1,3)"),
    ("8-3h", "letter", "8-3"),
    ("5r^5", "letter", "5"),
    ("f''", "letter", "f'"),
    (r"\text{Evelyn}", "letter", r"\text{Evleyn}"),
    (r"\text{(C)}", "letter", r"\text{(D)}"),
    (r"5 \text{ cm}", "unit", r"5 \text{ km}"),
    (r"5 \text{ cm}", "unit", r"5 \text{ kg}"),
    (r"15\mbox{ cm}^2", "unit", r"15\mbox{ cm}"),
    (r"15\mbox{ cm}^2", "unit", r"15\mbox{ cm}^3"),
    (r"\$36", "unit", "€36"),
    (r"90^\circ", "unit", r"90\text{ radians}"),
    ("204_5", "base", "204_6"),
    ("4210_{5}", "base", "4210_{6}"),
    ("x^2", "exponent", "x"),
    ("x^2", "exponent", "x2"),
    ("2^{10}", "exponent", "210"),
    (r"\frac{14}{3}", "fraction", r"\frac{3}{14}"),
    (r"\frac43", "fraction", r"\frac{3}{4}"),
    ("1/2", "fraction", "2/1"),
    (r"\frac{1}{2}", "fraction", "12"),
    ("2k+2", "term", "2k"),
    ("x^3+3x-6", "term", "x^3-6"),
    (r"\cot x", "function", r"\tan x"),
    (r"\sqrt{51}", "function", "51"),
    (r"3\sqrt{13}", "function", r"3\sqrt[3]{13}"),
    (r"12\pi", "function", "12"),
    ("x > 3", "relation", r"x \ge  3"),
    (r"x \le 3", "relation", "x < 3"),
    (r"(0,1) \cup (2,3)", "relation", r"(0,1) \cap  (2,3)"),
    (r"1 \pm \sqrt{19}", "plus_minus", r"1 + \sqrt{19}"),
    (r"27\%", "percent", "27"),
    ("(a+5)(b+2)", "grouping", "(a+5)b+2"),
]  # fmt: skip

# Two texts of which the reader must not say that they differ.
NOT_SHOWN = [
    ("0", "-0"),
    ("1,2", "2,1"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\{1,1,2\}", r"\{1,2\}"),
    ("(1,1)", "(1,1)"),
    ("x^2", "(-x)^2"),
    ("x+1", "1+x"),
    ("(x+1)^2", "x^2+2x+1"),
    ("x=5", "5=x"),
    ("2x+y=3", "4x+2y=6"),
    ("x>3", "3<x"),
    ("x>3", "-x<-3"),
    (r"5\text{ m}", r"500\text{ cm}"),
    (r"5\text{ m}", "5"),
    ("5 m", "500 cm"),
    (r"1\text{ m}^2", r"10000\text{ cm}^2"),
    (r"30^\circ", r"30\text{ degrees}"),
    ("27%", "0.27"),
    ("0.333333", r"\frac{1}{3}"),
    ("3.14159", "3.14158"),
    (r"0.\overline{9}", "1"),
    (r"1\frac{1}{2}", "1.5"),
    ("3:2", "6:4"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("4^{1/2}", "2"),
    (r"\pm 3", "3, -3"),
    (r"\pm 3", r"\mp 3"),  # it cannot read one of them
    ("1010_2", "10"),
    (r"\binom{5}{2}", r"\binom{5}{3}"),
    (r"\text{East}", "east"),
    (r"\lfloor x \rfloor", r"\lceil x \rceil"),
    (r"x \in [0,1]", "[0,1]"),
    ("10,080", r"10{,}080"),
    ("abs(x)", "abs(-x)"),
    ("5 m", "5"),
    ("4 2/3", r"\frac{14}{3}"),
    (r"33\frac{1}{3}\%", r"\frac{1}{3}"),
    (r"(x,y)=(1,2)", r"(x,y)=(1,2.0)"),
    ("", "7"),
]
# Golds of which a change of this kind would be no other answer.
NEVER: list[tuple[str, NearMissKind]] = [
    ("0", "sign"),
    ("0", "scale"),
    ("(1,1)", "order"),
    (r"\{2,2\}", "order"),
    ("1,2", "order"),
    (r"(-\infty,\infty)", "bracket"),
    ("(2,1)", "bracket"),  # a point, no interval
    (r"x \in [-2,7]", "letter"),
    ("-2 < x < 7", "letter"),
    ("f(x)=x^2", "letter"),
    ("x^2+C", "letter"),
    ("x^2=0", "exponent"),
    ("7_8", "base"),
    ("90", "unit"),
    ("7", "percent"),
    ("(a+b)c", "order"),
    ("abs(x)", "sign"),
    ("2m", "letter"),  # metres to us
    (r"\mathbb{R}", "letter"),
]


@pytest.mark.parametrize(("gold", "kind", "answer"), MADE)
def test_near_misses_of_every_kind_are_made(gold: str, kind: NearMissKind, answer: str) -> None:
    made = {each.answer for each in near_misses(gold, most=100) if each.kind == kind}
    assert answer in made


def test_every_kind_has_an_example() -> None:
    assert {kind for _, kind, _ in MADE} == set(KINDS)


@pytest.mark.parametrize(("one", "other"), NOT_SHOWN)
def test_what_may_be_equal_is_not_said_to_differ(one: str, other: str) -> None:
    assert not differ(one, other) and not differ(other, one)


@pytest.mark.parametrize(("gold", "kind"), NEVER)
def test_what_changes_nothing_is_no_near_miss(gold: str, kind: NearMissKind) -> None:
    assert [each for each in near_misses(gold, most=100) if each.kind == kind] == []


@pytest.mark.parametrize("gold", ["", " ", "7" * 501, "{", r"\frac{1}{", "9^{9^{9^{9}}}!", "好"])
def test_what_cannot_be_read_or_changed_has_none_or_few(gold: str) -> None:
    assert all(differ(gold, each.answer) for each in near_misses(gold))


def test_letters_of_options_are_exchanged_left_out_and_added() -> None:
    made = {(each.kind, each.answer) for each in near_misses("(C)", "choice")}
    assert made >= {("letter", "(A)"), ("letter", "(B)"), ("element", "(CD)")}
    several = {(each.kind, each.answer) for each in near_misses("AC", "choice", most=9)}
    assert several >= {("element", "A"), ("element", "C"), ("element", "ACB"), ("letter", "BC")}
    assert near_misses('{"prompt": "", "test": "", "entry_point": "f"}', "code") == ()


def test_a_sign_of_percent_may_be_left_out_where_the_question_asks_for_one() -> None:
    assert "percent" in {each.kind for each in near_misses("27%")}
    assert "percent" not in {each.kind for each in near_misses("27%", percent=True)}


def test_the_reader_finds_equal_what_the_corpus_calls_equal() -> None:
    """In the notations of mathematics; of what may be left out beside them it knows less."""
    groups = (
        corpus.NUMBERS, corpus.THOUSANDS, corpus.FRACTIONS, corpus.DECIMALS, corpus.SCIENTIFIC,
        corpus.RADICALS, corpus.TUPLES, corpus.MATRICES,
    )  # fmt: skip
    rows = [row for group in groups for row in group if row[2]]
    assert [row for row in rows if differ(*row[:2])] == []


golds = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.fractions(max_denominator=500).map(
        lambda f: rf"\frac{{{f.numerator}}}{{{f.denominator}}}" if f.denominator > 1 else str(f)
    ),
    st.lists(st.integers(-30, 30), min_size=2, max_size=4).map(
        lambda xs: f"({', '.join(map(str, xs))})"
    ),
    st.lists(st.integers(-30, 30), min_size=2, max_size=4).map(
        lambda xs: rf"\{{{','.join(map(str, xs))}\}}"
    ),
    st.tuples(st.integers(-9, 9), st.integers(1, 9), st.sampled_from("xyzkh")).map(
        lambda t: f"{t[1]}{t[2]}^2{t[0]:+d}"
    ),
    st.sampled_from(sorted({row[0] for row in corpus.MATH})),
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(golds)
def test_all_differ_are_named_bounded_and_the_same_again(gold: str) -> None:
    made = near_misses(gold)
    assert made == near_misses(gold)
    answers = [each.answer for each in made]
    assert len(set(answers)) == len(answers) and gold not in answers
    for kind in KINDS:
        assert sum(each.kind == kind for each in made) <= MOST
    for answer in answers:
        assert as_words(gold) or differ(gold, answer)


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(1, 999))
def test_near_misses_of_numbers_are_other_numbers(top: int, bottom: int) -> None:
    """Checked without the reader."""
    for each in near_misses(f"{top}/{bottom}"):
        with contextlib.suppress(ZeroDivisionError):
            assert Fraction(each.answer) != Fraction(top, bottom)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.text("\\{}()[]fracsqt$ 0123456789,.%^_-+/xyπ<=|&", max_size=40))
def test_any_text_can_be_changed(gold: str) -> None:
    assert near_misses(gold) == near_misses(gold)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared test data is not here")
async def test_near_misses_of_public_gold_answers_are_graded_wrong() -> None:
    """A third of those of MATH-500 that are no plain integers; `benchmarks.grading` has all."""
    lines = (SHARED / "math500.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {str(json.loads(line)["answer"]) for line in lines if line.strip()}
    tried = [
        (gold, each)
        for gold in sorted(answers)[::3]
        if not gold.lstrip("-").isdigit()
        for each in near_misses(gold, most=1)
    ]
    async with Grader(workers=2) as grader:
        right = [
            (gold, each)
            for gold, each in tried
            if (await grader.grade_answer(each.answer, gold, "math")).grade == "correct"
        ]
    assert len(tried) > 200
    assert len(right) <= len(tried) / 200, right
