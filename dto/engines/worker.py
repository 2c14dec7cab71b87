"""The thread that computes: requests come in through a queue, tokens go out to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch

from dto.engines.batch import Batch
from dto.engines.linearised import Linearised
from dto.engines.sampling import Request, Sample

RunningBatch = Batch | Linearised
_PATIENCE = 4  # steps that a request waits for others to join with
_log = logging.getLogger(__name__)


class Worker:
    """First come, first served: waiting requests hold no slot and cost no step.

    `make_batch` is called in the thread, once at the start and again after a failure; when there is
    no memory for it any more, `dead` says so and every request fails with that reason. Joiners are
    let in together: when enough of them wait, or the first has waited long enough.
    """

    def __init__(
        self, make_batch: Callable[[], RunningBatch], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._make_batch = make_batch
        self._loop = loop
        self._inbox: deque[Request] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._cancelled = False
        self._waiting: deque[Sample] = deque()
        self._joining: list[Sample] = []
        self._waited = 0
        self._changed: dict[Request, None] = {}
        self.dead = ""
        self.ready = asyncio.Event()  # the first batch was made, or `dead` says why not
        self._thread = threading.Thread(target=self._run, name="dto-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Hand over a request (event loop)."""
        self._inbox.append(request)
        self._wake.set()

    def cancel(self, request: Request) -> None:
        """Free what a request holds, at the next step (event loop)."""
        request.cancelled = True
        self._cancelled = True

    def close(self) -> None:
        """Stop after the step under way; what is not finished fails. Waits for the thread."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        with torch.inference_mode():
            batch = self._new_batch()
            self._call(self.ready.set)
            while not self._closing:
                self._collect(wait=not self._waiting and not (batch and batch.live))
                try:
                    if batch is None:
                        self._fail_all(None, self.dead)
                    else:
                        self._work(batch)
                except Exception as error:
                    _log.exception("the engine's worker failed; its requests fail and it goes on")
                    self._fail_all(batch, f"engine: {type(error).__name__}: {error}")
                    del batch  # its memory is needed for the next
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
        """Whether to let some in now; they move from waiting to joining."""
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

    def _call(self, what: Callable[[], None]) -> None:
        # The loop is gone when its thread was torn down without leaving the engine.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what)


def _notify(requests: Sequence[Request]) -> None:
    for request in requests:
        request.changed()
