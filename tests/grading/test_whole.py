"""Whole responses that were written without sight of the grader, by kind."""

import asyncio

import pytest

from dto.grading import Grader
from tests.grading import examined, examined_again

LISTS = {
    f"{module.__name__.rpartition('.')[2]}-{name}": (name, rows)
    for module in (examined, examined_again)
    for name, rows in vars(module).items()
    if name.isupper() and not name.startswith("_") and isinstance(rows, list)
}
# What the grader is known to get wrong, each too strict.
KNOWN = {
    (r"\text{all integers } n \ge 3", r"\boxed{n\ge 3,\ n\in\mathbb{Z}}"),
    ("0.05", "**Answer:** $0.05 (5 cents)"),
    ("694", "The answer is 694 dollars in total, 50 more than before."),
}


@pytest.mark.parametrize("key", LISTS)
def test_whole_responses_are_graded_as_they_say(key):
    name, rows = LISTS[key]
    kind = "choice" if name.startswith("CHOICE") else "code" if "CODE" in name else "math"

    async def work():
        async with Grader(workers=2, allow_code_execution=True) as grader:
            return [await grader.grade_conclusion(text, gold, kind) for gold, text, *_ in rows]

    graded = asyncio.run(work())
    wrong = [
        (gold, text, one.grade, why)
        for (gold, text, right, why), one in zip(rows, graded, strict=True)
        if (one.grade == "correct") != right and (gold, text) not in KNOWN
    ]
    assert wrong == []


def test_every_kind_has_its_near_misses():
    for name, rows in LISTS.values():
        assert {right for _, _, right, _ in rows} == {True, False}, name
