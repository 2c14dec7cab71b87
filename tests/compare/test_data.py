"""Which samples a baseline pairs, and what it takes for an answer."""

from __future__ import annotations

import pytest

from dto.baselines import (
    budget_pairs,
    budget_reward,
    shortest_over_longest,
    stated_answer,
    token_budget,
)
from dto.grading import Grader
from dto.records import Grade, Span, Trajectory

NONE = Span(0, 0)


def samples(*rows: tuple[Grade, int]) -> list[Trajectory]:
    return [
        Trajectory(
            f"p/{index:03d}", "p", "m", index, 0, (1,), (5,) * length, "sampled", "", NONE, NONE,
            NONE, "stop", grade,
        )
        for index, (grade, length) in enumerate(rows)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "pairs"),
    [
        ([("correct", 9), ("correct", 5), ("wrong", 3)], [(1, 0)]),  # wrong is never chosen
        ([("correct", 5), ("wrong", 9)], [(0, 1)]),  # the longest may be wrong
        ([("correct", 5), ("truncated", 99)], [(0, 1)]),
        ([("correct", 5), ("correct", 5), ("correct", 7)], [(0, 2)]),  # ties: the first
        ([("wrong", 5), ("truncated", 9)], []),
        ([("correct", 5)], [(0, 0)]),  # `pair` drops it as identical
    ],
)
def test_shortest_over_longest(rows: list[tuple[Grade, int]], pairs: list[tuple[int, int]]) -> None:
    made = shortest_over_longest(samples(*rows))
    assert [(row.chosen.sample, row.rejected.sample) for row in made] == pairs


@pytest.mark.parametrize(
    ("rows", "budget"),
    [
        ([("correct", 100), ("correct", 200)], 150.0),
        ([("correct", 100), ("wrong", 900)], 0.5 * 100 + 0.5 * 640),
        ([("wrong", 10), ("truncated", 640)], 640.0),
    ],
)
def test_the_harder_the_larger_the_budget(rows: list[tuple[Grade, int]], budget: float) -> None:
    assert token_budget(samples(*rows), 640) == pytest.approx(budget)


@pytest.mark.parametrize(
    ("correct", "length", "reward"),
    [
        (True, 100, 0.5),  # at its budget
        (True, 50, 0.75),
        (True, 150, 0.25),
        (True, 900, 0.1),  # a right one is never worth less
        (False, 100, -0.1),
        (False, 50, -0.55),  # short and wrong: it should have gone on
        (False, 900, -0.1),
    ],
)
def test_budget_reward(correct: bool, length: int, reward: float) -> None:
    assert budget_reward(correct, length, 100.0) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("rows", "margin", "pairs"),
    [
        (
            [("correct", 50), ("correct", 200), ("wrong", 40), ("truncated", 300)],
            0.1,
            [(0, 1, "best_correct"), (3, 2, "best_wrong")],
        ),
        ([("correct", 100), ("correct", 101)], 0.1, []),  # rewards are too near
        ([("correct", 100), ("correct", 101)], 0.0, [(0, 1, "best_correct")]),
        ([("correct", 50), ("wrong", 300)], 0.0, []),  # no pairs across
    ],
)
def test_budget_pairs(
    rows: list[tuple[Grade, int]], margin: float, pairs: list[tuple[int, int, str]]
) -> None:
    made = budget_pairs(samples(*rows), 640, margin)
    assert [(row.chosen.sample, row.rejected.sample, row.chosen_from) for row in made] == pairs


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("7 plus 5 ends in 2.\n\nSo the last digit is 2.\n\n", "2"),
        ("Wait, is that right? Yes.", None),
        ("So x = 3/4.", "3/4"),
        ("Thus a = b = 12", "12"),
        ("The answer is $\\frac{1}{2}$. Let me check.", "\\frac{1}{2}"),
        ("So it must be 41", "41"),
        ("We get \\boxed{7}. Now verify.", "7"),
        ("所以 x = 5。", "5"),
        ("所以答案是 5。", "5"),
        ("Let me start over.", None),
        ("So the sum is " + "x" * 200, None),
        ("", None),
    ],
)
def test_stated(text: str, answer: str | None) -> None:
    assert stated_answer(text, Grader.final_answer) == answer
