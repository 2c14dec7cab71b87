"""Segment thinking texts, in this process or in others; importing this does not load torch.

A text is the thinking of a trajectory, `trajectory.text[slice(*trajectory.thinking)]`, and offsets
are relative to it. :func:`dto.stages.segment.snap` moves the cuts to token borders.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context, parent_process
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dto.concurrency import die_with_parent
from dto.errors import DtoError
from dto.languages import DEFAULT, Languages
from dto.segmentation.patterns import Granularity, TextSegment

if TYPE_CHECKING:
    from spacy.language import Language

_ONE_AT_A_TIME = threading.Lock()
"""A pipeline serves one thread at a time."""
MAX_WORDS = 500_000  # distinct words after which a pipeline is dropped: about 30 MB


def segment_texts(
    texts: Sequence[str], granularity: Granularity, languages: Languages = DEFAULT
) -> list[list[TextSegment]]:
    """Segment each text; see :func:`segment_text`."""
    nlp, cuts = pipeline(granularity, languages), list[list[TextSegment]]()
    # Without a memory zone the vocabulary keeps every new word of every trace.
    with nlp.memory_zone():
        for text in texts:
            document = nlp.make_doc(text)
            document.user_data["dto_text"] = text
            cuts.append(list(nlp(document)._.dto_patterns) if text else [])
    if len(nlp.vocab) > MAX_WORDS:  # a memory zone frees words, but not their rows in the table
        pipeline.cache_clear()
    return cuts


def segment_text(
    text: str, granularity: Granularity = "pattern", languages: Languages = DEFAULT
) -> list[TextSegment]:
    """Cut a thinking text into thinking patterns (2505.21765, section 3).

    With granularity `pattern` a segment begins at each new thinking pattern, with `cue` at each cue
    at the start of a sentence. The segments tile `text`. The first has no cue and the kind
    `opening`; an empty text has no segments. Raises LanguageError for a missing or wrong language.
    """
    with _ONE_AT_A_TIME:
        return segment_texts([text], granularity, languages)[0]


@cache
def pipeline(granularity: Granularity, languages: Languages = DEFAULT) -> Language:
    """Make the blank spaCy pipeline with the pattern component, once in a process."""
    import spacy

    import dto.segmentation.component  # noqa: F401  # registers the factory without an installation

    nlp = spacy.blank("xx")
    nlp.max_length = sys.maxsize  # the limit is for parsers, and this pipeline has none
    nlp.add_pipe("dto_patterns", config={"granularity": granularity, "languages": list(languages)})
    return nlp


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


class Segmenter:
    """Segments texts in worker processes, which start with the first text."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    async def cut(
        self, text: str, granularity: Granularity, languages: Languages = DEFAULT
    ) -> list[TextSegment]:
        """Segment a text as `segment_text` does. Raises DtoError when a process was killed."""
        self._pool = self._pool or _started()
        loop = asyncio.get_running_loop()
        try:
            cuts = await loop.run_in_executor(
                self._pool, segment_texts, [text], granularity, languages
            )
        except BrokenExecutor:
            raise DtoError(
                "a segmentation process was killed, probably because memory ran out: run again; "
                "finished rows are kept"
            ) from None
        return cuts[0]

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _started() -> ProcessPoolExecutor:
    """Start one process per core, at most 8, without Ctrl-C and without the user's script."""
    count = min(8, os.cpu_count() or 1)
    pool = ProcessPoolExecutor(count, get_context("spawn"), start)
    # Each task finds no idle process, so it spawns one, which inherits what is ignored.
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        for _ in range(count):
            pool.submit(segment_texts, [], "pattern")
    finally:
        sys.modules["__main__"] = script
        if in_main:
            signal.signal(signal.SIGINT, handler)
    return pool
