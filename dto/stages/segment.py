"""Segment: cut a trajectory into thinking patterns d_1 … d_n (2505.21765, section 3).

:mod:`dto.segmentation` finds the cuts in the text. Each cut is then moved back to the nearest token
border between two characters, so that a prefix of segments is an exact prefix of the model's own
tokens. The paper cuts text and says nothing of tokens.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dto.concurrency import aside
from dto.context import Context
from dto.records import Dropped, Segment, Span, Trajectory
from dto.runs.reader import RunReader
from dto.runs.stage import Card, Group, Stage, always, responses
from dto.segmentation.patterns import TextSegment
from dto.segmentation.worker import segment_text
from dto.text import INSIDE_CHARACTER, char_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


async def segment(trajectory: Trajectory, ctx: Context) -> list[Segment] | Dropped:
    """Cut a trajectory into thinking patterns, or say why there are none.

    Unclosed thinking is segmented too, since there may be exits before the tokens ran out.
    """
    thinking = trajectory.text[slice(*trajectory.thinking)]
    settings = (ctx.recipe.segment.granularity, ctx.recipe.languages)
    if ctx.cut is None:
        cuts = await asyncio.to_thread(segment_text, thinking, *settings)
    else:
        cuts = await ctx.cut(thinking, *settings)
    return await aside(len(trajectory.token_ids), snap, trajectory, ctx.tokenizer, cuts)


def snap(
    trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, cuts: Sequence[TextSegment]
) -> list[Segment] | Dropped:
    """Move the cuts of a thinking text to token borders; cuts at the same border merge.

    `cuts` tile the thinking text, with offsets relative to it. The segments tile
    `trajectory.thinking` and `trajectory.thinking_tokens`. Dropped as `failed` without a response,
    and as `empty_thinking` without thinking.
    """
    thinking, tokens = trajectory.thinking, trajectory.thinking_tokens
    if trajectory.finish_reason == "failed":
        return Dropped(trajectory.id, "failed", trajectory.reason)
    if not trajectory.text[slice(*thinking)].strip() or tokens.length == 0:
        return Dropped(trajectory.id, "empty_thinking")
    ends = char_ends(tokenizer, trajectory.token_ids)
    borders = [(tokens.start, thinking.start)]  # (token index, character offset)
    borders += [
        (index + 1, ends[index])
        for index in range(tokens.start, tokens.end - 1)
        if ends[index] != INSIDE_CHARACTER
    ]
    offsets = [offset for _, offset in borders]
    opened = [(tokens.start, thinking.start, cuts[0])]
    for cut in cuts[1:]:
        token, offset = borders[bisect_right(offsets, thinking.start + cut.start) - 1]
        if token > opened[-1][0] and trajectory.text[opened[-1][1] : offset].strip():
            opened.append((token, offset, cut))
    token_ends = [*(token for token, _, _ in opened[1:]), tokens.end]
    offset_ends = [*(offset for _, offset, _ in opened[1:]), thinking.end]
    return [
        Segment(
            id=Segment.make_id(trajectory.id, index),
            trajectory_id=trajectory.id,
            index=index,
            tokens=Span(token, token_end),
            chars=Span(offset, offset_end),
            exit=_exit(trajectory.text, ends, Span(token, token_end), offset_end),
            cue=cut.cue,
            kind=cut.kind,
        )
        for index, ((token, offset, cut), token_end, offset_end) in enumerate(
            zip(opened, token_ends, offset_ends, strict=True)
        )
    ]


def _exit(text: str, ends: Sequence[int], tokens: Span, chars_end: int) -> int:
    """`tokens.end` without trailing white-space tokens."""
    exit = tokens.end
    while exit - 1 > tokens.start:
        start = ends[exit - 2]
        if start == INSIDE_CHARACTER or text[start:chars_end].strip():
            break
        exit -= 1
    return exit


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    return (Group(row.id, (row,)) for row in run.rows("sample", Trajectory))


STAGE = Stage(
    name="segment",
    about="Cut each trajectory into thinking patterns.",
    amount=lambda recipe: f"{responses(recipe)} responses",
    essential="trajectories",
    record=Segment,
    reads=always("sample"),
    settings=always("segment.", "languages"),
    files=lambda recipe: recipe.language_files,
    groups=_groups,
    work=segment,
    total=lambda run: run.count("sample"),
    needs="tokenizer",
    card=Card(3, "segments", "train", "thinking patterns: spans over tokens and text, kind"),
    paper="2505.21765",
)
