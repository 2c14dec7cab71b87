"""Where a text turns to another of several numbered questions.

It turns where a line begins with a mention of another question, perhaps after a few words ("Moving
on to the second problem:"); within a line it only mentions it. Lines that begin with a bare number
are headings where they count the questions up, once each, and nothing else names a question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from dto.drqa.mentions import CIRCLED, LAST, NEXT, mentions, place, unnumbered

LEAD = 60
"""Characters of a line before the mention that makes it a heading."""
_LEAD = re.compile(r"[^\d.!?:：。！？=\n]*")
_CLOSING = re.compile(
    r"[\s#*_>-]*(?:(?:so|thus|therefore|now|finally|in summary|to summarize|overall)[\s,]{0,3})?"
    r"(?:the\s{1,3})?(?:final\s{1,3}answers?|answers\s{1,3}are)\b|[\s#*_>-]*最[终終后後]答案",
    re.IGNORECASE,
)
_TITLE = re.compile(r"\s*#.*|\s*(?P<bold>[*_]{2}).*?(?P=bold)[:：.]?")
_AFTER = re.compile(
    r"(?:\s?\([^()\n]{1,60}\))?(?:\s{0,2}(?:[*_]{2}|[)）\]]|[:：.。,，、—–-])){1,4}|\s{0,3}(?=\n|$)"
)
_SENTENCE = re.compile(r"[^.!?。！？\n]{0,200}(?:[.!?。！？]+(?=\s|$)|(?=\n|$)|(?<=[。！？]))")
BARE = re.compile(
    rf"^[ \t]*(?:[*_]{{2}}|#{{1,6}}\s)?[(（]?(?P<bare>\d{{1,2}}|[{CIRCLED}])(?:[*_]{{2}})?"
    rf"(?:[.)）、:：](?=[\s\\$*]|$)|(?<=[{CIRCLED}]))(?:[*_]{{2}})?",
    re.MULTILINE,
)


class Heading(NamedTuple):
    """A turn to question `number`, 0: to all of them; `start` to `end` is what says so."""

    number: int
    start: int
    end: int


def headings(text: str, questions: Sequence[str]) -> list[Heading]:
    """The turns of a text that deals with the questions, from left to right."""
    found: list[Heading] = []
    current = 0
    for start, line in _lines(text):
        turn = _turn(line, current, len(questions))
        if turn is not None and turn.number != current:
            current = turn.number
            found.append(Heading(current, start + turn.start, start + turn.end))
    if any(turn.number for turn in found):
        return found
    return found if (counted := _counted(text, questions)) is None else counted


def _lines(text: str) -> list[tuple[int, str]]:
    return [(match.start(), match.group()) for match in re.finditer(r"[^\n]+", text)]


def _turn(line: str, current: int, k: int) -> Heading | None:
    """What a line turns to; None: it goes on."""
    first = next(mentions(line), None)
    every = next(unnumbered(line), None)
    if _CLOSING.match(line):
        return Heading(0, 0, 0)
    if every is not None and (first is None or every.start < first.start) and _leads(line, every):
        return Heading(0, 0, 0)
    if first is None or not _leads(line, first):
        return None
    number = {NEXT: current + 1, LAST: k}.get(first.number, first.number)
    for whole in (_TITLE.match(line), _AFTER.match(line, first.end)):
        if whole is not None and whole.end() >= first.end:
            return Heading(number, 0, whole.end())
    # "Question 2 asks for the sum of both." says nothing else: it goes with the heading.
    rest = _SENTENCE.match(line, first.end)
    if rest is None or "=" in rest.group() or rest.end() == len(line):
        return Heading(number, 0, first.end)
    return Heading(number, 0, rest.end())


def _leads(line: str, mention: tuple[int, int, int]) -> bool:
    start = mention[1]
    lead = _LEAD.match(line)
    return start <= LEAD and lead is not None and lead.end() >= start


def _counted(text: str, questions: Sequence[str]) -> list[Heading] | None:
    """Bare numbers as headings: 1 to k, once each, each with its own question's words."""
    found = [Heading(place(each["bare"]), each.start(), each.end()) for each in BARE.finditer(text)]
    if [heading.number for heading in found] != list(range(1, len(questions) + 1)):
        return None
    ends = [heading.start for heading in found[1:]] + [len(text)]
    vocabularies = [_words(question) for question in questions]
    for heading, end in zip(found, ends, strict=True):
        words = _words(text[heading.end : end])
        shared = [len(words & own) / max(1, len(own)) for own in vocabularies]
        own = shared[heading.number - 1]
        if not own or max(shared) > own:
            return None
    return found


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{3,}|\d+|[\u4e00-\u9fff]{2}", text.lower()))
