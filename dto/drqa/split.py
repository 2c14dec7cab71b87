"""Whose reasoning is what: a thinking block about several questions, cut into one piece for each.

Nothing is guessed. A piece counts where its question is taken up once, and left once, for a next
one that is named; whatever else a model does ends in a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dto.drqa.headings import Heading, headings
from dto.records import Span

SHARED = 500
"""Characters of thinking that belong to no question; with more, no chain would be whole."""


class Piece(NamedTuple):
    """A question's part of the thinking, with the heading it begins with; or why there is none."""

    span: Span
    heading: Heading
    reason: str = ""
    detail: str = ""


def split(thinking: str, questions: Sequence[str]) -> list[Piece]:
    """The piece of each question, in their order. Spans are over `thinking`.

    Reasons: `no_heading` (no turn to this question), `runs_on` (no turn to the one after it, whose
    reasoning may be in this piece), `interleaved` (it is taken up more than once), `extra_number`
    (a number that was not asked), `shared_reasoning` (more than `SHARED` characters before the
    first question, after the last, or about all).
    """
    k = len(questions)
    turns = headings(thinking, questions)
    extra = next((turn.number for turn in turns if turn.number > k), None)
    if extra is not None:
        return [_none("extra_number", f"question {extra} of {k}")] * k
    if not any(turn.number for turn in turns):
        return [_none("no_heading", "the thinking names no question")] * k
    ends = [turn.start for turn in turns[1:]] + [len(thinking)]
    spans = [Span(turn.start, end) for turn, end in zip(turns, ends, strict=True)]
    shared = turns[0].start + sum(
        span.length for turn, span in zip(turns, spans, strict=True) if not turn.number
    )
    if shared > SHARED:
        return [_none("shared_reasoning", f"{shared:,} characters belong to no question")] * k
    return [_piece(number, k, turns, spans) for number in range(1, k + 1)]


def _piece(number: int, k: int, turns: Sequence[Heading], spans: Sequence[Span]) -> Piece:
    own = [place for place, turn in enumerate(turns) if turn.number == number]
    if not own:
        return _none("no_heading", f"the thinking does not turn to question {number}")
    if len(own) > 1:
        return _none("interleaved", f"question {number} is taken up {len(own)} times")
    if number < k and all(turn.number != number + 1 for turn in turns):
        return _none("runs_on", f"the thinking does not turn to question {number + 1}")
    return Piece(spans[own[0]], turns[own[0]])


def _none(reason: str, detail: str) -> Piece:
    return Piece(Span(0, 0), Heading(0, 0, 0), reason, detail)
