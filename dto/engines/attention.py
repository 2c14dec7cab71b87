"""Attention for a batch whose rows have unequal lengths, with results that no batch-mate can move.

Registered with transformers' attention interface, so that stock models call it. Two things differ
from `sdpa`. Grouped-query heads are folded into the query axis instead of copying keys and values.
And the sums run in an order that depends on a key's position alone: matrix products get at least
`MIN_ROWS` rows (below that BLAS takes other kernels), the weighted sum of the values goes block by
block of `KEY_BLOCK` keys, and masked keys add exact zeros. With MKL on x86 a row then comes out the
same bit for bit alone or among others, prefilled or decoded, however far the batch is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "dto_rows"
MIN_ROWS = 4
KEY_BLOCK = 128


def rows_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_groups: Sequence[tuple[slice, int]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Masked attention.

    Args:
        module: the attention layer (not read).
        query: [rows, heads, queries, head_dim].
        key: [rows, kv_heads, keys, head_dim]; `keys` is a multiple of 16.
        value: like key.
        attention_mask: additive float mask [rows, 1, queries, keys].
        scaling: factor on the scores; 1 / sqrt(head_dim) when None.
        dropout: must be 0.
        row_groups: neighbouring rows, and how many keys those need to look at; the groups tile the
            rows, and what they leave out is masked. All rows look at all keys when None.
        kwargs: what other implementations read.

    Returns:
        The attended values [rows, queries, heads, head_dim], and None for the weights.

    Raises:
        NotImplementedError: no mask, or an option that changes the scores (soft capping, sinks).
    """
    for option in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(option) is not None:
            raise NotImplementedError(f"attention option {option!r}")
    if attention_mask is None or dropout:
        raise NotImplementedError("attention without a mask, or with dropout")
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if not row_groups:
        return _attend(query, key, value, attention_mask).transpose(1, 2), None
    parts = []
    for rows, limit in row_groups:
        keys, mask = key[rows, :, :limit], attention_mask[rows, :, :, :limit]
        parts.append(_attend(query[rows], keys, value[rows, :, :limit], mask))
    return torch.cat(parts).transpose(1, 2), None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Scaled queries to attended values [rows, heads, queries, head_dim]."""
    rows, heads, queries, head_dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    group = heads // kv_heads
    wide = group * queries
    folded = query.reshape(rows * kv_heads, wide, head_dim)
    padding = MIN_ROWS - wide
    if padding > 0:
        folded = nn.functional.pad(folded, (0, 0, 0, padding))
    scores = torch.bmm(folded, key.flatten(0, 1).transpose(1, 2))
    if queries == 1:
        scores.view(rows, -1, 1, keys).add_(mask)
    else:
        scores.view(rows, kv_heads, group, queries, keys).add_(mask[:, :, None])
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    values = value.flatten(0, 1)
    attended = torch.bmm(weights[:, :, :KEY_BLOCK], values[:, :KEY_BLOCK])
    for start in range(KEY_BLOCK, keys, KEY_BLOCK):
        block = slice(start, start + KEY_BLOCK)
        attended += torch.bmm(weights[:, :, block], values[:, block])
    return attended[:, :wide].reshape(rows, heads, queries, head_dim)


AttentionInterface.register(NAME, rows_attention)
