"""Which cues open a thinking pattern: a cue is a candidate, not yet a boundary.

2505.21765 (section 3) cuts at every cue. On real traces most cues at the start of a sentence stand
inside a pattern that is already open: a second "Wait" within a check, "So x = 3" in mid-derivation,
a string of "Or maybe". Models begin most patterns with a paragraph, so that is what counts first.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal, NamedTuple

from dto.segmentation.lexicon import OPENING

Granularity = Literal["pattern", "cue"]

# Sizes are in UTF-8 bytes, since a Chinese character says about as much as three Latin ones.
MIN_OPEN = 200  # inside a paragraph: how much the open pattern holds before another can begin
MIN_ROOM = 250  # inside a paragraph: how much of the paragraph is left for the new pattern
MIN_OPEN_WEAK = 150  # weak cue: how much the open pattern holds
MIN_PARAGRAPH = 60  # weak cue: its paragraph is more than a line of a derivation

_INSIDE = ("verification", "alternative")  # kinds that turn thought within a paragraph
_BLANK_LINE = re.compile(r"\n[ \t]*\n\s*|\A\s*")
_NEWLINE = re.compile(r"\n\s*|\A\s*")
_SENTENCE_END = re.compile(r"[.!?…](?=[\s\"”’)*])|[。！？]")


class TextSegment(NamedTuple):
    """A half-open character span, the cue that opened it as it stands there, and its kind."""

    start: int
    end: int
    cue: str
    kind: str


class Candidate(NamedTuple):
    """A sentence that starts with a cue: `start` is that of the sentence, openers included."""

    start: int
    cue: str
    kind: str
    strong: bool


def tile(
    text: str, candidates: Sequence[Candidate], granularity: Granularity
) -> tuple[TextSegment, ...]:
    """Cut `text` at its candidates; the segments tile it, an empty text has none."""
    chosen = candidates if granularity == "cue" else patterns(text, candidates)
    content = len(text) - len(text.lstrip())
    cuts = [candidate for candidate in chosen if candidate.start > content]
    starts = [0, *(cut.start for cut in cuts), len(text)]
    names = [("", OPENING), *((cut.cue, cut.kind) for cut in cuts)]
    return tuple(
        TextSegment(start, end, cue, kind)
        for start, end, (cue, kind) in zip(starts, starts[1:], names, strict=False)
        if end > start
    )


def patterns(text: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, in order of `start`, that open a pattern.

    At the start of a paragraph a strong cue opens one, unless the open pattern is of the same kind
    and so far all lines of one sentence (a string of one-liners is one pattern). A weak cue does so
    when both the open pattern and its own paragraph have some length. Inside a paragraph only a
    strong verification or alternative opens one, with some length before it and after it.
    """
    paragraphs = _paragraph_starts(text)
    accepted: list[Candidate] = []
    start, kind = 0, OPENING
    liners, seen = True, 0  # whether text[start:seen] is all one-liners
    for candidate in candidates:
        here = candidate.start
        index = bisect_right(paragraphs, here)
        paragraph_end = paragraphs[index] if index < len(paragraphs) else len(text)
        if here != paragraphs[index - 1]:
            opens = (
                candidate.strong
                and candidate.kind in _INSIDE
                and _reaches(text, start, here, MIN_OPEN)
                and _reaches(text, here, paragraph_end, MIN_ROOM)
            )
        elif candidate.strong:
            liners, seen = liners and _one_liners(text[seen:here]), here
            opens = candidate.kind != kind or not liners
        else:
            opens = _reaches(text, start, here, MIN_OPEN_WEAK) and _reaches(
                text, here, paragraph_end, MIN_PARAGRAPH
            )
        if opens:
            accepted.append(candidate)
            start, kind = here, candidate.kind
            liners, seen = True, here
    return accepted


def _paragraph_starts(text: str) -> list[int]:
    """Where paragraphs begin; lines count as paragraphs in a text without blank lines."""
    starts = [match.end() for match in _BLANK_LINE.finditer(text)]
    if len(starts) == 1:
        starts = [match.end() for match in _NEWLINE.finditer(text)]
    return [0, *starts] if starts[0] else starts


def _reaches(text: str, start: int, end: int, size: int) -> bool:
    """Whether the span holds at least `size` bytes, white space at its end aside."""
    head = text[start : min(end, start + 2 * size)].rstrip()
    return len(head.encode("utf-8", "surrogatepass")) >= size


def _one_liners(text: str) -> bool:
    """Whether each line is a single sentence."""
    return all(_SENTENCE_END.search(line.rstrip()[:-1]) is None for line in text.splitlines())
