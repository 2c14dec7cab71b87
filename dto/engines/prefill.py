"""Reading prompts: only what the prefix cache does not hold, several prompts in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dto.engines.kv import (
    BLOCK,
    LEAST_ROWS,
    LENGTH_STEP,
    KVShape,
    PrefixCache,
    RowsCache,
    causal_mask,
    round_up,
)
from dto.engines.sampling import Sample

COLUMN_STEP = 8  # queries per row and pass are a multiple of this, of one row twice of it
MAX_TOKENS = 4096  # of one pass
MAX_NUMBERS = 2**24  # scores of one layer, or logits, of one pass


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Prompts that were read together: keys and values, and what comes next.

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
    """One pass over tokens [rows, queries] at their positions.

    `limit` keys of each row are looked at (`row_groups`: fewer of some); keys go to `write`, or to
    `positions` when None.
    Returns float32 logits [rows, keep, vocabulary] of the last `keep` queries.
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
    """Reads prompts into rows of their own, as far as the prefix cache does not hold them."""

    def __init__(self, model: PreTrainedModel, shape: KVShape, prefixes: PrefixCache) -> None:
        self._model = model
        self._shape = shape
        self.prefixes = prefixes

    def read(self, prompts: Sequence[tuple[int, ...]]) -> Iterator[Prefilled]:
        """Read different prompts, in groups of similar uncached length; shortest first.

        Each group's blocks go into the prefix cache, where the next group finds them.
        """
        known = {prompt: BLOCK * len(self.prefixes.match(prompt[:-1])) for prompt in prompts}
        missing = {prompt: len(prompt) - count for prompt, count in known.items()}
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
        """End a sample with the logprobs of the continuation's tokens after the prompt."""
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
        """A row per sequence, filled from the cache with at most `most[i]` tokens."""
        pairs = zip(sequences, most, strict=True)
        slots = [self.prefixes.match(ids[:limit]) for ids, limit in pairs]
        # One place more than the longest needs: padding is written to the last one.
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
        """Compute what is not cached, a block of columns at a time.

        The sequences end in the same column, so their last logits stand together. Yields the logits
        [rows, 1 … columns, vocabulary] of each pass that holds some of the last `keep` columns.
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
            limit = round_up(int(positions[:, block].max()) + 1, LENGTH_STEP)
            kept = max(1, wanted, -(-LEAST_ROWS // count))
            logits = forward(
                self._model, rows, ids[:, block], positions[:, block], limit, kept, write[:, block]
            )
            if wanted > 0:
                yield logits[:, -wanted:]
