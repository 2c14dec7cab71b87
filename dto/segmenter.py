"""Thinking texts are cut in processes of their own; importing this loads only spaCy."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context, parent_process
from typing import Any

from dto.errors import DtoError
from dto.processes import die_with_parent
from dto.segmentation.patterns import Granularity, TextSegment
from dto.segmentation.worker import pipeline, segment_texts


def start() -> None:
    """Make a fresh worker process ready: load the pipeline, and keep torch out of the process.

    spaCy's numerics import torch where it is installed, and rule components never use it.
    """
    # Ctrl-C reaches the whole process group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (parent := parent_process()) is not None:  # killed, it leaves its pool waiting for ever
        die_with_parent(parent.pid)
    modules: dict[str, Any] = sys.modules
    modules.setdefault("torch", None)
    pipeline("pattern")


class Segmenter:
    """Cuts thinking texts in processes of their own, which start with the first text."""

    def __init__(self) -> None:
        self._opened = ExitStack()
        self._pool: ProcessPoolExecutor | None = None

    async def cut(self, text: str, granularity: Granularity) -> list[TextSegment]:
        """The thinking patterns of a text, as :func:`segment_text` gives them.

        Raises DtoError when a process was killed.
        """
        if self._pool is None:
            self._pool = self._opened.enter_context(processes())
        loop = asyncio.get_running_loop()
        try:
            cuts = await loop.run_in_executor(self._pool, segment_texts, [text], granularity)
        except BrokenExecutor:
            raise DtoError(
                "a segmentation process was killed, probably for memory: run again, what "
                "was computed is kept"
            ) from None
        return cuts[0]

    def close(self) -> None:
        """End the processes."""
        self._opened.close()


@contextmanager
def processes() -> Iterator[ProcessPoolExecutor]:
    """One for each core, at most 8; they leave Ctrl-C to this one from their first moment on."""
    count = min(8, os.cpu_count() or 1)
    pool = ProcessPoolExecutor(count, get_context("spawn"), start)
    # A process is spawned with the task that finds none idle, and inherits what is ignored.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        for _ in range(count):
            pool.submit(segment_texts, [], "pattern")
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
