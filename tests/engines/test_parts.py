"""The parts that have a behaviour of their own: noise, filters, prefix cache, stops, the script."""

from __future__ import annotations

import itertools
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dto.engines.kv import BLOCK, KVShape, PrefixCache
from dto.engines.sampling import ROW, choose, penalised, uniforms
from dto.errors import EngineError
from dto.protocols import Completion, Sampling
from dto.text import StopReader
from dto.usage import metered
from tests.engines.scripted import ScriptedEngine
from tests.engines.served import Served

SHAPE = KVShape(2, 2, 4, torch.float32, torch.device("cpu"))


def test_noise_is_uniform_over_seeds_and_over_positions() -> None:
    count = 20_000
    numbers = np.arange(count)
    for seeds, positions in ((numbers, np.full(count, 5)), (np.full(count, 2**62), numbers)):
        u = uniforms(seeds.astype(np.uint64), positions.astype(np.int64))
        histogram, _ = np.histogram(u, bins=20, range=(0, 1))
        assert abs(histogram - count / 20).max() < 5 * (count / 20) ** 0.5
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03
        assert u.max() < 1 and len(np.unique(u)) == count


def drawn(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float = 0.0
) -> dict[int, float]:
    """Share of each id over a fine grid of uniform numbers."""
    count = 2000
    rows = np.zeros(count, dtype=ROW)
    rows["temperature"], rows["top_p"], rows["top_k"], rows["min_p"] = (
        temperature, top_p, top_k, min_p,
    )  # fmt: skip
    ids = choose(torch.tensor(logits).repeat(count, 1), rows, (np.arange(count) + 0.5) / count)
    found, counts = ids.unique(return_counts=True)
    return dict(zip(found.tolist(), (counts / count).tolist(), strict=True))


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "min_p", "kept"),
    [
        (1.0, 1.0, 0, 0.0, [0.1, 0.2, 0.3, 0.4]),
        (1.0, 0.65, 0, 0.0, [0, 0, 3 / 7, 4 / 7]),
        (1.0, 0.75, 0, 0.0, [0, 2 / 9, 3 / 9, 4 / 9]),
        (1.0, 1.0, 2, 0.0, [0, 0, 3 / 7, 4 / 7]),
        (1.0, 0.5, 2, 0.0, [0, 0, 0, 1]),
        (0.5, 1.0, 0, 0.0, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        (0.0, 1.0, 0, 0.0, [0, 0, 0, 1]),
        (1.0, 1.0, 99, 0.0, [0.1, 0.2, 0.3, 0.4]),
        (1.0, 1.0, 0, 0.45, [0, 2 / 9, 3 / 9, 4 / 9]),
        (1.0, 1.0, 0, 0.99, [0, 0, 0, 1]),
        (0.5, 1.0, 0, 0.45, [0, 0, 9 / 25, 16 / 25]),  # after the temperature
        (1.0, 0.65, 0, 0.45, [0, 0, 3 / 7, 4 / 7]),
        (1.0, 0.75, 0, 0.7, [0, 0, 3 / 7, 4 / 7]),
        (1.0, 0.55, 0, 0.7, [0, 0, 0, 1]),  # top-p of what min-p leaves: 4/7 is enough
        (1.0, 1.0, 3, 0.7, [0, 0, 3 / 7, 4 / 7]),
        (0.0, 1.0, 1, 0.7, [0, 0, 0, 1]),
    ],
)
def test_tokens_are_drawn_from_what_the_filters_leave(
    temperature: float, top_p: float, top_k: int, min_p: float, kept: list[float]
) -> None:
    shares = drawn(np.log([0.1, 0.2, 0.3, 0.4]).tolist(), temperature, top_p, top_k, min_p)
    assert [shares.get(i, 0) for i in range(4)] == pytest.approx(kept, abs=1e-3)


def test_rows_are_chosen_without_regard_to_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(64, 300, generator=generator)
    rng = np.random.default_rng(0)
    rows = np.zeros(64, dtype=ROW)
    rows["temperature"], rows["top_p"] = rng.choice([0, 0.6, 1], 64), rng.choice([0.5, 0.95, 1], 64)
    rows["top_k"], rows["min_p"] = rng.choice([0, 3], 64), rng.choice([0.0, 0.1], 64)
    numbers = rng.random(64)
    together = choose(logits, rows, numbers)
    for i in range(64):
        row = slice(i, i + 1)
        alone = choose(logits[row], rows[row], numbers[row])
        assert alone[0] == together[i]


def test_a_penalty_is_taken_once_off_each_id_that_is_present() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, 40, generator=generator)
    before = logits.clone()
    present = [[3, 7], [], [0, 39, 5], [1], [7]]
    penalties = [1.5, 0.7, -2.0, 0.25, 0.0]
    found = penalised(logits, present, penalties)
    assert torch.equal(logits, before)
    for row, (ids, penalty) in enumerate(zip(present, penalties, strict=True)):
        expected = before[row].clone()
        for token in ids:
            expected[token] -= penalty
        assert torch.equal(found[row], expected)
        alone = penalised(before[row : row + 1], [ids], [penalty])
        assert torch.equal(alone[0], found[row])


