"""Where a text names one of several questions: "Question 2", "the third problem", "第二题".

English and Chinese. A number in front of a line is no mention: steps are numbered too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
)  # fmt: skip
_CHINESE = "一二三四五六七八九十"
CIRCLED = "①②③④⑤⑥⑦⑧⑨⑩"
_PLACES = {
    name: place
    for names in (_WORDS, _ORDINALS, _CHINESE, CIRCLED)
    for place, name in enumerate(names, start=1)
}
_PLACES |= {"两": 2, "1st": 1, "2nd": 2, "3rd": 3, "next": -1, "下": -1, "last": -2, "final": -2}
_PLACES |= {"最后": -2, "最後": -2} | {f"{place}th": place for place in range(4, 21)}
NEXT, LAST = -1, -2
"""Numbers of "the next question" and of "the last question"."""

_NOUN = r"(?:questions?|problems?|exercises?)"
_BY_NUMBER = (
    rf"(?:{_NOUN}|\bq)\s{{0,3}}(?:no\.?|number|\#)?\s{{0,3}}"
    rf"(?P<number>\d{{1,2}}|{'|'.join(_WORDS)})\b(?![.,]\d|/)"
)
_BY_ORDER = (
    rf"(?P<ordinal>{'|'.join(_ORDINALS)}|1st|2nd|3rd|\d{{1,2}}th|next|last|final)\s{{1,3}}"
    rf"(?:questions?|problems?|exercises?)\b"
)
_IN_CHINESE = (
    rf"第\s?(?P<chinese>[{_CHINESE}]|\d{{1,2}})\s?[个個道]?\s?(?:小?[题題]目?|[问問][题題]?)"
    rf"|(?:[问問][题題]|[题題]目?)\s?(?P<after>[{_CHINESE}]|\d{{1,2}})(?=[\s:：.。,，、)）*]|$)"
    r"|(?P<next>下|最后|最後)一[个個道]?(?:小?[题題]|[问問][题題])"
)
_MENTION = re.compile(
    rf"(?<![a-z])(?:{_BY_NUMBER}|{_BY_ORDER})|{_IN_CHINESE}", re.IGNORECASE | re.MULTILINE
)
_UNNUMBERED = re.compile(
    rf"\b(?:previous|other|earlier|another|preceding|remaining|both|all|each)\s{{1,3}}"
    rf"(?:of\s{{1,3}})?(?:the\s{{1,3}}|these\s{{1,3}})?"
    rf"(?:(?:two|three|four|five|\d)\s{{1,3}})?(?:{_NOUN})\b"
    rf"|\b(?:two|three|four|five|\d)\s{{1,3}}(?:questions|problems)\b"
    r"|(?:上一|前一|另一|每|其他|其它|所有的?|全部)[个個道]?(?:小?[题題]|[问問][题題])"
    r"|[这這][两三四五][个個道]?(?:小?[题題]|[问問][题題])",
    re.IGNORECASE,
)
_NUMBER_GROUPS = ("number", "ordinal", "chinese", "after", "next")
Kind = Literal["numbered", "other"]


class Mention(NamedTuple):
    """A place that names question `number`; 0: other questions, or all of them."""

    number: int
    start: int
    end: int


def mentions(text: str) -> Iterator[Mention]:
    """The places that name a question by its number or order, from left to right."""
    for match in _MENTION.finditer(text):
        named = next(filter(None, (match[group] for group in _NUMBER_GROUPS)))
        yield Mention(place(named), match.start(), match.end())


def unnumbered(text: str) -> Iterator[Mention]:
    """The places that name other questions, or all of them, without a number."""
    for match in _UNNUMBERED.finditer(text):
        yield Mention(0, match.start(), match.end())


def place(named: str) -> int:
    """The number that a word or numeral stands for."""
    return int(named) if named.isdecimal() else _PLACES[named.lower()]
