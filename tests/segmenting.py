"""Segments of a trajectory without a context: for tests that only need some."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from dto.recipe import SegmentSettings
from dto.records import Dropped, Segment, Trajectory
from dto.segmentation.worker import segment_text
from dto.stages.segment import snap


def segment(
    trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, settings: SegmentSettings
) -> list[Segment] | Dropped:
    """The thinking patterns of a trajectory, or why there are none."""
    thinking = trajectory.text[slice(*trajectory.thinking)]
    return snap(trajectory, tokenizer, segment_text(thinking, settings.granularity))
