r"""How responses name the numbered questions of a prompt, in the languages of a recipe.

A mention names a question by number or order ("Question 2", "the third problem", "第二题"). A
number at the start of a line is no mention, since steps are numbered too. The words are in the data
files of `dto.languages`; this module compiles those of all languages together.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from dto.errors import DtoError
from dto.languages import Languages, QuestionKey, any_of, load_language

NEXT, LAST = -1, -2
"""Numbers of "the next question" and of "the last question"."""
CIRCLED = "①②③④⑤⑥⑦⑧⑨⑩"
BARE = re.compile(
    rf"^[ \t]*(?:[*_]{{2}}|#{{1,6}}\s)?[(（]?(?P<bare>\d{{1,2}}|[{CIRCLED}])(?:[*_]{{2}})?"
    rf"(?:[.)）、:：](?=[\s\\$*]|$)|(?<=[{CIRCLED}]))(?:[*_]{{2}})?",
    re.MULTILINE,
)
"""A number without a noun at the start of a line."""
WORD_END = r"\b"
_DIGITS = re.compile(r"\d+")


class Mention(NamedTuple):
    """The characters that name a question, and its number; 0 means other questions, or all."""

    number: int
    start: int
    end: int


def bare_number(numeral: str) -> int:
    """The value of digits or of a circled number."""
    return int(numeral) if numeral.isdecimal() else int(unicodedata.numeric(numeral))


def real_number(number: int, before: int, k: int) -> int:
    """Resolve "the next" and "the last" of k questions; `before` is the question before it."""
    return {NEXT: before + 1, LAST: k}.get(number, number)


class Wording:
    """The compiled expressions of several languages. Attributes are named as the keys of a file."""

    def __init__(self, languages: Languages) -> None:
        """Compile them. Raises ValueError as :func:`dto.languages.load_language` does."""
        self._languages = languages

        def joined(key: QuestionKey) -> str:
            return any_of([each for language in loaded for each in language.expressions(key)])

        def compiled(pattern: str, flags: re.RegexFlag = re.IGNORECASE) -> re.Pattern[str]:
            return re.compile(pattern, flags)

        loaded = [load_language(name) for name in languages]
        nouns = [
            f"(?:{any_of(language.lists.get('noun', ()))}){WORD_END if language.spaces else ''}"
            for language in loaded
        ]
        lines = re.IGNORECASE | re.MULTILINE
        self.named = compiled(joined("named"), lines)
        self.unnumbered = compiled(joined("unnumbered"))
        self.closings = compiled(rf"[\s#*_>-]*(?:{joined('closings')})")
        self.before = [
            compiled(rf"(?:{any_of(language.expressions('before'))})?[(（]?$")
            for language in loaded
        ]
        self.titles = compiled(rf"^[ \t]*(?:{joined('titles')})[ \t]*[:：.]?[ \t]*$", lines)
        self.interjections = compiled(rf"(?:{joined('interjections')})+")
        self.figures = re.compile(rf"[\d=^\\$<>≤≥√π∞]|{joined('figures')}")
        self.over_all = compiled(joined("over_all"))
        self.nouns = compiled(any_of(nouns))
        self.inline = re.compile(
            rf"(?:^|[,;:，；：、(（|]|(?i:{joined('joints')}))[\s*_(（]*"
            rf"(?P<bare>\d{{1,2}}|[{CIRCLED}])[.)）、:：]?[\s*_$(\\\[|]*$"
        )

    def mentions(self, text: str) -> Iterator[Mention]:
        """Find the places that name a question by number or order, from left to right."""
        for match in self.named.finditer(text):
            number = _number(match[match.lastindex or 0], self._languages)
            yield Mention(number, match.start(), match.end())

    def other_mentions(self, text: str) -> Iterator[Mention]:
        """Find the places that name other questions, or all of them, without a number."""
        for match in self.unnumbered.finditer(text):
            yield Mention(0, match.start(), match.end())

    def all_mentions(self, text: str) -> list[Mention]:
        """Find both kinds of mentions."""
        return [*self.mentions(text), *self.other_mentions(text)]


@cache
def wording(languages: Languages) -> Wording:
    """Compile the expressions of these languages, once in a process."""
    return Wording(languages)


@lru_cache(4096)
def _number(word: str, languages: Languages) -> int:
    """The number of a question that is named by digits or by a word of one of the languages."""
    if digits := _DIGITS.match(word):
        return int(digits[0])
    for questions in (load_language(name).questions for name in languages):
        for key in ("numbers", "ordinals"):
            for number, expression in enumerate(questions.get(key, ()), start=1):
                if _is(word, (expression,)):
                    return number
        if _is(word, questions.get("next", ())):
            return NEXT
        if _is(word, questions.get("last", ())):
            return LAST
    raise DtoError(
        f"languages {', '.join(languages)}: a group of questions.named matches {word!r}, which is "
        "in none of numbers, ordinals, next and last: add it there"
    )


def _is(word: str, expressions: Sequence[str]) -> bool:
    return re.fullmatch(any_of(expressions), word, re.IGNORECASE) is not None
