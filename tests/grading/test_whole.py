"""Whole responses that were written without sight of the grader, by kind."""

import asyncio

import pytest

from dto.grading import Grader
from tests.grading import attacks, examined, examined_again, unseen

UNSEEN_RIGHT = 222  # of 232 at first sight; none wrong is called right


def lists(module):
    return {
        f"{module.__name__.rpartition('.')[2]}-{name}": (name, rows)
        for name, rows in vars(module).items()
        if name.isupper() and not name.startswith("_") and isinstance(rows, list)
    }


LISTS = lists(examined) | lists(examined_again)
UNSEEN = lists(unseen)
# What the grader is known to get wrong, each too strict.
KNOWN = {
    (r"\text{all integers } n \ge 3", r"\boxed{n\ge 3,\ n\in\mathbb{Z}}"),
    ("0.05", "**Answer:** $0.05 (5 cents)"),
    ("694", "The answer is 694 dollars in total, 50 more than before."),
}


def rule(name):
    return "choice" if name.startswith("CHOICE") else "code" if "CODE" in name else "math"


@pytest.fixture(scope="module")
def grades():
    """The grades of each list. One grader gives all: starting its children takes longest."""

    async def work():
        async with Grader(workers=2, allow_code_execution=True) as grader:
            return {
                key: [
                    await grader.grade_conclusion(text, gold, rule(name)) for gold, text, *_ in rows
                ]
                for key, (name, rows) in (LISTS | UNSEEN).items()
            }

    return asyncio.run(work())


@pytest.mark.slow
@pytest.mark.parametrize("key", LISTS)
def test_whole_responses_are_graded_as_they_say(key, grades):
    _, rows = LISTS[key]
    graded = grades[key]
    wrong = [
        (gold, text, one.grade, why)
        for (gold, text, right, why), one in zip(rows, graded, strict=True)
        if (one.grade == "correct") != right and (gold, text) not in KNOWN
    ]
    assert wrong == []


@pytest.mark.slow
def test_what_nobody_looked_at_is_graded_as_well_as_it_was_measured(grades):
    right = lax = 0
    for key, (_, rows) in UNSEEN.items():
        for (_, _, expected, _), one in zip(rows, grades[key], strict=True):
            right += (one.grade == "correct") == expected
            lax += one.grade == "correct" and not expected
    assert lax == 0
    assert right >= UNSEEN_RIGHT


def test_every_kind_has_its_near_misses():
    for name, rows in (LISTS | UNSEEN).values():
        assert {right for _, _, right, _ in rows} == {True, False}, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "kind", "whole"),
    [
        (attacks.ANSWERS, "math", False),
        (attacks.RESPONSES, "math", True),
        (attacks.OPTIONS, "choice", False),
        (attacks.CHOSEN, "choice", True),
    ],
)
def test_what_once_fooled_the_grader_is_not_right(rows, kind, whole):
    async def work():
        async with Grader(workers=2) as grader:
            ask = grader.grade_conclusion if whole else grader.grade_answer
            return [(gold, text, (await ask(text, gold, kind)).grade) for gold, text in rows]

    assert [row for row in asyncio.run(work()) if row[2] == "correct"] == []
