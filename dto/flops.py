"""Attention FLOPs from a model's config.

The cost that 2505.21765 (section 4) reports. One query position t attends to t + 1 keys; in each of
L layers and H heads of width D the scores q·k and the sum over values take one multiply and one add
per key and channel each:

    attention(t) = 4 · L · H · D · (t + 1)

The projections (q, k, v, o) and the MLP are linear in tokens and are left out, as "attention FLOPs"
says; count tokens for those. Cached prefixes cost nothing again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the formula needs."""

    layers: int
    heads: int
    head_dim: int

    @staticmethod
    def from_config(config: Any) -> ModelShape:
        """Read it from a transformers config (grouped-query heads count as query heads)."""
        heads = int(config.num_attention_heads)
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        return ModelShape(int(config.num_hidden_layers), heads, head_dim)


def attention_flops(shape: ModelShape | None, start: int, end: int) -> float:
    """FLOPs of the attention at positions start … end-1, given that all earlier keys are cached.

    Sum over t of 4·L·H·D·(t + 1); nan when the shape is not known.
    """
    if shape is None:
        return float("nan")
    keys = (end * (end + 1) - start * (start + 1)) // 2
    return float(4 * shape.layers * shape.heads * shape.head_dim * keys)
