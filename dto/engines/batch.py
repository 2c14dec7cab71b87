"""The running batch: rows that decode together and join and leave at any step.

Rows occupy the front of one buffer. A row that leaves becomes a gap. A joining row fills the gap,
or rows are moved once that pays: into gaps, or next to rows of similar length.

One thread computes. Requests come in through a queue; tokens go out to the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from dto.engines.kv import (
    LEAST_ROWS,
    LENGTH_STEP,
    KVShape,
    Prefill,
    Prefilled,
    PrefixCache,
    RowsCache,
    forward,
    round_up,
)
from dto.engines.linearised import Linearised
from dto.engines.sampling import ROW, Request, Sample, next_tokens

ROW_STEP = 8  # the batch is computed in multiples of this many rows
GROUP = 32  # rows per attention call, which covers the longest row of the group
GROWTH = 2.25  # peak bytes of the buffer while it grows, per byte of its tokens
PATIENCE = 8  # minimum steps between two rearrangements by length


class Batch:
    """The rows in progress. Used by one thread."""

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
        self._prefill = Prefill(model, shape, prefixes)
        self._end_ids = end_ids
        self._samples: list[Sample | None] = []
        self._rows = np.zeros(_padded(slots), dtype=ROW)
        self.cache = RowsCache(shape.zeros(0, LENGTH_STEP))
        self._steps = 0  # since the last rearrangement

    @property
    def samples(self) -> list[Sample]:
        """The samples in progress."""
        return [sample for sample in self._samples if sample is not None]

    def room(self, waiting: Sequence[Sample]) -> int:
        """How many of the waiting samples, in order, fit even if all rows reach their limits.

        A row takes a quarter more than its tokens, and the buffer doubles while it grows. There is
        always room for LEAST_ROWS, since the batch is computed with at least as many rows.
        """
        joiners = list(islice(waiting, self.slots - self.live))
        if not joiners:
            return 0
        longest = max(sample.request.length for sample in (*joiners, *self.samples))
        rows = max(LEAST_ROWS, int(self._tokens / (GROWTH * longest)))
        return min(len(joiners), rows - self.live)

    def admit(self, samples: Sequence[Sample]) -> list[Sample]:
        """Prefill prompts and add their samples; samples of one prompt share its prefill.

        Each sample gets its first token. Scores are computed too. Returns the finished samples.
        """
        ended: list[Sample] = []
        by_prompt: dict[tuple[int, ...], list[Sample]] = {}
        for sample in samples:
            sample.started += 1
            if sample.request.continuation:
                ended.append(self._prefill.score(sample))
            else:
                by_prompt.setdefault(sample.request.prompt, []).append(sample)
        for group in self._prefill.read(list(by_prompt)):
            joiners = [(i, s) for i, prompt in enumerate(group.prompts) for s in by_prompt[prompt]]
            ended += self._join(group, joiners)
        return ended

    def _join(self, group: Prefilled, joiners: Sequence[tuple[int, Sample]]) -> list[Sample]:
        """Place (index of the prompt, sample) pairs; return samples that the first token ended."""
        sources = [index for index, _ in joiners]
        samples = [sample for _, sample in joiners]
        rows = np.zeros(len(samples), dtype=ROW)
        for i, (index, sample) in enumerate(joiners):
            length = len(group.prompts[index])
            first = i == 0 or sources[i - 1] != index
            sample.cached_tokens = group.cached[index] if first else length
            rows[i] = sample.row(length)
        next_tokens(group.logits[sources], samples, rows, self._end_ids)
        staying = [i for i, sample in enumerate(samples) if sample.finish is None]
        if staying:
            width = int(rows["length"][staying].max())
            into = self._take_rows(len(staying), width)
            self._rows[into] = rows[staying]
            for row, i in zip(into, staying, strict=True):
                self._samples[row] = samples[i]
            kv, source = self.cache.kv, group.rows.kv
            kv[:, :, into, :, :width] = source[:, :, [sources[i] for i in staying], :, :width]
            self.live += len(into)
        return [sample for sample in samples if sample.finish is not None]

    def step(self) -> list[Sample]:
        """Compute one token for every row; return the finished samples."""
        self._arrange()
        count = _padded(len(self._samples))
        rows = self._rows[:count]
        limits = _limits(rows["length"])
        self._fit(count, int(rows["length"].max()) + 1)
        samples = self.samples
        for sample in samples:
            sample.started += 1
        device = self._shape.device
        logits = forward(
            self._model,
            self.cache,
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
        next_tokens(logits[at] if len(at) < count else logits, samples, chosen, self._end_ids)
        rows[at] = chosen
        return self.leave([row for row, s in zip(at, samples, strict=True) if s.finish])

    def drop_cancelled(self) -> None:
        """Free the rows of cancelled requests."""
        self.leave(
            [row for row, s in enumerate(self._samples) if s is not None and s.request.cancelled]
        )

    def leave(self, rows: Sequence[int]) -> list[Sample]:
        """Free rows, and store their keys in the prefix cache; return their samples."""
        leaving = [(row, sample) for row in rows if (sample := self._samples[row]) is not None]
        kept = [(row, sample) for row, sample in leaving if sample.finish != "failed"]
        self._prefill.prefixes.store(
            self.cache.kv,
            [row for row, _ in kept],
            [(*s.request.prompt, *s.token_ids)[: self._rows["length"][row]] for row, s in kept],
        )
        for row, sample in leaving:
            if sample.finish == "failed":
                # A nan would outlive its row, since a weight of zero times nan is nan.
                self.cache.kv[:, :, row] = 0
            self._samples[row] = None
            self._rows[row] = np.zeros((), dtype=ROW)
        self.live -= len(leaving)
        return [sample for _, sample in leaving]

    def _take_rows(self, count: int, length: int) -> list[int]:
        """Indices for new rows: gaps first, then the end."""
        gaps = [row for row, sample in enumerate(self._samples) if sample is None][:count]
        new = range(len(self._samples), len(self._samples) + count - len(gaps))
        self._samples += [None] * len(new)
        self._fit(_padded(len(self._samples)), length + 1)
        return [*gaps, *new]

    def _arrange(self) -> None:
        """Remove gaps and group rows of similar length, once that pays.

        All rows grow by one token per step, so their order by length lasts until rows join or
        leave.
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
            for layer in self.cache.kv:  # one layer at a time, since the copy takes memory
                layer[:, targets, :, :width] = layer[:, sources, :, :width]
            self._rows[targets] = self._rows[sources]
        for source, target in zip(sources, targets, strict=True):
            samples[target] = self._samples[source]
        self._rows[self.live : count] = np.zeros((), dtype=ROW)
        self._samples = samples[: self.live]

    def _fit(self, rows: int, length: int) -> None:
        """Resize the buffer for `rows` rows of `length` tokens, or shrink it if far too large."""
        have_rows, have = self.cache.row_count, self.cache.capacity
        longest = max(length, int(self._rows["length"].max()) + 1)
        too_much = have > 4 * max(longest, LENGTH_STEP)
        if rows <= have_rows and longest <= have and not too_much:
            return
        capacity = have
        if longest > have or too_much:
            capacity = round_up(longest + longest // 4, LENGTH_STEP)
        if rows > have_rows:
            rows = min(max(rows, 2 * have_rows), len(self._rows))
        old, self.cache = self.cache.kv, RowsCache(self._shape.zeros(rows, capacity))
        kept, width = min(have_rows, len(self._samples), rows), min(have, capacity)
        self.cache.kv[:, :, :kept, :, :width] = old[:, :, :kept, :, :width]


def _padded(rows: int) -> int:
    return round_up(max(rows, LEAST_ROWS), ROW_STEP)


def _limits(lengths: NDArray[np.int64]) -> list[int]:
    """The number of keys that each group of rows attends to."""
    longest = np.maximum.reduceat(lengths, np.arange(0, len(lengths), GROUP))
    return [round_up(int(length) + 1, LENGTH_STEP) for length in longest]


RunningBatch = Batch | Linearised
_PATIENCE = 4  # steps that a request waits for others to join at the same time
_log = logging.getLogger(__name__)


class Worker:
    """The thread that decodes requests, first come, first served.

    `make_batch` is called in the thread, at the start and after each failure. If there is not
    enough memory for a new batch, `dead` holds the reason, and every request fails with it. Waiting
    requests join together, when enough of them wait or the first has waited long enough.
    """

    def __init__(
        self,
        make_batch: Callable[[], RunningBatch],
        loop: asyncio.AbstractEventLoop,
        threads: int | None = None,
    ) -> None:
        self._make_batch = make_batch
        self._loop = loop
        self._threads = threads  # of a torch operation; None: as torch has it
        self._inbox: deque[Request] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._cancelled = False
        self._waiting: deque[Sample] = deque()
        self._joining: list[Sample] = []
        self._waited = 0
        self._changed: dict[Request, None] = {}
        self.dead = ""
        self.ready = asyncio.Event()  # the first batch exists, or `dead` says why not
        self._thread = threading.Thread(target=self._run, name="dto-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Submit a request (called on the event loop)."""
        self._inbox.append(request)
        self._wake.set()

    def cancel(self, request: Request) -> None:
        """Free the slots of a request at the next step (called on the event loop)."""
        request.cancelled = True
        self._cancelled = True

    def close(self) -> None:
        """Stop after the current step and wait for the thread; unfinished requests fail."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            batch = self._new_batch()
            self._call(self.ready.set)
            while not self._closing:
                self._collect(wait=not self._waiting and not (batch and batch.live))
                failed = False
                try:
                    if batch is None:
                        self._fail_all(None, self.dead)
                    else:
                        self._work(batch)
                except Exception as error:
                    _log.exception("the engine's worker failed; its requests fail, it continues")
                    self._fail_all(batch, f"engine: {type(error).__name__}: {error}")
                    failed = True
                if failed:  # after the error, whose frames hold the batch
                    batch = None
                    batch = self._new_batch()
                self._deliver()
            self._collect(wait=False)
            self._fail_all(batch, "the engine was closed")
            self._deliver()

    def _new_batch(self) -> RunningBatch | None:
        try:
            return self._make_batch()
        except Exception as error:
            self.dead = f"engine: {type(error).__name__}: {error}"
            return None

    def _collect(self, wait: bool) -> None:
        if wait:
            self._wake.wait()
        self._wake.clear()
        while self._inbox:
            self._waiting.extend(self._inbox.popleft().samples)

    def _work(self, batch: RunningBatch) -> None:
        if self._cancelled:
            self._cancelled = False
            batch.drop_cancelled()
            self._waiting = deque(s for s in self._waiting if not s.request.cancelled)
        if self._choose_joiners(batch):
            self._finish(batch.admit(self._joining))
            self._joining = []
        if batch.live:
            self._finish(batch.step())
        self._changed.update((s.request, None) for s in batch.samples if s.request.streaming)

    def _choose_joiners(self, batch: RunningBatch) -> bool:
        """Move waiting samples to joining if some should join now; whether any do."""
        count = batch.room(self._waiting)
        if count <= 0:
            return False
        self._waited += 1
        if batch.live and count < batch.slots // 16 and self._waited < _PATIENCE:
            return False
        self._waited = 0
        self._joining = [self._waiting.popleft() for _ in range(count)]
        return True

    def _finish(self, samples: Iterable[Sample]) -> None:
        self._changed.update((sample.request, None) for sample in samples)

    def _fail_all(self, batch: RunningBatch | None, reason: str) -> None:
        samples = {*self._waiting, *self._joining, *(batch.samples if batch else ())}
        for sample in samples:
            if sample.finish is None:
                sample.fail(reason)
        self._finish(samples)
        self._waiting.clear()
        self._joining = []

    def _deliver(self) -> None:
        if not self._changed:
            return
        requests, self._changed = list(self._changed), {}
        self._call(lambda: _notify(requests))

    def _call(self, function: Callable[[], None]) -> None:
        # The loop is closed if its thread ended without leaving the engine.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)


def _notify(requests: Sequence[Request]) -> None:
    for request in requests:
        request.changed()


SMALL_MODEL = 20_000_000
"""Parameters up to which two workers decode, on two cores, faster than one (by 1.2 with `nano`).

It is the interpreter's lock that they wait for: two processes would be twice as fast.
"""
MOST_WORKERS = 2  # they share the interpreter: a third would mostly wait for it
SAME_START = 32  # tokens; prompts that begin with the same ones go to the same worker


def worker_count(parameters: int | None, device: torch.device, slots: int) -> int:
    """Compute how many workers serve a model: two for a small one where torch has two threads."""
    if device.type != "cpu" or parameters is None or parameters > SMALL_MODEL:
        return 1
    return max(1, min(MOST_WORKERS, torch.get_num_threads(), slots // LEAST_ROWS))


class Workers:
    """Workers that share a model and divide the requests among them.

    Results are those of one worker, since they depend neither on scheduling nor on batch-mates.
    Several workers run each torch operation in one thread: an operation of a small model is too
    short to be divided. Requests whose prompts begin alike go to one worker, whose prefix cache
    holds that beginning, unless it has far more to do than another.
    """

    def __init__(
        self,
        make_batch: Callable[[], RunningBatch],
        loop: asyncio.AbstractEventLoop,
        count: int = 1,
        slots: int = 1,
    ) -> None:
        """Start `count` workers, of `slots` rows each."""
        self._threads_before = torch.get_num_threads()
        threads = 1 if count > 1 else None
        self._workers = [Worker(make_batch, loop, threads) for _ in range(count)]
        self._slots = slots
        self._samples = [0] * count  # under way
        self._placed: dict[Request, int] = {}

    async def ready(self) -> str:
        """Wait until all have started; why one of them cannot, or an empty text."""
        for worker in self._workers:
            await worker.ready.wait()
        return next((worker.dead for worker in self._workers if worker.dead), "")

    def submit(self, request: Request) -> None:
        """Hand over a request (event loop)."""
        index = hash(request.prompt[:SAME_START]) % len(self._workers)
        idlest = min(range(len(self._workers)), key=self._samples.__getitem__)
        if self._samples[index] > 2 * self._samples[idlest] + self._slots:
            index = idlest
        self._placed[request] = index
        self._samples[index] += len(request.samples)
        self._workers[index].submit(request)

    def settle(self, request: Request) -> None:
        """Forget a request; free at the next step what a cancelled one holds (event loop)."""
        index = self._placed.pop(request, None)
        if index is None:  # these workers never had it
            return
        self._samples[index] -= len(request.samples)
        if request.cancelled:
            self._workers[index].cancel(request)

    def close(self) -> None:
        """Stop after the step under way; what is not finished fails. Waits for the threads."""
        for worker in self._workers:
            worker.close()
        if len(self._workers) > 1:  # threads that torch meets from now on have as many as before
            torch.set_num_threads(self._threads_before)
