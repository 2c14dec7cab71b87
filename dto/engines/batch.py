"""The running batch: rows that decode together, joining and leaving as they please.

Rows stand at the front of one buffer. A row that leaves stays behind as a dead one until a joiner
takes its place, or until moving rows pays: into gaps, or next to rows of their own length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from dto.engines.kv import LEAST_ROWS, LENGTH_STEP, KVShape, PrefixCache, RowsCache, round_up
from dto.engines.prefill import Prefilled, forward, prefill, score
from dto.engines.sampling import Sample, choose, penalised, uniforms

ROW_STEP = 8  # the batch is computed in multiples of this many rows
GROUP = 32  # rows that are attended to together, as far as the longest of them needs
GROWTH = 2.25  # bytes of the buffer, at its most while it grows, by those of the tokens in it
PATIENCE = 8  # steps between two arrangements by length

_ROW = np.dtype(
    [
        ("token", np.int64),  # the last one, whose keys are not computed yet
        ("length", np.int64),  # tokens whose keys are computed
        ("seed", np.uint64),
        ("temperature", np.float64),
        ("top_p", np.float64),
        ("top_k", np.int64),
        ("min_p", np.float64),
    ]
)


class Batch:
    """Rows under way. Used by one thread."""

    def __init__(
        self,
        model: PreTrainedModel,
        shape: KVShape,
        prefixes: PrefixCache,
        slots: int,
        kv_bytes: int,
        end_ids: frozenset[int],
    ) -> None:
        self.slots = slots
        self.live = 0
        self._tokens = kv_bytes // shape.token_bytes
        self._model = model
        self._shape = shape
        self._prefixes = prefixes
        self._end_ids = end_ids
        self._samples: list[Sample | None] = []
        self._rows = np.zeros(_padded(slots), dtype=_ROW)
        self._cache = RowsCache(shape.zeros(0, LENGTH_STEP))
        self._steps = 0  # since the rows were arranged

    @property
    def samples(self) -> list[Sample]:
        """The samples under way."""
        return [sample for sample in self._samples if sample is not None]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values now held."""
        return self._cache.kv.nbytes

    def room(self, joiners: Sequence[Sample]) -> int:
        """How many of the joiners fit beside the rows that are here, however long all become.

        A row takes a quarter more than its tokens, and twice the rows while the buffer grows. There
        is always room for LEAST_ROWS, as the batch is computed with so many in any case.
        """
        longest = max(sample.request.length for sample in (*joiners, *self.samples))
        rows = max(LEAST_ROWS, int(self._tokens / (GROWTH * longest)))
        return min(self.slots, rows) - self.live

    def admit(self, samples: Sequence[Sample]) -> list[Sample]:
        """Read prompts and take in their samples; samples of one prompt share its reading.

        Each gets its first token. Scores are computed on the way. Returns the samples that ended.
        """
        ended: list[Sample] = []
        by_prompt: dict[tuple[int, ...], list[Sample]] = {}
        for sample in samples:
            sample.started += 1
            if sample.request.continuation:
                ended.append(self._scored(sample))
            else:
                by_prompt.setdefault(sample.request.prompt, []).append(sample)
        for group in prefill(self._model, self._shape, self._prefixes, list(by_prompt)):
            joiners = [(i, s) for i, prompt in enumerate(group.prompts) for s in by_prompt[prompt]]
            ended += self._join(group, joiners)
        return ended

    def _scored(self, sample: Sample) -> Sample:
        """The sample of a request that asks for a score alone, ended."""
        request = sample.request
        sample.logprobs = score(
            self._model, self._shape, self._prefixes, request.prompt, request.continuation
        )
        sample.finish = "length"
        return sample

    def _join(self, group: Prefilled, joiners: Sequence[tuple[int, Sample]]) -> list[Sample]:
        """Place samples (index of the prompt, sample); returns those that a first token ended."""
        sources = [index for index, _ in joiners]
        samples = [sample for _, sample in joiners]
        rows = np.zeros(len(samples), dtype=_ROW)
        for i, (index, sample) in enumerate(joiners):
            sampling, length = sample.request.sampling, len(group.prompts[index])
            first = i == 0 or sources[i - 1] != index
            sample.cached_tokens = group.cached[index] if first else length
            rows[i] = (
                0, length, sample.seed % 2**64, sampling.temperature, sampling.top_p,
                sampling.top_k, sampling.min_p,
            )  # fmt: skip
        self._next_tokens(group.logits[sources], samples, rows)
        staying = [i for i, sample in enumerate(samples) if sample.finish is None]
        if staying:
            width = int(rows["length"][staying].max())
            into = self._take_rows(len(staying), width)
            self._rows[into] = rows[staying]
            for row, i in zip(into, staying, strict=True):
                self._samples[row] = samples[i]
            kv, source = self._cache.kv, group.rows.kv
            kv[:, :, into, :, :width] = source[:, :, [sources[i] for i in staying], :, :width]
            self.live += len(into)
        return [sample for sample in samples if sample.finish is not None]

    def step(self) -> list[Sample]:
        """One token for every row; returns the samples that ended."""
        self._arrange()
        count = _padded(len(self._samples))
        rows = self._rows[:count]
        limits = _limits(rows["length"])
        self._fit(count, int(rows["length"].max()) + 1)
        under_way = self.samples
        for sample in under_way:
            sample.started += 1
        device = self._shape.device
        logits = forward(
            self._model,
            self._cache,
            torch.from_numpy(rows["token"][:, None].copy()).to(device),
            torch.from_numpy(rows["length"][:, None].copy()).to(device),
            max(limits),
            row_groups=[
                (slice(i * GROUP, min(count, (i + 1) * GROUP)), limit)
                for i, limit in enumerate(limits)
            ],
        )[:, 0]
        at = [row for row, sample in enumerate(self._samples) if sample is not None]
        chosen = rows[at]
        chosen["length"] += 1
        self._next_tokens(logits[at] if len(at) < count else logits, under_way, chosen)
        rows[at] = chosen
        return self.leave([row for row, s in zip(at, under_way, strict=True) if s.finish])

    def drop_cancelled(self) -> None:
        """Free the rows of cancelled requests."""
        self.leave(
            [row for row, s in enumerate(self._samples) if s is not None and s.request.cancelled]
        )

    def leave(self, rows: Sequence[int]) -> list[Sample]:
        """Free rows, whose keys go to the prefix cache. Returns their samples."""
        leaving = [(row, sample) for row in rows if (sample := self._samples[row]) is not None]
        kept = [(row, sample) for row, sample in leaving if sample.finish != "failed"]
        self._prefixes.store(
            self._cache.kv,
            [row for row, _ in kept],
            [(*s.request.prompt, *s.token_ids)[: self._rows["length"][row]] for row, s in kept],
        )
        for row, sample in leaving:
            if sample.finish == "failed":
                # A nan would outlive its row: a masked weight of zero does not silence it.
                self._cache.kv[:, :, row] = 0
            self._samples[row] = None
            self._rows[row] = np.zeros((), dtype=_ROW)
        self.live -= len(leaving)
        return [sample for _, sample in leaving]

    def _next_tokens(self, logits: Tensor, samples: Sequence[Sample], rows: NDArray[Any]) -> None:
        """Choose and record a token for each sample; sets `token` of its row."""
        highest = logits.amax(-1)
        finite = torch.isfinite(highest)
        numbers = uniforms(rows["seed"], rows["length"])
        tokens = choose(
            _without_banned(_with_penalties(logits, samples), samples),
            rows["temperature"],
            rows["top_p"],
            rows["top_k"],
            rows["min_p"],
            numbers,
        )
        chosen: list[int] = tokens.tolist()
        rows["token"] = chosen
        if not bool(finite.all()):
            for sample, good in zip(samples, finite.tolist(), strict=True):
                if not good:
                    sample.fail("the model's logits are not finite")
        self._record_logprobs(logits, tokens, samples)
        for sample, token in zip(samples, chosen, strict=True):
            if sample.finish is None:
                self._accept(sample, token)

    def _record_logprobs(self, logits: Tensor, tokens: Tensor, samples: Sequence[Sample]) -> None:
        at = [i for i, s in enumerate(samples) if s.request.sampling.logprobs is not None]
        if not at:
            return
        logprobs = torch.log_softmax(logits[at], -1)
        own = logprobs.gather(-1, tokens[at][:, None])[:, 0].tolist()
        most = max(samples[i].request.sampling.logprobs or 0 for i in at)
        top = logprobs.topk(min(most, logprobs.shape[-1]), -1)
        values, ids = top.values.tolist(), top.indices.tolist()
        for place, i in enumerate(at):
            samples[i].logprobs.append(own[place])
            if wanted := samples[i].request.sampling.logprobs:
                likely: Mapping[int, float] = dict(
                    zip(ids[place][:wanted], values[place][:wanted], strict=True)
                )
                samples[i].top_logprobs.append(likely)

    def _accept(self, sample: Sample, token: int) -> None:
        request = sample.request
        ended, stop = token in self._end_ids, None
        if sample.reader is not None:
            piece = ""
            if not ended:
                piece, stop = sample.reader.read(token)
            sample.pieces.append(piece)
        sample.token_ids.append(token)
        sample.see(token)
        sample.stop = stop
        if ended or stop is not None or token in request.sampling.stop_token_ids:
            sample.finish = "stop"
        elif len(sample.token_ids) >= request.limit:
            sample.finish = "length"

    def _take_rows(self, count: int, length: int) -> list[int]:
        """Indices for new rows: gaps first, then the end."""
        gaps = [row for row, sample in enumerate(self._samples) if sample is None][:count]
        new = range(len(self._samples), len(self._samples) + count - len(gaps))
        self._samples += [None] * len(new)
        self._fit(_padded(len(self._samples)), length + 1)
        return [*gaps, *new]

    def _arrange(self) -> None:
        """Drop dead rows and gather rows of similar length in groups, once that pays.

        Rows grow in step, so an order by length lasts until rows leave and join.
        """
        self._steps += 1
        count = len(self._samples)
        dead = count - self.live
        lengths = self._rows["length"][:count]
        longest_first = np.argsort(-lengths, kind="stable")[: self.live]
        if dead < max(ROW_STEP, count // 8):
            spread = sum(_limits(lengths)) > 1.25 * sum(_limits(lengths[longest_first]))
            if not spread or self._steps < PATIENCE:
                return
        self._steps = 0
        free: list[list[int]] = [
            list(range(start, min(self.live, start + GROUP)))
            for start in range(0, self.live, GROUP)
        ]
        moving: list[tuple[int, int]] = []  # row, group
        for rank, row in enumerate(longest_first.tolist()):
            if row < self.live and row // GROUP == rank // GROUP:
                free[row // GROUP].remove(row)
            else:
                moving.append((row, rank // GROUP))
        sources = [row for row, _ in moving]
        targets = [free[group].pop() for _, group in moving]
        samples = list(self._samples)
        if moving:
            width = int(lengths[sources].max())
            for layer in self._cache.kv:  # layer by layer, since the copy takes memory
                layer[:, targets, :, :width] = layer[:, sources, :, :width]
            self._rows[targets] = self._rows[sources]
        for source, target in zip(sources, targets, strict=True):
            samples[target] = self._samples[source]
        self._rows[self.live : count] = np.zeros((), dtype=_ROW)
        self._samples = samples[: self.live]

    def _fit(self, rows: int, length: int) -> None:
        """Room for `rows` rows of `length` tokens; far too much room is given back."""
        have_rows, have = self._cache.row_count, self._cache.capacity
        longest = max(length, int(self._rows["length"].max()) + 1)
        too_much = have > 4 * max(longest, LENGTH_STEP)
        if rows <= have_rows and longest <= have and not too_much:
            return
        capacity = have
        if longest > have or too_much:
            capacity = round_up(longest + longest // 4, LENGTH_STEP)
        if rows > have_rows:
            rows = min(max(rows, 2 * have_rows), len(self._rows))
        old, self._cache = self._cache.kv, RowsCache(self._shape.zeros(rows, capacity))
        kept, width = min(have_rows, len(self._samples), rows), min(have, capacity)
        self._cache.kv[:, :, :kept, :, :width] = old[:, :, :kept, :, :width]


def _padded(rows: int) -> int:
    return round_up(max(rows, LEAST_ROWS), ROW_STEP)


def _limits(lengths: NDArray[np.int64]) -> list[int]:
    """How many keys each group of rows looks at."""
    longest = np.maximum.reduceat(lengths, np.arange(0, len(lengths), GROUP))
    return [round_up(int(length) + 1, LENGTH_STEP) for length in longest]


def _with_penalties(logits: Tensor, samples: Sequence[Sample]) -> Tensor:
    """The logits less the presence penalty of what each sample's response holds so far."""
    penalties = [s.request.sampling.presence_penalty for s in samples]
    if not any(penalties):
        return logits
    present = [list(s.present) for s in samples]
    return penalised(logits, present, penalties)


def _without_banned(logits: Tensor, samples: Sequence[Sample]) -> Tensor:
    """The logits to choose from; those that logprobs are read from stay as they are."""
    rows = [(i, s.request.sampling.banned) for i, s in enumerate(samples)]
    if not any(banned for _, banned in rows):
        return logits
    logits = logits.clone()
    for i, banned in rows:
        if banned:
            logits[i, list(banned)] = float("-inf")
    return logits
