"""The model of boundaries: what it was learned from, and how near it comes to the readers."""

from __future__ import annotations

import json
import math
import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.patterns import learn
from dto.segmentation import patterns
from dto.segmentation.features import BoundaryDistances, describe, since_place, split
from dto.segmentation.worker import segment_text

needs_traces = pytest.mark.skipif(
    not (learn.SHARED / "traces-en.jsonl").is_file(),
    reason="the traces that were marked are not here",
)


@pytest.mark.slow
@needs_traces
def test_the_weights_are_what_the_labels_give() -> None:
    """Hundredths, within one: sums of floats may differ a little from machine to machine."""
    learned = tomllib.loads(learn.learn())
    shipped = tomllib.loads(learn.WEIGHTS.read_text(encoding="utf-8"))
    assert learned["threshold"] == shipped["threshold"]
    for name, wide in (("boundary", 1), ("kinds", len(patterns.KINDS))):
        table, other = learned[name], shipped[name]
        both = table.keys() & other.keys()
        assert len(both) >= 0.99 * len(table.keys() | other.keys())
        ours = [np.reshape(table[name], wide) for name in sorted(both)]
        theirs = [np.reshape(other[name], wide) for name in sorted(both)]
        assert np.abs(np.subtract(ours, theirs)).max() <= 1


@pytest.mark.slow
@needs_traces
@pytest.mark.parametrize("reader", ["a", "b"])
def test_boundaries_are_near_the_readers(reader: str) -> None:
    """On traces that the weights were learned from; `benchmarks/segment.py` cross-validates."""
    scored = [one for one in learn.marked() if one.both]
    found = [[cut.start for cut in segment_text(one.text)[1:]] for one in scored]
    read = [learn.offsets(one, reader) for one in scored]
    result = learn.score(list(zip(found, read, strict=True)))
    assert result.f1 >= 0.77
    assert result.recall >= 0.79


def test_passages_that_were_marked_hold_no_text() -> None:
    lines = learn.LABELS.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 82
    for line in lines:
        label = json.loads(line)
        assert set(label) == {
            "row", "model", "prompt_id", "sample", "length", "start", "end", "c",
        }  # fmt: skip
        places = [at for at, _, _ in label["c"]]
        assert places == sorted(set(places))
        assert all(label["start"] < at < label["end"] <= label["length"] for at in places)
        assert {kind for _, kind, _ in label["c"]} <= set(learn.NAMES)


def test_pairs_match_once_each() -> None:
    assert learn.pairs([10, 20, 30], [12, 31, 32], 12) == [(10, 12), (20, 31), (30, 32)]
    assert learn.pairs([10, 30], [22, 43], 12) == [(10, 22)]
    assert learn.pairs([], [1], 12) == []
    result = learn.score([([10, 100], [12]), ([], [7])])
    assert (result.precision, result.recall, result.f1) == (0.5, 0.5, 0.5)


WORDS = [
    "Wait, ",
    "But ",
    "So ",
    "it is 5",
    "the answer is 6",
    "? ",
    ". ",
    "\n\n",
    "\n",
    "$x$",
    "等等。",
]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=40).map("".join) | st.text(max_size=60))
def test_any_text_has_sentences_and_chances(text: str) -> None:
    sentences = split(text)
    assert "".join(text[each.start : each.end] for each in sentences) == text
    assert all(each.end > each.start for each in sentences) or not text
    rows = describe(sentences)
    chances = patterns.chances(sentences, rows, patterns.load().boundary)
    assert len(rows) == len(chances) == len(sentences)
    assert chances[0] == 0 and all(0 <= p <= 1 for p in chances)
    openings = patterns.openings(sentences)
    assert all(each.kind in patterns.KINDS and each.sentence > 0 for each in openings)


def test_the_chance_of_a_boundary_sums_over_where_the_last_one_may_be() -> None:
    """Two steps by hand."""
    sentences = split("It is 5. But it is 6. So it is 7.")
    rows = describe(sentences)
    since = BoundaryDistances(sentences)
    near, far = (since_place(since(2, opened)[0])[0] for opened in (1, 0))
    weights = {since_place(since(1, 0)[0])[0]: 0.5, near: -1.0, far: 0.5}
    first = 1 / (1 + math.exp(-0.5))
    after = first / (1 + math.exp(-weights[near])) + (1 - first) / (1 + math.exp(-weights[far]))
    assert patterns.chances(sentences, rows, weights) == pytest.approx([0, first, after])
