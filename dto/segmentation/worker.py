"""Segment thinking texts; importing this does not load torch.

A text is the thinking of a trajectory, `trajectory.text[slice(*trajectory.thinking)]`, and offsets
are relative to it. :func:`dto.stages.segment.snap` moves the cuts to token borders.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

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
