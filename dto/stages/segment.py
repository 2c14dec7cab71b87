"""Segment: cut a trajectory into thinking patterns d_1 … d_n (2505.21765, section 3).

Cues are found in the text (:mod:`dto.segmentation`); a cut is then moved back to the nearest token
border that is also a character border, so that a prefix of segments is an exact prefix of the
model's own tokens. The paper cuts text and does not say where its tokens go.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dto.records import Dropped, Segment, Span, Trajectory
from dto.segmentation.patterns import TextSegment
from dto.segmentation.worker import segment_text
from dto.text import INSIDE_CHARACTER, char_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.recipe import SegmentSettings


def segment(
    trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, settings: SegmentSettings
) -> list[Segment] | Dropped:
    """The thinking patterns of a trajectory, or why there are none.

    Thinking that never closed is segmented too: exits may lie before the point where it ran out.
    A runner finds the cuts in other processes (:mod:`dto.segmentation.worker`) and calls `snap`.
    """
    thinking = trajectory.text[slice(*trajectory.thinking)]
    return snap(trajectory, tokenizer, segment_text(thinking, settings.granularity))


def snap(
    trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, cuts: Sequence[TextSegment]
) -> list[Segment] | Dropped:
    """Move the cuts of a thinking text to token borders; cuts that fall together merge.

    `cuts` tile the thinking text, with offsets relative to it. The segments tile
    `trajectory.thinking` and `trajectory.thinking_tokens`; dropped as `failed` without a response
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
    """`tokens.end` without the tokens at the end that hold only white space."""
    exit = tokens.end
    while exit - 1 > tokens.start:
        start = ends[exit - 2]
        if start == INSIDE_CHARACTER or text[start:chars_end].strip():
            break
        exit -= 1
    return exit
