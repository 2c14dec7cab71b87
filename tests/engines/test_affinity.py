"""Prompts that begin alike are recognised, and a repeated stream joins what was given before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.engines.affinity import BLOCK, TEMPLATE, Prefixes, blocks_of
from dto.engines.spliced import Differs, Spliced
from dto.protocols import Chunk


def prompt(*parts: int) -> list[int]:
    return [part * 1000 + place for part in parts for place in range(BLOCK)]


def test_a_longer_prompt_has_the_number_of_its_beginning() -> None:
    prefixes = Prefixes()
    prefixes.put(blocks_of(prompt(1, 2)), 7)
    assert prefixes.find(blocks_of(prompt(1, 2))) == 7
    assert prefixes.find(blocks_of(prompt(1, 2, 3))) == 7
    assert prefixes.find(blocks_of(prompt(1, 3, 4))) is None  # a third of it is known
    assert prefixes.find(blocks_of([*prompt(1), 5])) == 7
    assert prefixes.find(blocks_of(prompt(2))) is None


def test_a_template_keeps_nothing_together() -> None:
    """A system prompt that is longer than the questions after it."""
    prefixes = Prefixes()
    for question in range(TEMPLATE):
        prefixes.put(blocks_of(prompt(1, 2, 100 + question)), question + 1)
    assert prefixes.find(blocks_of(prompt(1, 2, 50))) is None
    assert prefixes.find(blocks_of(prompt(1, 2, 100, 3))) == 1


def test_servers_are_a_set_that_can_shrink() -> None:
    prefixes, blocks = Prefixes(), blocks_of(prompt(1, 2))
    prefixes.add(blocks, 0)
    prefixes.add(blocks, 3)
    assert prefixes.find(blocks) == 0b1001
    prefixes.forget(0)
    assert prefixes.find(blocks) == 0b1000
    prefixes.forget(3)
    assert prefixes.find(blocks) is None


def chunks(ids: Sequence[int], cuts: Sequence[int]) -> list[Chunk]:
    """A stream of tokens whose text is their letters, cut at some places."""
    places = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    parts = [ids[start:end] for start, end in pairwise(places)]
    made = [
        Chunk(tuple(part), "".join(chr(97 + i) for i in part), logprobs=tuple(map(float, part)))
        for part in parts
    ]
    return [*made, Chunk((), "", "stop", logprobs=())]


IDS = st.lists(st.integers(0, 25), min_size=1, max_size=30)
CUTS = st.lists(st.integers(0, 100), max_size=8)


@given(IDS, CUTS, CUTS, CUTS, st.integers(0, 8), st.integers(0, 8))
def test_broken_streams_of_one_sample_are_one(
    ids: list[int], first: list[int], second: list[int], third: list[int], one: int, two: int
) -> None:
    """Two breaks anywhere, and any pieces."""
    spliced, received = Spliced(), []
    for cuts, broken in ((first, one), (second, two), (third, None)):
        spliced.begin()
        whole = chunks(ids, cuts)
        for chunk in whole[:-1][:broken] if broken is not None else whole:
            if new := spliced.new(chunk):
                received.append(new)
    assert [token for chunk in received for token in chunk.token_ids] == ids
    assert "".join(chunk.text for chunk in received) == "".join(chr(97 + i) for i in ids)
    assert [each for chunk in received for each in chunk.logprobs or ()] == list(map(float, ids))
    assert [chunk.finish_reason for chunk in received].count("stop") == 1


@given(IDS, CUTS, st.integers(0, 29))
def test_a_stream_that_differs_is_no_repetition(ids: list[int], cuts: list[int], at: int) -> None:
    other = list(ids)
    other[at % len(ids)] += 1
    spliced = Spliced()
    for chunk in chunks(ids, [])[:-1]:
        spliced.new(chunk)
    spliced.begin()
    with pytest.raises(Differs):
        for chunk in chunks(other, cuts):
            spliced.new(chunk)
