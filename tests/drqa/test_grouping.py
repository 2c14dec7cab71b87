from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.drqa.batch import groups
from dto.errors import DtoError
from dto.records import Dropped, Problem


def problem(place: int) -> Problem:
    return Problem(f"{place:016x}", "toy", "train", f"{place} + 1?", str(place + 1))


def ids(found):
    return [tuple(each.id for each in row) for row in found if not isinstance(row, Dropped)]


@given(st.integers(2, 40), st.integers(2, 5), st.integers(0, 3), st.randoms(use_true_random=False))
def test_every_question_is_asked_once_whatever_the_order(count, k, sample, random):
    problems = [problem(place) for place in range(count)]
    if count < k:
        with pytest.raises(DtoError, match=f"batch.k {k} is larger than the {count} questions"):
            list(groups(problems, k, sample, 1))
        return
    found = list(groups(problems, k, sample, 1))
    left = [row for row in found if isinstance(row, Dropped)]
    asked = [each for group in ids(found) for each in group]
    assert len(asked) == len(set(asked)) == count - count % k
    assert all(len(group) == k for group in ids(found))
    assert [row.reason for row in left] == ["left_over"] * (count % k)
    shuffled = random.sample(problems, count)
    assert ids(groups(shuffled, k, sample, 1)) == ids(found)


def test_samples_and_seeds_draw_other_company():
    problems = [problem(place) for place in range(30)]
    drawn = [ids(groups(problems, 2, sample, seed)) for sample, seed in ((0, 1), (1, 1), (0, 2))]
    assert len({tuple(each) for each in drawn}) == 3


def test_by_difficulty_neighbours_are_alike():
    problems = [problem(place) for place in range(12)]
    rates = {each.id: (place % 4) / 4 for place, each in enumerate(problems)}
    found = list(groups(problems, 3, 0, 1, rates))
    assert [{rates[one.id] for one in group} for group in found] == [{0.0}, {0.25}, {0.5}, {0.75}]


def test_programs_are_not_asked_together():
    problems = [problem(0), problem(1), replace(problem(2), rule="code")]
    found = list(groups(problems, 2, 0, 1))
    assert [row.reason for row in found if isinstance(row, Dropped)] == ["no_short_answer"]
    with pytest.raises(DtoError, match="larger than the 2 questions"):
        list(groups(problems, 3, 0, 1))
