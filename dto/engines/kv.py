"""Keys and values of the rows under way, written in place at each row's own length.

One tensor holds all layers: [layers, 2, rows, kv_heads, capacity, head_dim]. A row is never moved
or padded because another one joins; what lies behind a row's length is masked away and only has to
be finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

LENGTH_STEP = 32  # capacity and attended length are multiples of this
LEAST_ROWS = 16
"""Rows of every linear layer's input. For fewer BLAS takes other kernels, whose last bits differ:
MKL below 4 rows on AVX2, below 16 on AVX-512."""


def round_up(count: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `count`, and at least one step."""
    return max(1, -(-count // step)) * step


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one token's keys and values look like."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes of one token, all layers, keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    def zeros(self, rows: int, capacity: int) -> Tensor:
        """Room for `rows` rows of `capacity` tokens."""
        return torch.zeros(
            (self.layers, 2, rows, self.kv_heads, capacity, self.head_dim),
            dtype=self.dtype,
            device=self.device,
        )


class RowsCache(Cache):
    """The cache that the model writes to: `aim` says where, before each forward pass."""

    def __init__(self, kv: Tensor) -> None:
        super().__init__(layers=[])
        self.kv = kv
        self._index = torch.empty(0, dtype=torch.long)
        self._rows = 0
        self._limit = 0

    @property
    def capacity(self) -> int:
        """Tokens that fit into a row."""
        return int(self.kv.shape[4])

    @property
    def row_count(self) -> int:
        """Rows that there is room for."""
        return int(self.kv.shape[2])

    def aim(self, positions: Tensor, limit: int) -> None:
        """Direct the next forward pass.

        Args:
            positions: [rows, queries], where in its row (the first ones) each token's keys go.
            limit: how many positions of each row are attended to, the masked ones included.
        """
        rows, kv_heads = positions.shape[0], self.kv.shape[3]
        heads = torch.arange(rows * kv_heads, device=positions.device).view(rows, kv_heads, 1)
        self._index = (heads * self.capacity + positions[:, None]).flatten()
        self._rows, self._limit = rows, limit

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values [rows, kv_heads, queries, head_dim]; return all up to `limit`."""
        keys, values = self.kv[layer_idx]
        for buffer, states in ((keys, key_states), (values, value_states)):
            flat = buffer.view(-1, buffer.shape[-1])
            flat.index_copy_(0, self._index, states.reshape(-1, buffer.shape[-1]))
        return keys[: self._rows, :, : self._limit], values[: self._rows, :, : self._limit]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Not one number here: positions are always given with the tokens."""
        return 0


def causal_mask(positions: Tensor, limit: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [rows, 1, queries, limit]: a query sees the keys up to its own position."""
    keys = torch.arange(limit, device=positions.device)
    hidden = keys > positions[:, None, :, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=positions.device).masked_fill_(
        hidden, torch.finfo(dtype).min
    )
