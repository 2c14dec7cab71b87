"""Keys and values: of the running rows and of cached prefixes, attention over them, and prefill.

One tensor holds all layers of the rows: [layers, 2, rows, kv_heads, capacity, head_dim]. A row is
never moved or padded because another row joins. Entries beyond a row's length are masked, so they
need only be finite.

The prefix cache stores blocks of `BLOCK` tokens by their exact ids, up to a number of bytes, and
evicts the least recently used block first. The key of a block is the number of its parent block
(never reused) and its own ids. So equal keys mean equal prefixes, without hash collisions. A parent
is always touched after its children, so children are evicted first.

Attention is registered with transformers' interface, so stock models call it. It differs from
`sdpa` in two ways. Grouped-query heads are folded into the query axis instead of copying keys and
values. And the order of summation depends only on a key's position: matrix products have at least
`MIN_ROWS` rows (with fewer, BLAS uses other kernels), the weighted sum of the values proceeds in
blocks of `KEY_BLOCK` keys on a CPU, and masked keys add exact zeros. With MKL on x86 a row is then
bitwise the same alone or in a batch, prefilled or decoded, whatever the padding.

Prefill computes only tokens that the prefix cache does not have, of several prompts in one pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel

from dto.engines.sampling import Sample

LENGTH_STEP = 32  # capacity and attended length are multiples of this
LEAST_ROWS = 16
"""Minimum rows in a linear layer's input. With fewer rows BLAS uses other kernels, whose results
differ in the last bits: MKL below 4 rows on AVX2, below 16 on AVX-512."""


def round_up(count: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `count`, and at least one step."""
    return max(1, -(-count // step)) * step


@dataclass(frozen=True, slots=True)
class KVShape:
    """The shape of one token's keys and values."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    def zeros(self, rows: int, capacity: int) -> Tensor:
        """A tensor of zeros for `rows` rows of `capacity` tokens."""
        return torch.zeros(
            (self.layers, 2, rows, self.kv_heads, capacity, self.head_dim),
            dtype=self.dtype,
            device=self.device,
        )


class RowsCache(Cache):
    """The cache that the model writes to. Call `aim` before each forward pass to say where."""

    def __init__(self, kv: Tensor) -> None:
        super().__init__(layers=[])
        self.kv = kv
        self._index = torch.empty(0, dtype=torch.long)
        self._rows = 0
        self._limit = 0

    @property
    def capacity(self) -> int:
        """The number of tokens that fit into a row."""
        return int(self.kv.shape[4])

    @property
    def row_count(self) -> int:
        """The number of rows."""
        return int(self.kv.shape[2])

    def aim(self, positions: Tensor, limit: int) -> None:
        """Set the target of the next forward pass.

        Args:
            positions: [rows, queries], the position in its row of each token's keys (first rows).
            limit: the number of positions of each row to attend to, including masked ones.
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
        """Always 0: the rows have different lengths, and positions come with the tokens."""
        return 0


def causal_mask(positions: Tensor, limit: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [rows, 1, queries, limit]: a query sees keys up to its own position."""
    keys = torch.arange(limit, device=positions.device)
    hidden = keys > positions[:, None, :, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=positions.device).masked_fill_(
        hidden, torch.finfo(dtype).min
    )


ATTENTION = "dto_rows"
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
        module: the attention layer (unused).
        query: [rows, heads, queries, head_dim].
        key: [rows, kv_heads, keys, head_dim]; `keys` is a multiple of 16.
        value: like key.
        attention_mask: additive float mask [rows, 1, queries, keys].
        scaling: factor on the scores; None: 1 / sqrt(head_dim).
        dropout: must be 0.
        row_groups: slices of rows, each with the number of keys to attend to; the slices tile the
            rows, and the keys left out must be masked. None: all rows attend to all keys.
        kwargs: options of other implementations.

    Returns:
        The attended values [rows, queries, heads, head_dim], and None for the weights.

    Raises:
        NotImplementedError: without a mask, or with an option that changes the scores (soft
            capping, sinks).
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
    step = KEY_BLOCK if value.device.type == "cpu" else keys  # each product is a launch on a GPU
    attended = torch.bmm(weights[:, :, :step], values[:, :step])
    for start in range(step, keys, step):
        block = slice(start, start + step)
        attended += torch.bmm(weights[:, :, block], values[:, block])
    return attended[:, :wide].reshape(rows, heads, queries, head_dim)


AttentionInterface.register(ATTENTION, rows_attention)

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
        """The maximum size of the pool in bytes."""
        return self._pool.nbytes

    def match(self, ids: Sequence[int]) -> list[int]:
        """Pool slots of the longest cached prefix of whole blocks; marks them as recently used."""
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
        """Store the whole blocks of rows of `kv`; `ids[i]` are the ids whose keys row i holds."""
        writes: dict[int, tuple[int, int]] = {}  # slot: (row, block of the row)
        for row, row_ids in zip(rows, ids, strict=True):
            for index, slot in self._insert(row_ids):
                writes[slot] = (row, index)
        if writes:
            into = list(writes)
            from_rows, at = zip(*writes.values(), strict=True)
            self._pool[into] = _blocks(kv)[:, :, list(from_rows), :, list(at)]

    def _insert(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Add entries for new blocks; return (index in the chain, slot to fill) of each."""
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
                self._blocks.move_to_end(key)  # else the next new block might evict it
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


COLUMN_STEP = 8  # queries per row and pass are a multiple of this (twice this for a single row)
MAX_TOKENS = 4096  # per pass
MAX_NUMBERS = 2**24  # attention scores of a layer, or logits, per pass


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Prompts that were prefilled together: their keys and values, and the next logits.

    `logits` is [prompts, vocabulary]; `cached[i]` tokens of prompt i came from the cache.
    """

    prompts: Sequence[tuple[int, ...]]
    rows: RowsCache
    logits: Tensor
    cached: Sequence[int]


def forward(
    model: PreTrainedModel,
    cache: RowsCache,
    ids: Tensor,
    positions: Tensor,
    limit: int,
    keep: int = 1,
    write: Tensor | None = None,
    row_groups: Sequence[tuple[slice, int]] | None = None,
) -> Tensor:
    """Run one forward pass over tokens [rows, queries] at their positions.

    Each row attends to `limit` keys (some to fewer, with `row_groups`). New keys are written to
    `write`; None: to `positions`. Returns float32 logits [rows, keep, vocabulary] of the last
    `keep` queries.
    """
    cache.aim(positions if write is None else write, limit)
    output = model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=causal_mask(positions, limit, cache.kv.dtype),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=keep,
        row_groups=row_groups,
    )
    logits: Tensor = output.logits.float()
    return logits


class Prefill:
    """Computes the keys and values of prompts, except for parts in the prefix cache."""

    def __init__(self, model: PreTrainedModel, shape: KVShape, prefixes: PrefixCache) -> None:
        self._model = model
        self._shape = shape
        self.prefixes = prefixes

    def read(self, prompts: Sequence[tuple[int, ...]]) -> Iterator[Prefilled]:
        """Prefill different prompts, in groups of similar uncached length, shortest first.

        Each group's blocks go into the prefix cache, where the next group finds them.
        """
        cached = {prompt: BLOCK * len(self.prefixes.match(prompt[:-1])) for prompt in prompts}
        missing = {prompt: len(prompt) - count for prompt, count in cached.items()}
        group: list[tuple[int, ...]] = []
        for prompt in sorted(missing, key=lambda prompt: (missing[prompt], len(prompt))):
            longest = round_up(missing[prompt], COLUMN_STEP)
            if group and (
                longest * (len(group) + 1) > MAX_TOKENS or longest > 32 + 2 * missing[group[0]]
            ):
                yield self._read(group)
                group = []
            group.append(prompt)
        if group:
            yield self._read(group)

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> Prefilled:
        rows, cached = self._load(prompts, [len(prompt) - 1 for prompt in prompts])
        (logits,) = self._passes(rows, prompts, cached, 1)
        self.prefixes.store(rows.kv, range(len(prompts)), prompts)
        return Prefilled(prompts, rows, logits[:, -1], cached)

    def score(self, sample: Sample) -> Sample:
        """Finish a sample with the logprobs of its continuation's tokens after the prompt."""
        prompt, continuation = sample.request.prompt, sample.request.continuation
        ids = (*prompt, *continuation[:-1])
        rows, cached = self._load([ids], [len(prompt) - 1])
        scores = sample.logprobs
        for logits in self._passes(rows, [ids], cached, len(continuation)):
            count = min(logits.shape[1], len(continuation) - len(scores))
            targets = torch.as_tensor(continuation[len(scores) : len(scores) + count])
            logprobs = torch.log_softmax(logits[0, -count:], -1)
            scores += logprobs.gather(-1, targets.to(logprobs.device)[:, None])[:, 0].tolist()
        self.prefixes.store(rows.kv, [0], [ids])
        sample.finish = "length"
        return sample

    def _load(
        self, sequences: Sequence[tuple[int, ...]], most: Sequence[int]
    ) -> tuple[RowsCache, list[int]]:
        """One row per sequence, filled from the cache with at most `most[i]` tokens."""
        pairs = zip(sequences, most, strict=True)
        slots = [self.prefixes.match(ids[:limit]) for ids, limit in pairs]
        # One position more than the longest sequence needs: padding is written there.
        capacity = round_up(max(map(len, sequences)) + 1, LENGTH_STEP)
        rows = RowsCache(self._shape.zeros(len(sequences), capacity))
        self.prefixes.load(rows.kv, range(len(sequences)), slots)
        return rows, [BLOCK * len(chain) for chain in slots]

    def _passes(
        self,
        rows: RowsCache,
        sequences: Sequence[tuple[int, ...]],
        cached: Sequence[int],
        keep: int,
    ) -> Iterator[Tensor]:
        """Compute the uncached tokens, a block of columns at a time.

        The sequences end in the same column, so their last logits are aligned. Yields the logits
        [rows, 1 … columns, vocabulary] of each pass that has some of the last `keep` columns.
        """
        count, device = len(sequences), rows.kv.device
        missing = [len(ids) - start for ids, start in zip(sequences, cached, strict=True)]
        columns = max(COLUMN_STEP, LEAST_ROWS // count)
        width = round_up(max(missing), columns)
        ids = torch.zeros((count, width), dtype=torch.long)
        positions = torch.zeros((count, width), dtype=torch.long)
        write = torch.full((count, width), rows.capacity - 1)
        for row, (sequence, start) in enumerate(zip(sequences, cached, strict=True)):
            own = slice(width - missing[row], width)
            ids[row, own] = torch.as_tensor(sequence[start:])
            positions[row, own] = write[row, own] = torch.arange(start, len(sequence))
        ends = positions.amax(0).tolist()  # read here: reading from a GPU waits for each pass
        ids, positions, write = ids.to(device), positions.to(device), write.to(device)
        config = self._model.config
        vocabulary = int(config.vocab_size) if keep > 1 else 1
        numbers = count * max(int(config.num_attention_heads) * rows.capacity, vocabulary)
        most = min(MAX_TOKENS // count, MAX_NUMBERS // numbers)
        step = max(1, most // columns) * columns
        for begin in range(0, width, step):
            end = min(width, begin + step)
            block = slice(begin, end)
            wanted = min(end - begin, end - (width - keep))
            limit = round_up(max(ends[block]) + 1, LENGTH_STEP)
            kept = max(1, wanted, -(-LEAST_ROWS // count))
            logits = forward(
                self._model, rows, ids[:, block], positions[:, block], limit, kept, write[:, block]
            )
            if wanted > 0:
                yield logits[:, -wanted:]
