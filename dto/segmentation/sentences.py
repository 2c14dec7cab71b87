"""Where the sentence of a cue begins, if the cue stands at its start.

Before the cue may stand openers ("But wait", "不过，等等"), a sentence of openers alone
("Hmm. Wait"), and at the start of a line a list or heading marker ("1. **Wait**"). Models write
ellipses, bare lines and lower case, so a sentence can end in three dots or a newline, and a lower
case cue counts wherever it is clear that a sentence ended.
"""

from __future__ import annotations

import re
from collections.abc import Set

from spacy.tokens import Doc

_MARKERS = re.compile(r"\s*(?:[-*+•#]+\s*|[(（]?\d{1,3}[.)）、]\s*)*[*_]*")
_LONGEST_MARKERS = 40
_MOST_OPENERS = 4  # a model that is caught in a loop ("No. No. No. …") must not cost quadratic time
_ENDS = frozenset(".!?…。！？")
_CLOSERS = frozenset("\"”’')]）】」』*_")
_GLUE = frozenset(",，、-—–*_~")
_ABBREVIATIONS = frozenset({"vs", "etc", "cf", "approx", "eq", "eqs", "fig", "resp", "al", "st"})


def sentence_start(doc: Doc, text: str, cue: int, openers: Set[str]) -> int | None:
    """The token that begins the sentence of the cue at token `cue`; None inside a sentence.

    `text` is `doc.text`, which is built anew at every access.
    """
    start = _skip_openers(doc, text, cue, openers)
    begin = start
    for _ in range(_MOST_OPENERS):
        if start is None:
            break
        begin = start
        end = start
        while end > 0 and (doc[end - 1].text[0] in _ENDS or doc[end - 1].text in _GLUE):
            end -= 1
        if end == 0 or end == start or doc[end - 1].norm_ not in openers:
            break
        start = _skip_openers(doc, text, end, openers)
    return begin


def _skip_openers(doc: Doc, text: str, start: int, openers: Set[str]) -> int | None:
    """Walk back over openers and what joins them to the cue, to where a sentence begins."""
    for _ in range(_MOST_OPENERS):
        lower = doc[start].text[0].islower()
        line = _line_start(doc, text, start, lower)
        if line is not None:
            return line
        if _after_end(doc, start, lower):
            return start
        back = start - 1
        while back > 0 and (doc[back].text in _GLUE or doc[back].is_space):
            back -= 1
        if doc[back].norm_ in openers:
            start = back
        elif back > 0 and doc[back - 1].norm_ + doc[back].norm_ in openers:
            start = back - 1  # two Chinese characters
        else:
            return None
    return None


def _line_start(doc: Doc, text: str, start: int, lower: bool) -> int | None:
    """The first token of the line, if only list or heading markers stand before `start`."""
    offset = doc[start].idx
    newline = text.rfind("\n", max(0, offset - _LONGEST_MARKERS), offset)
    if newline < 0 and offset > _LONGEST_MARKERS:
        return None
    line = newline + 1
    if not _MARKERS.fullmatch(text, line, offset):
        return None
    if lower and newline > 0 and (text[newline - 1].isalpha() or text[newline - 1] == ","):
        return None  # a wrapped line
    while start > 0 and doc[start - 1].idx >= line:
        start -= 1
    return start


def _after_end(doc: Doc, start: int, lower: bool) -> bool:
    """Whether a sentence ends right before token `start`."""
    back = start - 1
    while back >= 0 and (doc[back].is_space or doc[back].text in _CLOSERS):
        back -= 1
    if back < 0:
        return True
    end = doc[back].text
    if end[0] not in _ENDS:
        return False
    before = doc[back - 1].norm_ if back else ""
    if len(end) > 1 or end == "…":
        return before not in {",", "，"}  # 1, 2, ..., n
    letter = len(before) == 1 and before.isascii() and before.isalpha()
    return not (lower and end == "." and (letter or before in _ABBREVIATIONS))
