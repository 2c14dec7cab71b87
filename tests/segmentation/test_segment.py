"""Cuts are moved to token borders; tokens tile the ids, characters the text."""

from __future__ import annotations

import multiprocessing
import random
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dto.recipe import SegmentSettings
from dto.records import Dropped, Segment, Span, Trajectory
from dto.segmentation import worker
from dto.segmentation.worker import segment_text, segment_texts
from dto.segmenter import start
from dto.stages.segment import snap
from dto.text import char_ends, decode_response, split_thinking, tokens_within
from tests.byte_level import byte_level
from tests.segmenting import segment

HEAVY = "[n for n in ('torch', 'transformers') if __import__('sys').modules.get(n) is not None]"
SETTINGS = SegmentSettings(granularity="cue")


def trajectory(response: str, tags_are_tokens: bool = True) -> Trajectory:
    tokenizer = byte_level(tags_are_tokens=tags_are_tokens)
    ids = tokenizer.encode(response, add_special_tokens=False)
    text = decode_response(tokenizer, ids)
    split = split_thinking(text)
    return Trajectory(
        id="p/000",
        problem_id="p",
        model="m",
        sample=0,
        seed=0,
        prompt_ids=(1,),
        token_ids=tuple(ids),
        ids_from="encoded",
        text=text,
        thinking=split.thinking,
        conclusion=split.conclusion,
        thinking_tokens=tokens_within(char_ends(tokenizer, ids), split.thinking),
        finish_reason="stop",
        grade="correct",
    )


def segments_of(row: Trajectory, tags_are_tokens: bool = True) -> list[Segment]:
    found = segment(row, byte_level(tags_are_tokens=tags_are_tokens), SETTINGS)
    assert isinstance(found, list)
    return found


words = st.sampled_from(
    [
        "Wait, ",
        "But wait",
        "等等",
        "，或者",
        "🙂",
        "👩‍👩",
        "é",
        "7",
        ". ",
        "。",
        "...",
        "\n\n",
        "\n",
        " ",
        "$x$",
        "x",
    ]
)


@settings(max_examples=150)
@given(st.lists(words, min_size=1, max_size=40).map("".join), st.booleans(), st.booleans())
def test_spans_tile_tokens_and_text(thinking: str, closed: bool, tags_are_tokens: bool) -> None:
    row = trajectory(thinking + ("</think>\n\n5<eos>" if closed else ""), tags_are_tokens)
    tokenizer = byte_level(tags_are_tokens=tags_are_tokens)
    found = segment(row, tokenizer, SETTINGS)
    if isinstance(found, Dropped):
        assert not thinking.strip() or row.thinking_tokens.length == 0
        return
    for spans, whole in (
        ([each.tokens for each in found], row.thinking_tokens),
        ([each.chars for each in found], row.thinking),
    ):
        assert spans[0].start == whole.start and spans[-1].end == whole.end
        assert all(one.end == two.start for one, two in pairwise(spans))
        assert all(span.length > 0 for span in spans)
    for each in found[:-1]:
        prefix = tokenizer.decode(row.token_ids[: each.tokens.end])
        assert prefix == row.text[: each.chars.end]
    for each in found:
        assert each.tokens.start < each.exit <= each.tokens.end
        left_out = tokenizer.decode(row.token_ids[each.exit : each.tokens.end])
        assert not left_out.strip()


def test_a_cut_moves_to_the_nearest_earlier_border() -> None:
    row = trajectory("It is 5. Wait, no.</think>5")
    tokenizer = byte_level()
    first, second = segments_of(row)
    offset = row.text.index("Wait")
    borders = [
        len(tokenizer.decode(row.token_ids[:count])) for count in range(len(row.token_ids) + 1)
    ]
    assert first.chars.end == max(border for border in borders if border <= offset)
    assert (second.cue, second.kind, second.id) == ("Wait", "verification", "p/000/00001")


def test_cuts_that_fall_on_one_border_merge() -> None:
    row = trajectory("ab🙂cd</think>5")
    cuts = segment_text("ab🙂cd")
    cut = cuts[0]
    middle = [cut._replace(start=at, cue=str(at)) for at in (0, 3, 3, 6)]
    snapped = snap(row, byte_level(), middle)
    assert isinstance(snapped, list)
    assert [each.cue for each in snapped][:2] == ["0", "3"]
    assert len({each.tokens.start for each in snapped}) == len(snapped)


def test_the_exit_leaves_out_tokens_of_white_space() -> None:
    row = trajectory("It is 5.\n \n\nWait, no.\n</think>5")
    tokenizer = byte_level()
    for each in segments_of(row):
        kept = tokenizer.decode(row.token_ids[each.tokens.start : each.exit])
        assert kept.strip() == row.text[slice(*each.chars)].strip()
        assert not tokenizer.decode([row.token_ids[each.exit - 1]]).isspace()


def test_thinking_that_never_closed_is_segmented() -> None:
    assert [each.cue for each in segments_of(trajectory("It is 5. Wait, no"))] == ["", "Wait"]


@pytest.mark.parametrize("response", ["</think>5", "\n\n</think>5", ""])
def test_empty_thinking_is_dropped(response: str) -> None:
    dropped = segment(trajectory(response), byte_level(), SETTINGS)
    assert isinstance(dropped, Dropped)
    assert (dropped.id, dropped.reason) == ("p/000", "empty_thinking")


def test_thinking_inside_one_token_is_dropped() -> None:
    row = trajectory("It is 5.</think>5")
    cut_off = Trajectory(
        **{name: getattr(row, name) for name in row.__slots__} | {"thinking_tokens": Span(0, 0)}
    )
    assert isinstance(segment(cut_off, byte_level(), SETTINGS), Dropped)


@pytest.mark.slow
def test_worker_processes_import_no_torch() -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=start) as pool:
        found = pool.submit(segment_texts, ["It is 5. Wait, no.", ""], "cue").result(timeout=120)
        heavy = pool.submit(eval, HEAVY).result(timeout=120)
    assert [[cut.cue for cut in cuts] for cuts in found] == [["", "Wait"], []]
    assert heavy == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import dto.segmentation.worker, sys; print('spacy' in sys.modules, 'torch' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.split() == ["False", "False"]


@pytest.mark.slow
def test_memory_stays_flat_over_new_words() -> None:
    source = random.Random(0)

    def batch(traces: int) -> list[str]:
        return [
            "".join(
                f"Wait, {source.getrandbits(48)} x{source.getrandbits(48)}z. " for _ in range(40)
            )
            for _ in range(traces)
        ]

    process = psutil.Process()
    for _ in range(4):
        segment_texts(batch(50), "pattern")
    before = process.memory_info().rss
    for _ in range(25):  # 100,000 words that were never seen before
        segment_texts(batch(50), "pattern")
    assert process.memory_info().rss - before < 8 * 2**20


@pytest.mark.slow
def test_the_pipeline_is_made_anew_before_its_table_of_words_grows_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "MAX_WORDS", 5_000)
    source = random.Random(0)
    pipelines = set()
    for _ in range(40):  # 16,000 words that were never seen before
        text = "".join(f"Wait, x{source.getrandbits(48)}z. " for _ in range(400))
        (segments,) = segment_texts([text], "cue")
        assert len(segments) == 400
        nlp = worker.pipeline("cue")
        pipelines.add(id(nlp))
        assert len(nlp.vocab) <= 5_000 + 800
    assert len(pipelines) > 1
