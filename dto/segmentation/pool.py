"""The processes that cut texts into thinking patterns (`dto.segmentation.worker`)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

from dto.segmentation.worker import segment_texts, start


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
