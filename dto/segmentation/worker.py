"""Segmentation of thinking texts; importing this loads only spaCy.

`text` is a thinking text (`trajectory.text[slice(*trajectory.thinking)]`); offsets are relative to
it. Hand the cuts to :func:`dto.stages.segment.snap`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from dto.segmentation.patterns import Granularity, TextSegment

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

_ONE_AT_A_TIME = threading.Lock()
"""A pipeline is for one thread."""
MAX_WORDS = 500_000  # distinct ones, in a pipeline's life: about 30 MB


def segment_texts(texts: Sequence[str], granularity: Granularity) -> list[list[TextSegment]]:
    """Segment each text; see :func:`segment_text`."""
    nlp = pipeline(granularity)
    # Without a memory zone the vocabulary keeps every new word of every trace.
    with nlp.memory_zone():
        cuts = [list(_document(nlp, text)._.dto_patterns) if text else [] for text in texts]
    if len(nlp.vocab) > MAX_WORDS:  # a zone frees the words but not their places in the table
        pipeline.cache_clear()
    return cuts


def _document(nlp: Language, text: str) -> Doc:
    document = nlp.make_doc(text)
    document.user_data["dto_text"] = text
    return nlp(document)


def segment_text(text: str, granularity: Granularity = "pattern") -> list[TextSegment]:
    """Cut a thinking text into thinking patterns (2505.21765, section 3).

    `pattern` opens a segment where a new thinking pattern begins, `cue` at every cue at the start
    of a sentence. The segments tile `text`; the first has no cue and the kind `opening`; an empty
    text has none.
    """
    with _ONE_AT_A_TIME:
        return segment_texts([text], granularity)[0]


@cache
def pipeline(granularity: Granularity) -> Language:
    """The blank spaCy pipeline with the pattern component."""
    import spacy

    import dto.segmentation.component  # noqa: F401  # registers the factory without an installation

    nlp = spacy.blank("xx")
    nlp.max_length = sys.maxsize  # the limit guards parsers, and there is none here
    nlp.add_pipe("dto_patterns", config={"granularity": granularity})
    return nlp
