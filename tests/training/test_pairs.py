"""Pairs are joined with the ids that they refer to, and seen in an order of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from dto.errors import DtoError
from dto.records import Dropped, OptimizedTrajectory, PreferencePair, Trajectory
from dto.runs.reader import RunReader
from dto.tables import read, write
from dto.training.pairs import TokenizedPair, load_pairs, training_order
from tests.training.conftest import RunFolder


def test_ids_are_the_stored_ones(run: RunFolder, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = load_pairs(RunReader(run.path), 256)
    sampled = {row.id: row for row in read(run.path / "sample" / "rows.parquet", Trajectory)}
    pruned = {row.id: row for row in read(run.path / "prune" / "rows.parquet", OptimizedTrajectory)}
    assert len(rows) == len(sampled) == 24
    for row in rows:
        assert isinstance(row, TokenizedPair)
        name = row.id.removesuffix("/original/000")
        assert row.prompt_ids == sampled[name].prompt_ids
        assert row.rejected_ids == sampled[name].token_ids
        assert row.chosen_ids == pruned[name].token_ids


def test_a_chosen_trajectory_comes_from_sample(run: RunFolder) -> None:
    table = run.path / "pair" / "rows.parquet"
    first, second, *_ = read(table, PreferencePair)
    sampled = next(
        row
        for row in read(run.path / "sample" / "rows.parquet", Trajectory)
        if row.id == second.rejected_id
    )
    changed = replace(
        first,
        chosen_from="longer_correct",
        chosen_id=sampled.id,
        chosen_tokens=len(sampled.token_ids),
    )
    write(table, PreferencePair, [changed])
    (row,) = load_pairs(RunReader(run.path), 256)
    assert isinstance(row, TokenizedPair)
    assert row.chosen_ids == sampled.token_ids


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_too_long_and_empty_pairs_are_dropped_with_their_reason(run: RunFolder, side: str) -> None:
    """An empty side has no mean logprob: SimPO's loss would be no number."""
    record, name = {
        "chosen": (OptimizedTrajectory, "prune"),
        "rejected": (Trajectory, "sample"),
    }[side]
    table = run.path / name / "rows.parquet"
    first, *others = read(table, record)
    write(table, record, [replace(first, token_ids=()), *others])
    pairs = run.path / "pair" / "rows.parquet"
    first_pair, *other_pairs = read(pairs, PreferencePair)
    emptied = replace(first_pair, **{f"{side}_tokens": 0})
    write(pairs, PreferencePair, [emptied, *other_pairs])
    lengths = [p.prompt_tokens + max(p.chosen_tokens, p.rejected_tokens) for p in other_pairs]
    limit = sorted(lengths)[len(lengths) // 2]
    rows = load_pairs(RunReader(run.path), limit)
    reasons = [row.reason for row in rows if isinstance(row, Dropped)]
    assert reasons.count("empty_response") == 1
    assert reasons.count("too_long") == sum(length > limit for length in lengths) > 0


def test_pairs_of_other_trajectories_are_refused(run: RunFolder) -> None:
    table = run.path / "sample" / "rows.parquet"
    first, *others = read(table, Trajectory)
    write(table, Trajectory, [replace(first, token_ids=first.token_ids[:-1]), *others])
    with pytest.raises(DtoError, match=f"pair {first.id}.*the trajectories have changed"):
        load_pairs(RunReader(run.path), 256)
    write(table, Trajectory, others)
    with pytest.raises(DtoError, match=f"pair {first.id}.*None.*the trajectories have changed"):
        load_pairs(RunReader(run.path), 256)


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=90),
    epochs=st.floats(0.1, 3),
    batch_size=st.integers(1, 16),
    seed=st.integers(0, 9),
)
def test_order_goes_through_all_pairs_once_an_epoch(
    lengths: list[int], epochs: float, batch_size: int, seed: int
) -> None:
    order = training_order(lengths, epochs=epochs, batch_size=batch_size, seed=seed)
    count = len(lengths)
    assert len(order) == round(epochs * count)
    for start in range(0, len(order) - count + 1, count):
        assert sorted(order[start : start + count]) == list(range(count))
    again = training_order(lengths, epochs=epochs, batch_size=batch_size, seed=seed)
    assert order == again


def test_order_pads_little_and_differs_between_epochs() -> None:
    lengths = [(37 * index) % 400 + 1 for index in range(1024)]
    order = training_order(lengths, epochs=2, batch_size=16, seed=0)
    batches = [order[at : at + 16] for at in range(0, len(order), 16)]
    padded = sum(16 * max(lengths[index] for index in batch) for batch in batches)
    assert padded < 1.25 * sum(lengths[index] for index in order)
    assert order[:1024] != order[1024:]
    shortest = [max(lengths[index] for index in batch) for batch in batches[:64]]
    assert shortest != sorted(shortest)
