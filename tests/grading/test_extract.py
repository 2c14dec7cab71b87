r"""Where answers stand, and that no text is too odd to be searched."""

import asyncio
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.grading import Grader
from dto.grading.extract import (
    closing_brace,
    final_answer,
    final_boxes,
    last_box,
    list_length,
    trial_answer,
)
from dto.grading.wording import before_clause, options
from tests.grading import responses

CASES = Path("../shared/data/grading-cases.jsonl")


@pytest.mark.parametrize(
    ("conclusion", "answer"),
    [
        (r"**Final Answer**" + "\n" + r"\boxed{6}", "6"),
        (r"first \boxed{3}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\frac{3}{4}\sqrt2} and \boxed{unfinished", None),
        (r"\boxed{12 and then \boxed{3}", "3"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\text{a} \boxed{5}}", "5"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\\boxed{7}", "7"),
        (r"\boxed{}", ""),
        (r"\boxed{1}} }} {", "1"),
        ("The final answer is 7.", "7"),
        ("The answer is 3.5. It was hard.", "3.5"),
        ("Answer: $x^2$", "x^2"),
        ("**Answer:** 12", "12"),
        ("**Final Answer**\n\n42", "42"),
        ("答案是 7。", "7"),
        ("答案为：7", "7"),
        ("最终答案：**7**", "7"),
        ("答：7个苹果。", "7个苹果"),
        ("综上，故选 B。", "B"),
        ("所以选择（C）", "（C）"),
        ("本题选：D", "D"),
        ("我选择了另一种方法", None),
        (r"答案是 8，不对，\boxed{7}。", "7"),
        ("the answer is 3. Wait. The answer is 4.", "4"),
        (r"The answer is \(7\).", "7"),
        ("42", "42"),
        ("**(C)**", "(C)"),
        ("we get 3 apples and 4 pears", None),
        ("I added 3 and 4.\nThen 5.", None),
        ("", None),
        ("   \n", None),
    ],
)
def test_the_answer_of_a_conclusion(conclusion, answer):
    assert final_answer(conclusion) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("{7}", "7"),
        (r"\boxed{7}", "7"),
        (r"{\frac{3}{4}\sqrt2} and more } text", r"\frac{3}{4}\sqrt2"),
        (r"{\{1\}}", r"\{1\}"),
        (r"{a \\{b} c}", r"a \\{b} c"),
        (r"{\boxed{7}}", "7"),
        ("{}", ""),
        ("{ }", ""),
        ("{7", None),
        (r"{\frac{3}{4}", None),
        (r"{7\}", None),
        (r"\boxed", None),
        ("", None),
        ("{", None),
        (r"\boxed 7", ""),
        ("7}", ""),
    ],
)
def test_the_answer_of_a_trial(text, answer):
    assert trial_answer(text) == answer


BALANCED = st.recursive(
    st.text("ab7 +", max_size=5),
    lambda inner: st.lists(inner, max_size=4).map(lambda parts: "{" + "x".join(parts) + "}"),
    max_leaves=12,
)


@given(BALANCED, st.text("ab} ", max_size=10))
def test_braces_are_matched(inside, after):
    assert closing_brace("{" + inside + "}" + after, 0) == len(inside) + 1
    assert trial_answer("{" + inside) is None
    assert last_box(r"\boxed{" + inside + "}" + after) == inside.strip()


@given(st.text("\\{}boxed answer is:\n*$7。", max_size=80))
def test_any_text_can_be_searched(text):
    def bare(answer):  # emphasis within an answer goes, and the items of a list are joined
        return "".join(character for character in answer if character not in "*$ \n,")

    for found in (final_answer(text), trial_answer(text)):
        assert found is None or bare(found) in bare(text)


WORDS = ["answer", " is ", "(B)", "B", " or ", "not ", "option ", "\n", "choose ", "I ", ". ", "C"]


@given(st.lists(st.sampled_from([*WORDS, "correct", "####", "答え", "Antwort ", "1", "因为", "?"])))
def test_any_prose_can_be_searched_for_options(words):
    found = final_answer("".join(words), "choice")
    assert found is None or len(found) <= 2_000
    options("".join(words))


