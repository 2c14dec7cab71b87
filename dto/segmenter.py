"""Thinking texts are segmented in other processes, so that no other work waits for them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from itertools import groupby
from multiprocessing import get_context, parent_process
from types import ModuleType
from typing import Any, NamedTuple

from dto.errors import DtoError
from dto.languages import DEFAULT, Languages
from dto.processes import die_with_parent
from dto.segmentation.patterns import Granularity, TextSegment
from dto.segmentation.worker import pipeline, segment_texts

PROCESSES = min(8, os.cpu_count() or 1)
TEXTS = 32
"""The most texts that a process is sent at once."""


class _Asked(NamedTuple):
    how: tuple[Granularity, Languages]
    text: str
    cuts: asyncio.Future[list[TextSegment]]


class Segmenter:
    """Segments texts in worker processes, which start with the first text.

    Texts that are asked for in the same turn of the event loop go to the processes together.
    """

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._asked: list[_Asked] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def cut(
        self, text: str, granularity: Granularity, languages: Languages = DEFAULT
    ) -> list[TextSegment]:
        """Segment a text as `segment_text` does. Raises DtoError when a process was killed."""
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._send)
        asked = _Asked((granularity, languages), text, loop.create_future())
        self._asked.append(asked)
        return await asked.cuts

    def _send(self) -> None:
        asked, self._asked = self._asked, []
        size = min(TEXTS, -(-len(asked) // PROCESSES))
        for _, alike in groupby(asked, key=lambda each: each.how):
            texts = list(alike)
            for start in range(0, len(texts), size):
                call = asyncio.create_task(self._call(texts[start : start + size]))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)

    async def _call(self, asked: list[_Asked]) -> None:
        loop = asyncio.get_running_loop()
        texts = [each.text for each in asked]
        try:
            self._pool = self._pool or _started()
            cuts = await loop.run_in_executor(self._pool, segment_texts, texts, *asked[0].how)
        except Exception as error:
            for each in asked:
                if not each.cuts.done():
                    each.cuts.set_exception(_reason(error))
            return
        for each, own in zip(asked, cuts, strict=True):
            if not each.cuts.done():  # its row was cancelled
                each.cuts.set_result(own)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _reason(error: Exception) -> Exception:
    if not isinstance(error, BrokenExecutor):
        return error
    return DtoError(
        "a segmentation process was killed, probably because memory ran out: run again; finished "
        "rows are kept"
    )


def start() -> None:
    """Prepare a new worker process: load the pipeline, and keep torch out of the process.

    spaCy imports torch where it is installed, and rule components never use it.
    """
    # Ctrl-C reaches the whole process group, and only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (parent := parent_process()) is not None:  # a worker does not outlive a killed parent
        die_with_parent(parent.pid)
    modules: dict[str, Any] = sys.modules
    modules.setdefault("torch", None)
    pipeline("pattern", DEFAULT)


def _started() -> ProcessPoolExecutor:
    """Start one process per core, at most 8, without Ctrl-C and without the user's script."""
    pool = ProcessPoolExecutor(PROCESSES, get_context("spawn"), start)
    # Each task finds no idle process, so it spawns one, which inherits what is ignored.
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        for _ in range(PROCESSES):
            pool.submit(segment_texts, [], "pattern")
    finally:
        sys.modules["__main__"] = script
        if in_main:
            signal.signal(signal.SIGINT, handler)
    return pool
