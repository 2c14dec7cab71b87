"""Keys and values of token prefixes, kept by exact ids, bounded in bytes, least recently used out.

A prefix is a chain of blocks of `BLOCK` tokens. A block's key is its parent's number (given once,
never again) and its own ids, so equal keys mean equal prefixes: there is no hash to collide. A
parent is always touched after its children and therefore goes after them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from dto.engines.kv import KVShape

BLOCK = 16
_ROOT = 0


class PrefixCache:
    """Blocks of keys and values in one tensor [blocks, layers, 2, kv_heads, BLOCK, head_dim]."""

    def __init__(self, shape: KVShape, max_bytes: int) -> None:
        self.size = max_bytes // (BLOCK * shape.token_bytes)  # blocks; may be 0
        # Untouched pages of an empty tensor cost no memory on a CPU.
        self._pool = torch.empty(
            (self.size, shape.layers, 2, shape.kv_heads, BLOCK, shape.head_dim),
            dtype=shape.dtype,
            device=shape.device,
        )
        self._blocks: OrderedDict[tuple[int, tuple[int, ...]], tuple[int, int]] = OrderedDict()
        self._numbers = _ROOT

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def nbytes(self) -> int:
        """Bytes that the pool may take at most."""
        return self._pool.nbytes

    def match(self, ids: Sequence[int]) -> list[int]:
        """Pool slots of the longest known prefix of whole blocks; its blocks become the newest."""
        slots: list[int] = []
        keys = []
        parent = _ROOT
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            key = (parent, tuple(ids[start : start + BLOCK]))
            block = self._blocks.get(key)
            if block is None:
                break
            parent, slot = block
            keys.append(key)
            slots.append(slot)
        self._touch(keys)
        return slots

    def load(self, kv: Tensor, rows: Sequence[int], slots: Sequence[Sequence[int]]) -> None:
        """Copy matched blocks to the start of rows of `kv`, a :class:`RowsCache` tensor."""
        flat = [slot for chain in slots for slot in chain]
        if not flat:
            return
        into = [row for row, chain in zip(rows, slots, strict=True) for _ in chain]
        at = [index for chain in slots for index in range(len(chain))]
        _blocks(kv)[:, :, into, :, at] = self._pool[flat]

    def store(self, kv: Tensor, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """Keep the whole blocks of rows of `kv`; `ids[i]` are those whose keys row i holds."""
        writes: dict[int, tuple[int, int]] = {}  # slot: (row, block of the row)
        for row, row_ids in zip(rows, ids, strict=True):
            for index, slot in self._insert(row_ids):
                writes[slot] = (row, index)
        if writes:
            into = list(writes)
            from_rows, at = zip(*writes.values(), strict=True)
            self._pool[into] = _blocks(kv)[:, :, list(from_rows), :, list(at)]

    def _insert(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Make entries for unknown blocks: (index in the chain, slot to fill)."""
        new: list[tuple[int, int]] = []
        keys = []
        parent = _ROOT
        for index in range(min(len(ids) // BLOCK, self.size)):
            key = (parent, tuple(ids[index * BLOCK : (index + 1) * BLOCK]))
            block = self._blocks.get(key)
            if block is None:
                if len(self._blocks) < self.size:
                    slot = len(self._blocks)
                else:
                    _, (_, slot) = self._blocks.popitem(last=False)
                self._numbers += 1
                block = self._blocks[key] = (self._numbers, slot)
                new.append((index, slot))
            else:
                self._blocks.move_to_end(key)  # or the next unknown block might push it out
            keys.append(key)
            parent = block[0]
        self._touch(keys)
        return new

    def _touch(self, keys: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        for key in reversed(keys):
            self._blocks.move_to_end(key)


def _blocks(kv: Tensor) -> Tensor:
    """View capacity as [blocks, BLOCK]."""
    *front, capacity, head_dim = kv.shape
    return kv.view(*front, capacity // BLOCK, BLOCK, head_dim)
