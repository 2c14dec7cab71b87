r"""Where answers stand, and that no text is too odd to be searched."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.grading.extract import closing_brace, final_answer, last_box, trial_answer


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
    for found in (final_answer(text), trial_answer(text)):
        assert found is None or found in text


@pytest.mark.parametrize("unit", ["{", "}", "\\", r"\boxed{", " ", "answer is ", "7", "\\{"])
def test_ten_megabytes(unit):
    text = unit * (10_000_000 // len(unit))
    assert final_answer(text + r"\boxed{7}") == "7"
    final_answer(text)
    trial_answer(text)
