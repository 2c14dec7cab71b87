"""The FLOPs of training, by the formulas of `dto.usage`.

Training takes a forward pass and a backward pass that costs twice as much: 6 · N per token. With
adapters (LoRA) the frozen weights need no gradients: 4 · N, ignoring the adapters' own parameters
(about one percent). Gradient checkpointing adds a second forward pass, and a reference model (DPO,
O1-Pruner, GRPO with a divergence) adds one: 2 · N each.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import nan

from dto.usage import ModelShape, attention_flops


def training_flops(
    shape: ModelShape,
    lengths: Iterable[int],
    *,
    adapters: bool = False,
    checkpointing: bool = False,
    reference: bool = False,
) -> tuple[float, float]:
    """Attention FLOPs and model FLOPs of training on sequences of these lengths in tokens.

    A forward and backward pass cost three forward passes. With `adapters` it is two, except for
    attention, which has no weights. `checkpointing` and a `reference` model add one forward pass
    each.
    """
    tokens, attention = 0, 0.0
    for length in lengths:
        tokens += length
        attention += attention_flops(shape, 0, length)
    again = checkpointing + reference
    attention *= 3 + again
    if shape.parameters is None:
        return attention, nan
    return attention, 2.0 * shape.parameters * tokens * ((2 if adapters else 3) + again) + attention
