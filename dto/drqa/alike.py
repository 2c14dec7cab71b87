r"""Chains that look alike, whatever prompt they come from: no format tells a judge their origin.

What goes: headings and the number of the own question, markup, numbering and bullets at the start
of lines, boxes around answers, all white space but single spaces, and the sentences without any
figure that a chain opens and closes with ("Okay, let me work through this."). What a chain says
about its question stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dto.drqa.split import BARE, LAST, NEXT, Mention, mentions, unnumbered
from dto.text import closing_brace

MOST = 3
"""Sentences without a figure that are taken off each end, at most."""
QUOTE = 8
"""Words in a row of another question (characters, twice as many, in Chinese) that quote it."""
_BEFORE = re.compile(
    r"(?:\b(?:for|in|of|to|on|with|about)\s{1,3})?(?:the\s{1,3})?[(（]?$", re.IGNORECASE
)
_BEFORE_CHINESE = re.compile(r"(?:对于|關於|关于|對於|在)?$")
_BOX = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{")
_MARKUP = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]+|[-*•>][ \t]+)+|^[ \t]*[-*_]{3,}[ \t]*$|\*\*|__|</?think>|`{3}\w*",
    re.MULTILINE,
)
_TITLE = re.compile(
    r"^[ \t]*(?:final answer|answer|solution|verification|check|step \d{1,2}|"
    r"最[终終]答案|答案|解答|解|[验驗][证證])[ \t]*[:：.]?[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_INTERJECTION = re.compile(
    r"(?:(?:okay|ok|alright|all right|so|now|first(?:ly)?|next|then|well|hmm+|right|great|finally|"
    r"lastly|let's see|let me see)\b[\s,.:;!…]*|[嗯好哦]的?[，,。.！!：:\s]+|"
    r"(?:首先|接下来|接下來|然后|然後|那么|那麼|现在|現在|最后|最後)[，,：:\s]*)+",
    re.IGNORECASE,
)
_SENTENCES = re.compile(r"(?<=[.!?])\s|(?<=[。！？])")
_FIGURE = re.compile(r"[\d=^\\$<>≤≥√π∞]|\b[A-HJ-Z]\b|[一二三四五六七八九十百千]")
_OVER_ALL = re.compile(
    r"\b(?:check|verif|recap|sum up|summar|review|confirm|putting|go(?:ing)? (?:back )?over)\w*\b"
    r"[^.!?\n]{0,40}?\b(?:everything|it all|all|each|both)\b|"
    r"(?:检查|檢查|[验驗][证證]|回[顾顧]|[总總][结結])[^。！？\n]{0,12}(?:所有|全部|每|都|一遍)",
    re.IGNORECASE,
)
_PIECES = re.compile(r"[a-z0-9]+|[\u4e00-\u9fff]", re.IGNORECASE)


def alike(text: str, number: int | None = None) -> str:
    """The chain as the judge reads it; `number` is the question's in its prompt, None alone."""
    if number is not None:
        text = _without_number(text, number)
    text = _unboxed(text)
    text = _MARKUP.sub("", text)
    text = BARE.sub(_unnumbered, text)
    text = _TITLE.sub("", text)
    return _trimmed(" ".join(text.split()))


def others(text: str, number: int | None, question: str) -> list[str]:
    """How a chain names questions, other than as its own question's text does; in its words.

    The own `number` is none of them. Without one no question is to be named at all.
    """
    allowed = {_plain(question, each) for each in _all(question)}
    return [
        said
        for each in _all(text)
        if (number is None or each.number != number) and (said := _plain(text, each)) not in allowed
    ]


def quoted(text: str, question: str, rest: Iterable[str]) -> bool:
    """Whether a chain quotes one of the `rest` of the questions, beyond its own question."""
    said, own = _grams(text), _grams(question)
    return any((_grams(other) - own) & said for other in rest)


def goes_over_all(text: str, answers: Iterable[str]) -> bool:
    """Whether a chain checks or sums up everything, with the `answers` to the other questions."""
    match = _OVER_ALL.search(text)
    if match is None:
        return False
    rest = _pieces(text[match.end() :])
    told = [said for each in answers if (said := _pieces(each)).strip()]
    return bool(told) and all(each in rest for each in told)


def _pieces(text: str) -> str:
    return f" {' '.join(_PIECES.findall(text.lower()))} "


def _all(text: str) -> list[Mention]:
    return [*mentions(text), *unnumbered(text)]


def _plain(text: str, mention: Mention) -> str:
    return " ".join(text[mention.start : mention.end].lower().split())


def _grams(text: str) -> set[tuple[str, ...]]:
    words = _PIECES.findall(text.lower())
    size = 2 * QUOTE if sum(len(word) == 1 for word in words) > len(words) / 2 else QUOTE
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def _without_number(text: str, number: int) -> str:
    """Without "for question 2" and its like; the sentence closes over the gap."""
    kept, at = [], 0
    for each in mentions(text):
        if each.number != number or each.number in (NEXT, LAST):
            continue
        before = text[at : each.start]
        start = _start(before)
        bracketed = before[start:].endswith(("(", "（"))
        before = before[:start]
        kept.append(before)
        at = each.end
        if bracketed and text[at : at + 1] in (")", "）"):
            at += 1
        if not before.strip() or before.rstrip()[-1:] in ".!?。！？":
            at += len(text[at:]) - len(text[at:].lstrip(" \t,，:：.、"))
        elif text[at : at + 1] in ".,;:!?，。：；！？":
            kept[-1] = before.rstrip()
    return "".join(kept) + text[at:]


def _unnumbered(number: re.Match[str]) -> str:
    """A number that nothing follows on its line is a figure."""
    rest = number.string[number.end() :].partition("\n")[0]
    return "" if rest.strip() else number.group()


def _start(before: str) -> int:
    """Where the words that only lead to a number begin."""
    found = _BEFORE.search(before)
    start = found.start() if found else len(before)
    chinese = _BEFORE_CHINESE.search(before[:start])
    return chinese.start() if chinese else start


def _unboxed(text: str) -> str:
    while match := _BOX.search(text):
        closing = closing_brace(text, match.end() - 1)
        if closing is None:
            return _BOX.sub("", text)
        text = text[: match.start()] + text[match.end() : closing] + text[closing + 1 :]
    return text


def _trimmed(text: str) -> str:
    """Without the interjections and figureless sentences at both ends."""
    sentences = [each for each in _SENTENCES.split(text) if each]
    sentences[:1] = [_INTERJECTION.sub("", each, count=1) if _INTERJECTION.match(each) else each
                     for each in sentences[:1]]  # fmt: skip
    for end in (0, -1):
        for _ in range(MOST):
            if len(sentences) > 1 and not _FIGURE.search(sentences[end]):
                del sentences[end]
    if sentences:
        first = sentences[0]
        if _INTERJECTION.match(first):
            first = _INTERJECTION.sub("", first, count=1)
        sentences[0] = first[:1].upper() + first[1:]
    return " ".join(" ".join(sentences).split())
