from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.drqa.answers import numbered_answers

CLEAN = {
    "list": "**Final Answer**\n1. \\boxed{72}\n2. \\boxed{10}\n3. \\boxed{624}",
    "sentences": "1. She sold \\(\\boxed{72}\\) clips.\n2. She earned \\boxed{10} dollars.\n"
    "3. It is \\boxed{624}.",
    "one line": "(1) \\boxed{72} (2) \\boxed{10} (3) \\boxed{624}",
    "commas": "The answers are 1) $\\boxed{72}$, 2) $\\boxed{10}$, and 3) $\\boxed{624}$.",
    "sections": "### Question 1\n1. In May: 24.\n2. Together: 72.\n\n**Answer:** \\boxed{72}\n\n"
    "### Question 2\n\\[\\boxed{10}\\]\n\n### Question 3\nThat is \\boxed{624} pages.",
    "sections and list": "**Question 1**: \\boxed{72}\n**Question 2**: \\boxed{10}\n"
    "**Question 3**: \\boxed{624}\n\nSo:\n1. \\boxed{72}\n2. \\boxed{10}\n3. \\boxed{624}",
    "ordinals": "The answer to the first question is \\boxed{72}.\nFor the second question it is "
    "\\boxed{10}.\nFor the last question it is \\boxed{624}.",
    "without boxes": "1. 72\n2. 10\n3. 624",
    "stated": "Question 1: The answer is 72.\nQuestion 2: The answer is 10.\n"
    "Question 3: The answer is 624.",
    "boxes in order": "\\boxed{72}\n\n\\boxed{10}\n\n\\boxed{624}",
    "chinese": "第一题：\\boxed{72}\n第二题：\\boxed{10}\n第三题：\\boxed{624}",
    "chinese list": "答案：\n1、\\boxed{72}\n2、\\boxed{10}\n3、\\boxed{624}",
    "circled": "① \\boxed{72}\n② \\boxed{10}\n③ \\boxed{624}",
    "repeated alike": "1. \\boxed{72}\n2. \\boxed{10}\n3. \\boxed{624}\nAgain, 1. \\boxed{ 72 }",
    "another order": "3. \\boxed{624}\n1. \\boxed{72}\n2. \\boxed{10}",
    "behind": "\\boxed{72} (Question 1)\n\\boxed{624} (Question 3)\n\\boxed{10} (Question 2)",
    "behind on one line": "\\boxed{72} is the answer to question 1, \\boxed{10} is that of "
    "question 2, and \\boxed{624} of the third question.",
    "chinese behind": "\\boxed{624}（第三题）\n\\boxed{72}（第一题）\n\\boxed{10}（第二题）",
    "numbered steps": "### Question 1\n1. In April: 48\n2. Together \\boxed{72}\n### Question 2\n"
    "1. \\boxed{10}\n### Question 3\n2. So it is 5. \\boxed{624}",
    "figures": "1. First,\nso x = 3. \\boxed{72}\n2. Then\nit is 1. \\boxed{10}\n3. \\boxed{624}",
    "another is named": "1. \\boxed{72}\n2. In problem 3 of the book: \\boxed{10}\n"
    "3. In question 1 we had 72, here \\boxed{624}.",
    "a remark": "Question 1 was easy.\n1. \\boxed{72}\n2. \\boxed{10}\n3. \\boxed{624}",
    "table": "| Question | Answer |\n|---|---|\n| 3 | $\\boxed{624}$ |\n| 1 | $\\boxed{72}$ |\n"
    "| 2 | $\\boxed{10}$ |",
    "wide table": "| 2 | Weng | \\boxed{10} |\n| 1 | Natalia | \\boxed{72} |\n"
    "| 3 | James | \\boxed{624} |",
    "both": "**Question 1**\n\\boxed{72}\n**Question 2**\n\\boxed{10}\n**Question 3**\n"
    "\\boxed{624}\n\nSo 1. \\boxed{72}, 2. \\boxed{10}, 3. \\boxed{624}",
    "bold": "**1.** \\boxed{72}\n**2.** \\boxed{10}\n**3.** \\boxed{624}",
}


@pytest.mark.parametrize("conclusion", CLEAN.values(), ids=CLEAN)
def test_answers_by_number(conclusion):
    found = numbered_answers(conclusion, 3)
    assert [(each.answer, each.fault) for each in found] == [("72", ""), ("10", ""), ("624", "")]


FAULTY = {
    "missing": ("1. \\boxed{72}\n3. \\boxed{624}", ["", "no_answer", ""]),
    "twice": ("1. \\boxed{72}\n2. \\boxed{10}\n1. \\boxed{71}\n3. \\boxed{6}",
              ["answered_twice", "", ""]),
    "two on a line": ("1. \\boxed{72} or \\boxed{73}\n2. \\boxed{1}\n3. \\boxed{6}",
                      ["answered_twice", "", ""]),
    "behind another heading": ("Question 1:\nSo \\boxed{7}. Now question 2.\nIt is \\boxed{8}.\n"
                               "Question 3: \\boxed{9}", ["answered_twice", "no_answer", ""]),
    "extra": ("1. \\boxed{1}\n2. \\boxed{2}\n3. \\boxed{3}\n4. \\boxed{4}", ["extra_number"] * 3),
    "fewer boxes": ("\\boxed{72} and \\boxed{10}", ["unnumbered"] * 3),
    "more boxes": ("\\boxed{1}\\boxed{2}\\boxed{3}\\boxed{4}", ["unnumbered"] * 3),
    "none": ("I could not solve them.", ["no_answer"] * 3),
    "empty": ("", ["no_answer"] * 3),
    "open box": ("1. \\boxed{72}\n2. \\boxed{10}\n3. \\boxed{62", ["", "", "no_answer"]),
}  # fmt: skip


@pytest.mark.parametrize(("conclusion", "faults"), FAULTY.values(), ids=FAULTY)
def test_faults(conclusion, faults):
    found = numbered_answers(conclusion, 3)
    assert [each.fault for each in found] == faults
    assert all(each.answer or each.fault for each in found)


def test_an_extra_number_leaves_the_answers():
    found = numbered_answers("1. \\boxed{7}\n2. \\boxed{8}\n3. \\boxed{9}", 2)
    assert [each.answer for each in found] == ["7", "8"]


ANSWERS = st.text("0123456789abcxyz+-", min_size=1, max_size=8)


@given(st.lists(ANSWERS, min_size=2, max_size=6), st.permutations(range(6)))
def test_the_order_of_the_list_does_not_matter(answers, order):
    lines = [f"{i}. \\boxed{{{answer}}}" for i, answer in enumerate(answers, start=1)]
    shuffled = [lines[place] for place in order if place < len(lines)]
    found = numbered_answers("**Final Answer**\n" + "\n".join(shuffled), len(answers))
    assert [each.answer for each in found] == answers
    assert not any(each.fault for each in found)


@pytest.mark.slow
@given(st.text(max_size=300), st.integers(2, 5))
def test_any_text_gives_k_answers_or_faults(text, k):
    found = numbered_answers(text, k)
    assert len(found) == k
    assert all(each.answer or each.fault for each in found)


@pytest.mark.parametrize(
    "text",
    ["\\boxed{" * 25_000, "1. \\boxed{7}\n" * 20_000, "question 1 " * 20_000, "1. " * 60_000],
)
def test_a_looping_response_takes_no_time(text):
    assert len(numbered_answers(text, 3)) == 3
