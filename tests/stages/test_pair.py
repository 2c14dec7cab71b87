from dataclasses import replace

import pytest

from dto.baselines import pairs_of_samples
from dto.recipe import PairSettings
from dto.records import Dropped, OptimizedTrajectory, PreferencePair, Span
from dto.stages.pair import preference_pairs


@pytest.fixture
def make(build):
    async def trajectory(sample, length, grade):
        row, _ = await build(["x" * length], sample=sample, grade=grade)
        return row

    return trajectory


def version(row, length):
    ids = row.token_ids[:length]
    return OptimizedTrajectory(
        row.id, row.id, row.problem_id, 0, (0,), ids, f"short {length}", Span(0, 1),
        Span(0, 1), "2", 1.0, len(row.token_ids), length, 0.0, 0.0, "shortened",
    )  # fmt: skip


def pairs_of(rows):
    return [row for row in rows if isinstance(row, PreferencePair)]


async def test_optimized_over_its_original(make, problem, tokenizer):
    row = await make(0, 50, "correct")
    (made,) = preference_pairs(problem, [row], [version(row, 20)], tokenizer, PairSettings())
    assert made.prompt == tokenizer.decode(list(row.prompt_ids))
    assert made.prompt.startswith("<bos><user>1 + 1?") and made.prompt.endswith("<think>\n")
    assert (made.chosen, made.rejected) == ("short 20", row.text)
    assert "<eos>" not in made.rejected
    assert (made.chosen_id, made.rejected_id) == (row.id, row.id)
    assert (made.chosen_from, made.rejected_from) == ("optimized", "original")
    assert (made.prompt_tokens, made.chosen_tokens) == (len(row.prompt_ids), 20)
    assert made.rejected_tokens == len(row.token_ids)
    assert made.id.startswith(row.id)


@pytest.mark.parametrize(
    ("rejected", "sample"), [("original", 0), ("longest", 2), ("longest_wrong", 1)]
)
async def test_rejected(make, problem, tokenizer, rejected, sample):
    rows = [
        await make(0, 50, "correct"),
        await make(1, 60, "wrong"),
        await make(2, 90, "correct"),
        await make(3, 99, "failed"),
    ]
    settings = PairSettings(rejected=rejected, longer_correct=False)
    (made,) = preference_pairs(problem, rows, [version(rows[0], 20)], tokenizer, settings)
    assert (made.rejected_id, made.rejected_from) == (rows[sample].id, rejected)


async def test_truncated_may_be_rejected(make, problem, tokenizer):
    rows = [await make(0, 50, "correct"), await make(1, 90, "truncated")]
    settings = PairSettings(rejected="longest_wrong")
    (made,) = preference_pairs(problem, rows, [version(rows[0], 20)], tokenizer, settings)
    assert made.rejected_id == rows[1].id


async def test_drops(make, problem, tokenizer):
    row = await make(0, 50, "correct")
    whole = len(row.token_ids)

    def reasons(versions, rows=(row,), **settings):
        made = preference_pairs(problem, rows, versions, tokenizer, PairSettings(**settings))
        return [each.reason if isinstance(each, Dropped) else "pair" for each in made]

    same_length = replace(version(row, whole), token_ids=(9,) * whole)
    assert reasons([version(row, whole)]) == ["identical"]
    assert reasons([same_length]) == ["not_shorter"]
    wrong = replace(row, grade="wrong")
    assert reasons([same_length], [wrong]) == ["pair"]
    assert reasons([version(row, 20)], rejected="longest_wrong") == ["no_rejected"]
    limit = len(row.prompt_ids) + whole
    assert reasons([version(row, 20)], max_length=limit) == ["pair"]
    assert reasons([version(row, 20)], max_length=limit - 1) == ["too_long"]


async def test_too_long_says_how_long(make, problem, tokenizer):
    row = await make(0, 5000, "correct")
    (dropped,) = preference_pairs(
        problem, [row], [version(row, 20)], tokenizer, PairSettings(max_length=100)
    )
    assert f"{len(row.token_ids):,} tokens" in dropped.detail and "100" in dropped.detail