def block_values(ids: list[int]) -> torch.Tensor:
    """Keys and values [layers, 2, 1, kv_heads, tokens, head_dim] that only this prefix has."""
    sums = torch.tensor(list(itertools.accumulate(ids)), dtype=torch.float32)
    kv = SHAPE.zeros(1, -(-len(ids) // 64) * 64)
    kv[..., : len(ids), :] = sums[:, None]
    return kv


@settings(max_examples=50)
@given(
    st.lists(
        st.lists(st.integers(1, 2), min_size=1, max_size=5).map(
            lambda blocks: [i for i in blocks for _ in range(BLOCK)]
        ),
        max_size=12,
    ),
    st.integers(1, 6),
)
def test_prefix_cache_is_exact_and_bounded(chains: list[list[int]], blocks: int) -> None:
    limit = blocks * BLOCK * SHAPE.token_bytes + 5
    cache = PrefixCache(SHAPE, limit)
    for ids in chains:
        cache.store(block_values(ids), [0], [ids])
        assert len(cache) <= blocks and cache.nbytes <= limit
        for seen in chains:
            slots = cache.match(seen)
            kv = SHAPE.zeros(1, 128)
            cache.load(kv, [0], [slots])
            known = len(slots) * BLOCK
            assert torch.equal(kv[..., :known, :], block_values(seen)[..., :known, :])
    if chains and len(chains[-1]) <= blocks * BLOCK:
        cache.store(block_values(chains[-1]), [0], [chains[-1]])
        assert len(cache.match([*chains[-1], 9, 9])) == len(chains[-1]) // BLOCK


TEXT = "Wait — 等等, 或者 😀👍🏽 naïve } done"


def test_text_is_read_character_by_character(nano: Served) -> None:
    tokens = nano.tokenizer.encode(TEXT, add_special_tokens=False)
    reader = StopReader(nano.tokenizer.backend_tokenizer, ())
    pieces = [reader.read(token)[0] for token in tokens]
    assert "".join(pieces) == TEXT and "" in pieces
    assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=40)
@given(st.data())
def test_a_stop_is_found_at_the_token_that_completes_it(nano: Served, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(TEXT) - 1))
    stop = TEXT[start : data.draw(st.integers(start + 1, len(TEXT)))]
    tokens = nano.tokenizer.encode(TEXT, add_special_tokens=False)
    reader = StopReader(nano.tokenizer.backend_tokenizer, ("never", stop))
    text = ""
    for token in tokens:
        piece, found = reader.read(token)
        text += piece
        assert (found is not None) == (stop in text)
        if found:
            assert found == stop
            break
    else:
        pytest.fail("the stop was not found")


@pytest.fixture
def scripted(nano: Served) -> Any:
    failed = Completion((), "", "failed", 0, error="broken")
    table = {"Q": ["a {b} c", TEXT, failed]}
    return ScriptedEngine(table, nano.tokenizer)


async def test_the_script_is_followed(nano: Served, scripted: ScriptedEngine) -> None:
    prompt = nano.tokenizer.encode("Q")
    async with scripted as engine:
        with metered() as usage:
            first, second, third, again = await engine.complete(prompt, Sampling(99), 4)
        assert [c.text for c in (first, second, third, again)] == ["a {b} c", TEXT, "", "a {b} c"]
        assert (first.finish_reason, third.finish_reason) == ("stop", "failed")
        assert third.error == "broken"
        assert first.token_ids[-1] == nano.tokenizer.eos_token_id
        assert usage.generated == sum(len(c.token_ids) for c in (first, second, again))
        (stopped,) = await engine.complete(prompt, Sampling(99, stop=("}",), logprobs=1))
        assert (stopped.text, stopped.stop) == ("a {b}", "}")
        assert stopped.logprobs == (0.0,) * len(stopped.token_ids)
        (short,) = await engine.complete(prompt, Sampling(2))
        assert (len(short.token_ids), short.finish_reason) == (2, "length")
        with pytest.raises(EngineError, match="no answer"):
            await engine.complete([5], Sampling(2))
        assert len(engine.requests) == 4


async def test_the_script_is_streamed(nano: Served) -> None:
    engine = ScriptedEngine(lambda text, sampling: [TEXT * sampling.seed], nano.tokenizer)
    with metered() as usage:
        async with aclosing(engine.stream([5], Sampling(99, seed=1))) as stream:
            chunks = [chunk async for chunk in stream]
        assert "".join(chunk.text for chunk in chunks) == TEXT
        assert not any("\ufffd" in chunk.text for chunk in chunks)
        assert all(len(chunk.token_ids) == 1 for chunk in chunks)
        assert chunks[-1].finish_reason == "stop"
        assert usage.generated == len(chunks)
        async with aclosing(engine.stream([5], Sampling(99, seed=1))) as stream:
            await anext(stream)
    assert usage.generated == len(chunks) + 1
