"""One chain for each question: its reasoning and its answer, however it was asked (2508.17803)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dto.drqa.records import BatchResponse, Chain
from dto.records import Dropped, Problem, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def vanilla_chain(
    problem: Problem, trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase
) -> Chain | Dropped:
    """The chain of a question that was asked alone."""
    raise NotImplementedError


def batch_chains(
    problems: Sequence[Problem], response: BatchResponse, tokenizer: PreTrainedTokenizerBase
) -> list[Chain | Dropped]:
    """The chains of questions that were asked together; what cannot be split cleanly is dropped."""
    raise NotImplementedError
