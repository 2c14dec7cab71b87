"""Decode a response and trials on its prefixes as one sequence (2504.15895: branch-parallel).

The main chain and its branches share one sequence of keys and values, and every forward pass takes
the next tokens of all of them. A mask lets a branch see its own tokens and the main chain up to its
cut; the main chain sees no branch. Each token has the position that it would have alone, so no
prefix is copied or computed twice.

The main chain's keys occupy the first slots, in order, and its sums have the same order as in the
running batch. So its tokens and logprobs equal those of a stream of the engine, bitwise where the
engine promises that. Branches follow in any order and are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from dto.engines.kv import (
    COLUMN_STEP,
    LEAST_ROWS,
    LENGTH_STEP,
    MAX_NUMBERS,
    KVShape,
    Prefill,
    PrefixCache,
    RowsCache,
    round_up,
)
from dto.engines.sampling import ROW, Sample, next_tokens

CHAINS = 16  # chains that decode together; further requests wait
READ_TOKENS = 512  # prompt tokens per pass, so that a long prompt does not delay decoding
RESERVE = 64  # slots by which the main chain can grow before branches must move

_FREE, _TRUNK = -1, 0


@dataclass(slots=True, eq=False)
class _Chain:
    """The tokens of a sample: the first `shared` belong to the trunk, the others are at `slots`.

    The main chain's own tokens become part of the trunk when they are computed.
    """

    sample: Sample
    number: int  # its entry in `_owner`
    shared: int
    slots: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """The number of tokens with computed keys."""
        return self.shared + len(self.slots)

    @property
    def pending(self) -> Sequence[int]:
        """The tokens without computed keys; at least one."""
        missing = len(self.sample.request.prompt) - self.length
        if missing > 0:
            return self.sample.request.prompt[-missing:]
        return self.sample.token_ids[-missing:]


class Linearised:
    """A batch whose samples share one row: a main chain and its branches. Used by one thread.

    `_trunk` holds the ids of the first slots, each at its own position. `_owner` and `_positions`
    give, for each slot, the chain of its token and the token's position in the response.
    """

    def __init__(self, model: PreTrainedModel, shape: KVShape, end_ids: frozenset[int]) -> None:
        self.slots = CHAINS
        self.live = 0
        self._model = model
        self._shape = shape
        self._end_ids = end_ids
        self._apart = Prefill(model, shape, PrefixCache(shape, 0))  # for scores
        self._chains: list[_Chain] = []
        self._numbers = _TRUNK
        self._clear()

    def _clear(self) -> None:
        self._main: _Chain | None = None
        self._trunk: list[int] = []
        self._border = 0  # first slot of the branches
        self.cache = RowsCache(self._shape.zeros(1, LENGTH_STEP))
        self._owner = np.full(LENGTH_STEP, _FREE)
        self._positions = np.zeros(LENGTH_STEP, dtype=np.int64)

    @property
    def samples(self) -> list[Sample]:
        """The samples in progress."""
        return [chain.sample for chain in self._chains]

    def room(self, waiting: Sequence[Sample]) -> int:
        """How many of the waiting samples, in order, may join."""
        return min(self.slots - self.live, len(waiting))

    def admit(self, samples: Sequence[Sample]) -> list[Sample]:
        """Add samples; the next passes read the new parts of their prompts.

        Scores are computed at once, outside the sequence. Returns the finished samples.
        """
        ended = []
        for sample in samples:
            sample.started = 1
            if sample.request.continuation:
                ended.append(self._apart.score(sample))
            else:
                self._add(sample)
        return ended

    def _add(self, sample: Sample) -> None:
        computed: Sequence[int] = self._trunk
        if self._main is not None:
            computed = (*self._main.sample.request.prompt, *self._main.sample.token_ids)
        sample.cached_tokens = shared = _common(sample.request.prompt[:-1], computed)
        if self._chains:
            self._numbers += 1
            self._chains.append(_Chain(sample, self._numbers, shared))
        else:
            self._owner[shared : len(self._trunk)] = _FREE
            del self._trunk[shared:]
            self._main = _Chain(sample, _TRUNK, shared)
            self._chains.append(self._main)
        self.live += 1

    def step(self) -> list[Sample]:
        """Run one pass: one token for each chain with a read prompt; return finished samples."""
        work = self._plan()
        for chain, taken in work:
            if len(taken) == len(chain.pending):
                chain.sample.started = len(chain.sample.token_ids) + 1
        logits = self._pass(work)
        ready = [chain for chain, _ in work if len(chain.pending) == 0]
        samples = [chain.sample for chain in ready]
        if ready:
            rows = np.array([chain.sample.row(chain.length) for chain in ready], dtype=ROW)
            next_tokens(logits[: len(ready)], samples, rows, self._end_ids)
        if any(sample.finish == "failed" for sample in samples):
            # A non-finite number reaches every chain of the sequence, masked or not.
            for chain in self._chains:
                chain.sample.fail("the model's logits are not finite")
            failed = self._leave(list(self._chains))
            self._clear()
            return failed
        return self._leave([chain for chain in ready if chain.sample.finish is not None])

    def drop_cancelled(self) -> None:
        """Free the slots of cancelled requests."""
        self._leave([chain for chain in self._chains if chain.sample.request.cancelled])

    def _plan(self) -> list[tuple[_Chain, Sequence[int]]]:
        """The chains and tokens of the next pass: chains that decode, then chains that read."""
        heads = int(self._model.config.num_attention_heads)
        room = max(CHAINS, min(READ_TOKENS, MAX_NUMBERS // (heads * self.cache.capacity)))
        work = []
        for chain in sorted(self._chains, key=lambda chain: len(chain.pending) > 1):
            if chain.shared <= len(self._trunk) and room:  # else its prefix is not read yet
                taken = chain.pending[:room]
                room -= len(taken)
                work.append((chain, taken))
        return work

    def _pass(self, work: Sequence[tuple[_Chain, Sequence[int]]]) -> torch.Tensor:
        """Compute tokens of chains and keep their keys.

        Returns float32 logits [chains, vocabulary] of the chains with no pending tokens left,
        padded to at least LEAST_ROWS rows.
        """
        own = sum(len(taken) for chain, taken in work if chain is self._main)
        others = sum(len(taken) for _, taken in work) - own
        free = self._room(own, others).tolist()
        width = round_up(max(own + others, LEAST_ROWS), COLUMN_STEP)
        # Padding sees the first token and is written to a slot that is otherwise unused.
        ids, positions, numbers = (np.zeros(width, dtype=np.int64) for _ in range(3))
        write = np.full(width, self.cache.capacity - 1)
        cuts = np.ones(width, dtype=np.int64)
        last: list[int] = []
        end = 0
        for chain, taken in work:
            start, end = end, end + len(taken)
            at = slice(start, end)
            ids[at] = taken
            positions[at] = np.arange(chain.length, chain.length + len(taken))
            numbers[at], cuts[at] = chain.number, chain.shared
            if len(taken) == len(chain.pending):
                last.append(end - 1)
            if chain is self._main:
                write[at] = positions[at]
                self._trunk += taken
                chain.shared += len(taken)
            else:
                write[at], free = free[: len(taken)], free[len(taken) :]
                chain.slots += write[at].tolist()
        self._owner[write[:end]] = numbers[:end]
        self._positions[write[:end]] = positions[:end]
        limit = round_up(int(np.flatnonzero(self._owner != _FREE)[-1]) + 1, LENGTH_STEP)
        owner, at_position = self._owner[:limit], self._positions[:limit]
        trunk = (owner == _TRUNK) & (at_position < cuts[:, None])
        own_keys = (owner == numbers[:, None]) & (at_position <= positions[:, None])
        hidden = ~(trunk | own_keys)  # [queries, limit]: keys that a query must not see
        last += [0] * (LEAST_ROWS - len(last))
        device, dtype = self._shape.device, self._shape.dtype
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
        mask.masked_fill_(torch.from_numpy(hidden).to(device), torch.finfo(dtype).min)
        self.cache.aim(torch.from_numpy(write)[None].to(device), limit)
        output: Any = self._model(
            input_ids=torch.from_numpy(ids)[None].to(device),
            position_ids=torch.from_numpy(positions)[None].to(device),
            attention_mask=mask[None, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=torch.tensor(last, device=device),
        )
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def _room(self, own: int, others: int) -> NDArray[np.int64]:
        """Make room for tokens of the main chain and of branches; return slots for the branches.

        Branches move closer together behind the main chain when it reaches them, and when most of
        their slots have become gaps.
        """
        held = [slot for chain in self._chains for slot in chain.slots]
        end = len(self._trunk) + own
        top = max(held, default=self._border - 1) + 1
        if end > self._border or top - self._border > 2 * len(held) + LENGTH_STEP or not held:
            self._border = round_up(end + RESERVE, LENGTH_STEP)
            moved = np.arange(self._border, self._border + len(held))
            self._grow(self._border + len(held) + others)
            kv, positions = self.cache.kv, self._positions[held]
            kv[:, :, 0, :, moved] = kv[:, :, 0, :, held]
            owners = self._owner[held]
            self._owner[held] = _FREE
            self._owner[moved], self._positions[moved] = owners, positions
            places = iter(moved.tolist())
            for chain in self._chains:
                chain.slots = [next(places) for _ in chain.slots]
        self._grow(max(self._border, top) + others)
        return self._border + np.flatnonzero(self._owner[self._border : -1] == _FREE)[:others]

    def _grow(self, slots: int) -> None:
        """Enlarge the sequence to `slots` slots, and one for padding."""
        have = self.cache.capacity
        if slots < have:
            return
        capacity = round_up(slots + slots // 4 + 1, LENGTH_STEP)
        old, self.cache = self.cache.kv, RowsCache(self._shape.zeros(1, capacity))
        self.cache.kv[..., :have, :] = old
        self._owner = np.pad(self._owner, (0, capacity - have), constant_values=_FREE)
        self._positions = np.pad(self._positions, (0, capacity - have))

    def _leave(self, chains: Sequence[_Chain]) -> list[Sample]:
        """Remove chains. The keys of the main chain stay for later requests."""
        for chain in chains:
            self._owner[chain.slots] = _FREE
            self._chains.remove(chain)
            if chain is self._main:
                self._main = None
        if self._main is None:
            for chain in self._chains:  # a branch may have waited for tokens that never come
                chain.shared = min(chain.shared, len(self._trunk))
                chain.sample.cached_tokens = min(chain.sample.cached_tokens, chain.shared)
        self.live = len(self._chains)
        return [chain.sample for chain in chains]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the common prefix of two sequences."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