async def test_longer_correct_over_shorter_wrong(make, problem, tokenizer):
    rows = [
        await make(0, 30, "wrong"),
        await make(1, 20, "correct"),
        await make(2, 60, "correct"),
        await make(3, 50, "correct"),
        await make(4, 90, "wrong"),
        await make(5, 10, "truncated"),
    ]
    (made,) = preference_pairs(problem, rows, [], tokenizer, PairSettings())
    assert (made.chosen_id, made.rejected_id) == (rows[3].id, rows[0].id)
    assert (made.chosen_from, made.rejected_from) == ("longer_correct", "shorter_wrong")
    assert made.trajectory_id == rows[3].id
    assert preference_pairs(problem, rows, [], tokenizer, PairSettings(longer_correct=False)) == []


async def test_at_most_so_many_and_whatever_the_order(make, problem, tokenizer):
    rows = [await make(i, 50 + i, "correct") for i in range(4)]
    versions = [version(row, 20) for row in rows]
    settings = PairSettings(max_per_problem=2)
    made = preference_pairs(problem, rows, versions, tokenizer, settings)
    assert made == preference_pairs(problem, rows[::-1], versions[::-1], tokenizer, settings)
    assert [row.trajectory_id for row in pairs_of(made)] == [rows[0].id, rows[1].id]
    assert [row.reason for row in made[2:]] == ["over_limit"] * 2
    assert len({row.id for row in made}) == 4


async def test_longer_correct_has_a_limit_of_its_own(make, problem, tokenizer):
    """A hard problem: all its trajectories are optimized, and most of them are wrong."""
    rows = [await make(i, 30 + i, "wrong") for i in range(3)] + [await make(3, 90, "correct")]
    versions = [version(row, 10 + row.sample) for row in rows]

    def counts(**settings):
        found = preference_pairs(problem, rows, versions, tokenizer, PairSettings(**settings))
        origins = [row.chosen_from for row in pairs_of(found)]
        reasons = [row.reason for row in found if isinstance(row, Dropped)]
        assert len({row.id for row in found}) == len(found) == 7
        return (
            *map(origins.count, ("optimized", "longer_correct")),
            *map(reasons.count, ("over_limit", "over_longer_correct")),
        )

    assert counts() == (4, 1, 0, 2)
    assert counts(max_longer_correct=2) == (4, 2, 0, 1)
    assert counts(max_longer_correct=9) == (4, 3, 0, 0)
    assert counts(max_per_problem=1) == (1, 1, 3, 2)
    made = preference_pairs(problem, rows, versions, tokenizer, PairSettings())
    assert {row.detail for row in made if isinstance(row, Dropped)} == {
        "pair.max_longer_correct is 1"
    }
    assert made == preference_pairs(problem, rows[::-1], versions[::-1], tokenizer, PairSettings())


async def test_samples_over_samples(make, problem, tokenizer):
    rows = [
        await make(0, 50, "correct"),
        await make(1, 90, "wrong"),
        await make(2, 20, "correct"),
        await make(3, 99, "failed"),
        await make(4, 10, "wrong"),
    ]

    def made(data):
        settings = PairSettings(data=data, margin=0.0)
        found = pairs_of_samples(problem, rows, tokenizer, settings, max_tokens=200)
        return [(row.chosen_id, row.rejected_id, row.chosen_from) for row in pairs_of(found)]

    assert made("shortest") == [(rows[2].id, rows[1].id, "shortest_correct")]
    assert made("token_budget") == [
        (rows[2].id, rows[0].id, "best_correct"),
        (rows[1].id, rows[4].id, "best_wrong"),
    ]


async def test_samples_without_a_pair_have_a_reason(make, problem, tokenizer):
    rows = [await make(0, 50, "wrong")]
    for data in ("shortest", "token_budget"):
        (dropped,) = pairs_of_samples(problem, rows, tokenizer, PairSettings(data=data), 200)
        assert (dropped.id, dropped.reason) == (problem.id, "no_pair")
