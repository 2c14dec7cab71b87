"""Segmentation of thinking texts, here or in other processes; importing this loads only spaCy.

`text` is a thinking text (`trajectory.text[slice(*trajectory.thinking)]`); offsets are relative to
it. Hand the cuts to :func:`dto.stages.segment.snap`.
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
"""A pipeline is for one thread."""
MAX_WORDS = 500_000  # distinct ones, in a pipeline's life: about 30 MB


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
    if len(nlp.vocab) > MAX_WORDS:  # a zone frees the words but not their places in the table
        pipeline.cache_clear()
    return cuts


def segment_text(
    text: str, granularity: Granularity = "pattern", languages: Languages = DEFAULT
) -> list[TextSegment]:
    """Cut a thinking text into thinking patterns (2505.21765, section 3).

    `pattern` opens a segment where a new thinking pattern begins, `cue` at every cue at the start
    of a sentence. The segments tile `text`; the first has no cue and the kind `opening`; an empty
    text has none.
    """
    with _ONE_AT_A_TIME:
        return segment_texts([text], granularity, languages)[0]


@cache
def pipeline(granularity: Granularity, languages: Languages = DEFAULT) -> Language:
    """The blank spaCy pipeline with the pattern component."""
    import spacy

    import dto.segmentation.component  # noqa: F401  # registers the factory without an installation

    nlp = spacy.blank("xx")
    nlp.max_length = sys.maxsize  # the limit guards parsers, and there is none here
    nlp.add_pipe("dto_patterns", config={"granularity": granularity, "languages": list(languages)})
    return nlp


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
    pipeline("pattern", DEFAULT)


class Segmenter:
    """Cuts thinking texts in processes of their own, which start with the first text."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    async def cut(
        self, text: str, granularity: Granularity, languages: Languages = DEFAULT
    ) -> list[TextSegment]:
        """The thinking patterns of a text, as :func:`segment_text` gives them.

        Raises DtoError when a process was killed.
        """
        self._pool = self._pool or _started()
        loop = asyncio.get_running_loop()
        try:
            cuts = await loop.run_in_executor(
                self._pool, segment_texts, [text], granularity, languages
            )
        except BrokenExecutor:
            raise DtoError(
                "a segmentation process was killed, probably for memory: run again, what "
                "was computed is kept"
            ) from None
        return cuts[0]

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _started() -> ProcessPoolExecutor:
    """Start one process per core, at most 8, which ignore Ctrl-C and do not run the user's script.

    Without the second, each would run a script again that has no `if __name__ == "__main__"`.
    """
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