UNITS = [
    "{", "}", "\\", r"\boxed{", " ", "answer is ", "7", "\\{", "answer ", "answer to ", "Antwort ",
    "答", "选", "正解", "\n", "$", "- 7\n", "#### 7\n", "#### a b\n", ", so ", ", since ", "(",
    "**", r"\boxed{7} and ", r"\boxed 7 ", r"\boxed ", "```\n", "B is correct. ", " is ",
    "it's ", "I choose ", "leaving ", "A, ", "(A) ", "the correct answer is ", "answer: ",
    "<answer>", '"',
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("rule", ["math", "choice"])
def test_ten_megabytes(unit, rule):
    text = unit * (10_000_000 // len(unit))
    assert final_answer(text + r"\boxed{7} x", "math") == "7"
    assert final_answer(text + r"\boxed{B} x", "choice").endswith("B")
    final_answer(text, rule)
    final_boxes(text)
    trial_answer(text)
    options(text[:2_000])
    before_clause(text[:2_000])
    list_length(text[:2_000])


@pytest.fixture(scope="module")
def grades():
    """The grades of rows (gold, response, rule, …) from one grader."""

    def work(rows, **settings):
        async def graded():
            async with Grader(workers=2, **settings) as grader:
                return [
                    (await grader.grade_conclusion(response, gold, rule)).grade
                    for gold, response, rule, *_ in rows
                ]

        return asyncio.run(graded())

    return work


@pytest.mark.slow
def test_answers_are_found_in_whole_responses(grades):
    rows = responses.RESPONSES
    found = grades(rows)
    assert [
        (row, grade) for row, grade in zip(rows, found, strict=True)
        if grade != ("correct" if row[3] else "wrong")
    ] == []  # fmt: skip


def test_the_responses_are_many_and_have_near_misses():
    for group in (
        responses.HASHES, responses.STATED_OPTIONS, responses.BEHIND, responses.BELOW,
        responses.OPTION_BEATS_BOX, responses.LANGUAGES, responses.OPEN_BOXES,
        responses.SEVERAL_BOXES, responses.BOX_FORMS, responses.FENCES,
    ):  # fmt: skip
        right = Counter(row[3] for row in group)
        assert len(group) >= 15 and min(right[True], right[False]) >= 4
    rows = responses.RESPONSES
    assert len({row[:3] for row in rows}) == len(rows) and all(row[4] for row in rows)


@pytest.mark.slow
def test_programs_are_found_in_whole_responses(grades):
    rows = responses.FENCES
    found = grades(rows, allow_code_execution=True)
    assert [
        (row[1], grade) for row, grade in zip(rows, found, strict=True)
        if grade != ("correct" if row[3] else "wrong")
    ] == []  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not CASES.exists(), reason="the shared cases are not here")
def test_the_shared_cases(grades):
    lines = CASES.read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    rows = [(case["gold"], case["output"], case.get("answer_kind", "math")) for case in cases]
    found = grades(rows, allow_code_execution=True)
    assert found == [case["expected"] for case in cases]


OPENINGS = [
    "The answer is {}.", "**Answer:** {}", "#### {}", "The correct option is {}.", "Answer {}",
    "So {} is the correct answer.", "I'd go with {}.", "It must be {}, since it is even.",
    r"\boxed{{{}}}", r"\boxed{{\text{{{}}}}}", "Die Antwort ist {}.", "正解は{}です。", "答案：{}",
]  # fmt: skip


def test_another_letter_or_number_in_the_same_form_is_wrong(grades):
    """Each form with each of several golds: right only where the answer is the gold answer."""
    rng = random.Random(7)
    rows, expected = [], []
    for form in OPENINGS:
        for gold in "ABCD":
            for given_ in "ABCD":
                rows.append((gold, form.format(given_), "choice"))
                expected.append("correct" if gold == given_ else "wrong")
    for form in ("The answer is {}.", "#### {}", r"\boxed{{{}}}", "Final Answer\n\n**{}**"):
        for _ in range(20):
            gold = rng.randrange(10, 10_000)
            near = rng.choice((gold + 1, gold * 10, -gold, gold // 10, int(str(gold)[::-1]) + 2))
            for value in (gold, near):
                rows.append((str(gold), form.format(value), "math"))
                expected.append("correct" if value == gold else "wrong")
    assert grades(rows) == expected


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        ("3", 1), ("3, 5", 2), ("(3, 5)", 1), (r"\{3, 5\}", 1), ("1,000", 1), ("1,000, 5", 2),
        (r"3 \text{ and } 5", 2), ("3 or 5", 2), ("x=3; y=5", 2), ("1, 2, 3", 3), ("", 1),
        ("[1,2],[3,4]", 2), ("和", 2),
    ],
)  # fmt: skip
def test_the_length_of_a_list(answer, parts):
    assert list_length(answer) == parts


def test_a_trial_is_cut_where_its_box_is_open():
    assert trial_answer(r"{3} and {4") == "3"
    assert trial_answer(r"{\frac{1}{2") is None
    assert trial_answer(r"{\left\{1, 2\right\}}") == r"\left\{1, 2\right\}"
    assert trial_answer("{72, so she sells 72 eggs}") == "72"


@pytest.mark.slow
def test_a_right_response_is_wrong_for_any_other_gold_answer(grades):
    rows = []
    for gold, response, rule, right, _ in responses.RESPONSES:
        if right and rule == "choice" and gold in list("ABCDEFGHIJ"):
            rows += [(other, response, rule) for other in "ABCDE" if other != gold]
        elif right and rule == "math" and gold.removeprefix("-").isdigit():
            value = int(gold)
            rows += [
                (str(other), response, rule)
                for other in (value + 1, value - 1, 10 * value, -value)
                if other != value
            ]
    found = grades(rows)
    assert len(rows) > 1_000
    assert [row for row, grade in zip(rows, found, strict=True) if grade == "correct"] == []
