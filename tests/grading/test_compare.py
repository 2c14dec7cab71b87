r"""What equals what, false positives included, and the fast path against math-verify."""

import asyncio
import contextlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.grading import Grader
from dto.grading.compare import asks_for_percentage, compare
from dto.grading.notation import bare, clean
from dto.grading.pool import ComparisonError, WorkerPool
from dto.grading.quantity import quantity
from tests.grading import corpus

# Right by our rules; math-verify takes letters outside \text{} for variables, ignores every \text{}
# after a number, and reads neither periods nor Chinese.
BEYOND_MATH_VERIFY = (
    corpus.UNITS, corpus.MONEY, corpus.CHINESE, corpus.TIMES, corpus.WORDS, corpus.THOUSANDS,
    corpus.DECIMALS,
)  # fmt: skip
FURTHER = {
    (r"\frac{14}{3}", "4 2/3"),
    (r"1.2\times10^{5}", "1.2e5"),
    (r"33\frac{1}{3}\%", r"\frac{1}{3}"),
    ("百分之27", "27%"),
    ("[-2, 7]", r"-2 \le x \le 7"),
    (r"1,2,\ldots,10", r"1, 2, \dots, 10"),
}
PERCENT_QUESTIONS = [
    ("What percent of 80 is 20?", True),
    ("What percentage of the students passed?", True),
    ("By how many percent did the price rise?", True),
    ("By what percent is it larger?", True),
    ("Find the percent increase.", True),
    ("What is the total percentage of girls?", True),
    ("What is his overall profit percentage?", True),
    ("What is the price after a discount of 20 percent?", False),
    ("What's the percentage chance that he wins?", True),
    ("What is the probability, expressed as a percentage, that both win?", True),
    ("Which percentage of goats is 30%?", True),
    ("If it's off by the same percentage, what temperature should she set?", False),
    ("Find the percentage of red balls.", True),
    ("Express your answer as a percent.", True),
    ("Give the answer as a common percentage.", True),
    ("Write the probability in percent.", True),
    ("今年比去年增长百分之几？", True),
    ("及格率是百分之多少？", True),
    ("A shirt has a 20% discount. What is its price?", False),
    ("If 20 percent of a number is 8, what is the number?", False),
    ("A bank pays 5 percent interest. How much is there after a year?", False),
    ("What percent of 80 is 20? Express your answer as a decimal.", False),
    ("What fraction is shaded?", False),
    ("", False),
]


@pytest.fixture(scope="module")
def grade():
    """Grades many answers in one event loop, with one pool."""

    def work(rows, rule, question=""):
        async def graded():
            async with Grader(workers=2) as grader:
                return [
                    (gold, text, await grader.grade_answer(text, gold, rule, question), why)
                    for gold, text, _, why in rows
                ]

        return asyncio.run(graded())

    return work


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "rule", "question"),
    [
        (corpus.MATH, "math", ""),
        (corpus.CHOICE, "choice", ""),
        (corpus.PERCENT, "math", "What percent of the balls are red?"),
    ],
)
def test_the_corpus_holds(grade, rows, rule, question):
    found = [(gold, text, one.grade, why) for gold, text, one, why in grade(rows, rule, question)]
    expected = [
        (gold, text, "correct" if equal else "wrong", why) for gold, text, equal, why in rows
    ]
    assert [row for row in found if row not in expected] == []


def test_the_corpus_is_large_and_says_why():
    rows = [*corpus.MATH, *corpus.PERCENT, *corpus.CHOICE]
    assert len(rows) > 500
    assert sum(not equal for _, _, equal, _ in rows) > 200
    assert all(why for *_, why in rows)
    assert len({row[:2] for row in corpus.MATH}) == len(corpus.MATH)


@pytest.mark.slow
async def test_the_fast_path_calls_nothing_right_that_math_verify_calls_wrong():
    decided = {row[:2] for row in corpus.MATH if compare(*row[:2], "math")}
    assert len(decided) > 150
    beyond = {row[:2] for group in BEYOND_MATH_VERIFY for row in group} | FURTHER
    pool = WorkerPool(2, 5.0, "benchmarks.graders.published")
    refuted = set()
    for pair in decided:
        with contextlib.suppress(ComparisonError):
            if not await pool.equal(*map(clean, pair)):
                refuted.add(pair)
    await pool.close()
    assert refuted - beyond == set()


@pytest.mark.parametrize(("question", "asks"), PERCENT_QUESTIONS)
def test_which_questions_ask_for_a_percentage(question, asks):
    assert asks_for_percentage(question) is asks


@pytest.mark.slow
@pytest.mark.parametrize(
    "gold", [r"\frac{1}{", "{", r"\sqrt", "}{", r"\begin{pmatrix} 1", "f^", "??"]
)
async def test_a_gold_answer_that_cannot_be_read_is_not_guessed(gold):
    async with Grader(workers=1) as grader:
        assert (await grader.grade_answer("x+1", gold, "math"))[::2] == (
            "failed",
            "unreadable_gold",
        )
        assert (await grader.grade_answer("7", gold, "math")).grade == "failed"
        assert (await grader.grade_answer("", gold, "math")).grade == "failed"
        assert (await grader.grade_answer(gold, gold, "math")).grade == "failed"
        assert (await grader.grade_answer(f"{gold}.", gold, "math")).grade == "failed"
        assert (await grader.grade_answer("1+x", "x+1", "math")).grade == "correct"


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
    once = bare(clean(text))
    assert bare(clean(bare(clean(once)))) == bare(clean(bare(clean(bare(clean(once))))))
    compare("7", text, "math")
    compare(text, "7", "choice")
    if once:
        assert compare(text, text, "math") is True


@pytest.mark.parametrize(
    "part", ["1 a and ", "1a,", "1,1,", "3时", "(A) and ", "A, ", "(A)", "1 ", r"1\text{m}"]
)
def test_long_answers_that_match_almost_are_decided(part):
    """Each of these would take for ever where a pattern can match its repetitions in two ways."""
    text = part * (1900 // len(part)) + "!"
    assert compare("7", text, "math") is not True
    assert compare("C", text, "choice") is False
