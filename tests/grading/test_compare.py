r"""What equals what, false positives included, and the fast path against math-verify."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.grading import Grader
from dto.grading.compare import clean, compare, normalise
from dto.grading.pool import WorkerPool
from dto.grading.quantity import quantity

MATH = [
    # gold, prediction, equal
    ("7", "7", True),
    ("7", "07", True),
    ("7", "7.0", True),
    ("7", "7.", True),
    ("7", "７", True),
    ("7", "$7$", True),
    ("7", r"\text{7}", True),
    ("7", "8", False),
    ("7", "70", False),
    ("7", "-7", False),
    ("-7", "−7", True),
    ("27", "2700", False),
    ("27", "2.7", False),
    ("27", "27%", False),
    ("27", r"27\%", False),
    ("27%", "27", False),
    ("27%", "0.27", True),
    ("0.27", r"27\%", True),
    ("27%", r"27\%", True),
    ("27%", r"\frac{27}{100}", True),
    ("27%", r"27 \text{ percent}", True),
    ("27%", "28%", False),
    ("1000", "1,000", True),
    ("1000", "1{,}000", True),
    (r"10,\!080", "10080", True),
    ("1000", "1,00", False),
    ("1,2", "1.2", False),
    ("12", "1 2", False),
    ("12", "1,2", False),
    (r"\frac{1}{2}", r"\frac12", True),
    (r"\frac{1}{2}", r"\dfrac{1}{2}", True),
    (r"\frac{1}{2}", "1/2", True),
    (r"\frac{1}{2}", "0.5", True),
    (r"\frac{1}{2}", ".5", True),
    (r"\frac{1}{2}", r"\frac{2}{4}", True),
    (r"\frac{1}{2}", r"\frac{2}{1}", False),
    (r"\frac{1}{2}", r"\frac{1}{0}", False),
    (r"1\frac{4}{5}", "1.8", True),
    (r"1\frac{4}{5}", r"\frac{4}{5}", False),
    (r"\frac{1}{3}", "0.333333", True),
    (r"\frac{1}{3}", "0.33", False),
    (".0000672", "0.000067", False),
    ("4", "4.000001", False),
    (r"90^\circ", "90", True),
    (r"90^{\circ}", "90°", True),
    (r"5\text{ cm}", "5", True),
    ("5", r"5 \mbox{ inches}^2", True),
    (r"\$18.90", "18.9", True),
    ("18", "18 dollars", True),
    ("5", r"5\text{ million}", False),
    ("5000000", r"5\text{ million}", True),
    ("5", r"5\text{ or more}", False),
    ("7", "5 or 7", False),
    ("7", r"7 \text{ or } 8", False),
    ("7", "7, 8", False),
    ("7", "not 7", False),
    ("7", r"\sqrt{49}", True),
    ("2", "2x", False),
    ("x=5", "5", True),
    ("x=5", "y=5", False),
    ("204_5", "204_{5}", True),
    ("204_5", "204_8", False),
    (r"11\sqrt2", r"11\sqrt{2}", True),
    (r"11\sqrt2", r"2\sqrt{11}", False),
    ("(0,1)", r"\left( 0, 1 \right)", True),
    ("(0,1)", "[0,1]", False),
    ("(1,2)", "(2,1)", False),
    ("(1,2)", "(1.0, 2)", True),
    ("(1,2)", "(1,3)", False),
    ("(1,2)", "(1,2,3)", False),
    ("(1,234)", "1234", False),
    (r"(0.5,1)", r"\left(\frac12, \frac{2}{2}\right)", True),
    (r"(\frac{1}{3},1)", "(0.333333, 1)", True),
    (r"[0,1)", r"\left[0, 1\right)", True),
    (r"[0,1)", r"(0,1]", False),
    ("1,2", "2,1", True),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)", True),
    (r"(-\infty, 2) \cup (3, \infty)", r"(-\infty,2)\cup(3,\infty)", True),
    ("x+1", "1+x", True),
    ("x+1", "x-1", False),
    ("6-5i", "-5i + 6", True),
    ("3.14", r"\pi", False),
    (r"\text{Evelyn}", "Evelyn", True),
    (r"\text{east}", "seat", False),
    ("east", "seat", False),
    (r"\text{June 20}", "June 20", True),
    (r"\text{June 20}", "June 21", False),
    (r"\text{even}", r"\text{odd}", False),
    ("7", "", False),
    ("7", "{}", False),
    ("7", "I do not know", False),
]

# Right by our rules, though math-verify, which reads letters outside \text{} as variables, says no.
MORE_THAN_MATH_VERIFY = {("18", "18 dollars"), (r"\text{June 20}", "June 20")}
# Right by our rules: math-verify ignores every \text{} after a number.
SCALED = {("5000000", r"5\text{ million}")}

CHOICE = [
    ("C", "C", True),
    ("C", "c", True),
    ("C", "(C)", True),
    ("C", r"\text{C}", True),
    ("C", r"\text{(C)}", True),
    (r"\text{(C)}", "C.", True),
    ("C", "C) 42", True),
    ("C", "(C) the third", True),
    ("C", "Option C", True),
    ("C", "**C**", True),
    ("C", "B", False),
    ("A", "A dog", False),
    ("C", "ABC", False),
    ("C", "A, C", False),
    ("C", "", False),
]


async def test_the_table_holds():
    async with Grader(workers=2) as grader:
        found = [
            (gold, prediction, (await grader._grade(prediction, gold, "math")).grade)
            for gold, prediction, _ in MATH
        ]
    expected = [(gold, text, "correct" if equal else "wrong") for gold, text, equal in MATH]
    assert [row for row in found if row not in expected] == []


async def test_the_fast_path_calls_nothing_right_that_math_verify_calls_wrong():
    decided = {(gold, text) for gold, text, _ in MATH if compare(gold, text, "math")}
    assert len(decided) > 30
    pool = WorkerPool(2, 5.0)
    refuted = {pair for pair in decided if not await pool.equal(clean(pair[0]), clean(pair[1]))}
    await pool.close()
    assert refuted == MORE_THAN_MATH_VERIFY | SCALED


@pytest.mark.parametrize(("gold", "prediction", "equal"), CHOICE)
def test_letters(gold, prediction, equal):
    assert compare(gold, prediction, "choice") is equal


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**4), st.integers(1, 9))
def test_every_way_to_write_a_fraction_is_the_same_number(top, bottom, factor):
    sign = "-" if top < 0 else ""
    forms = [
        rf"{sign}\frac{{{abs(top)}}}{{{bottom}}}",
        rf"{sign}\dfrac{{{abs(top) * factor}}}{{{bottom * factor}}}",
        f"{top}/{bottom}",
    ]
    for form in forms:
        found = quantity(clean(form))
        assert found is not None and found.value == Fraction(top, bottom)
        assert compare(forms[0], form, "math") is True
    assert compare(forms[0], f"{top + bottom}/{bottom}", "math") is False


@given(st.text("\\{}()[]boxedtfracsq$ 0123456789,.%^_-+/xyπ％７", max_size=60))
def test_any_text_can_be_normalised_and_equals_itself(text):
    assert normalise(normalise(text)) == normalise(normalise(normalise(text)))
    compare("7", text, "math")
    compare(text, "7", "choice")
    if normalise(text):
        assert compare(text, text, "math") is True
