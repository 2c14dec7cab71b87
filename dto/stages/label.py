"""A / B / C for the chains of one problem, and the question about each (2508.17803, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dto.drqa.records import Chain, LabelledChain
from dto.records import Dropped, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.drqa.classes import Balance
    from dto.recipe import Recipe


def label(
    problem: Problem,
    chains: Sequence[Chain],
    balance: Balance,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
) -> list[LabelledChain | Dropped]:
    """The problem's chains with their letters."""
    raise NotImplementedError
