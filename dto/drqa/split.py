r"""Cut a thinking block about several numbered questions into one piece for each.

A mention names a question by number or order, in English or Chinese ("Question 2", "the third
problem", "第二题"); a number in front of a line is none: steps are numbered too. A text turns to
another question where a line begins with a mention of it, perhaps after a few words ("Moving on to
the second problem:"); within a line it only mentions it. Lines that begin with a bare number are
headings where they count the questions up, once each, and nothing else names a question.

Nothing is guessed. A piece counts where its question is taken up once, and left once, for a next
one that is named; whatever else a model does ends in a reason.

Chains look alike, whatever prompt they come from (`alike`): no format tells a judge their origin.
What goes: headings and the number of the own question, markup, numbering and bullets at the start
of lines, boxes around answers, all white space but single spaces, and the sentences without any
figure that a chain opens and closes with ("Okay, let me work through this."). What a chain says
about its question stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import NamedTuple

from dto.records import Span
from dto.text import closing_brace

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


class Mention(NamedTuple):
    """A place that names question `number`, or turns to it; 0: other questions, or all of them."""

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


def real(number: int, before: int, k: int) -> int:
    """The number that is meant where "the next" or "the last" of k questions is named."""
    return {NEXT: before + 1, LAST: k}.get(number, number)


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


def headings(text: str, questions: Sequence[str]) -> list[Mention]:
    """The turns of a text that deals with the questions, from left to right.

    `start` to `end` is what says so.
    """
    found: list[Mention] = []
    current = 0
    asked = {mention.number for question in questions for mention in mentions(question)}
    for line in re.finditer(r"[^\n]+", text):
        start = line.start()
        turn = _turn(line.group(), current, len(questions), asked)
        if turn is not None and turn.number != current:
            current = turn.number
            found.append(Mention(current, start + turn.start, start + turn.end))
    if any(turn.number for turn in found):
        return found
    return found if (counted := _counted(text, questions)) is None else counted


def _turn(line: str, current: int, k: int, asked: Set[int]) -> Mention | None:
    """What a line turns to; None: it goes on.

    A number that a question itself names ("Question 2 of the test is worth 5 points") makes a
    heading only where it is set off as one.
    """
    first = next(mentions(line), None)
    every = next(unnumbered(line), None)
    if _CLOSING.match(line):
        return Mention(0, 0, 0)
    if every is not None and (first is None or every.start < first.start) and _leads(line, every):
        return Mention(0, 0, 0)
    if first is None or not _leads(line, first):
        return None
    number = real(first.number, current, k)
    for whole in (_TITLE.match(line), _AFTER.match(line, first.end)):
        if whole is not None and whole.end() >= first.end:
            return Mention(number, 0, whole.end())
    if first.number in asked:
        return None
    # "Question 2 asks for the sum of both." says nothing else: it goes with the heading.
    rest = _SENTENCE.match(line, first.end)
    if rest is None or "=" in rest.group() or rest.end() == len(line):
        return Mention(number, 0, first.end)
    return Mention(number, 0, rest.end())


def _leads(line: str, mention: Mention) -> bool:
    lead = _LEAD.match(line)
    return mention.start <= LEAD and lead is not None and lead.end() >= mention.start


def _counted(text: str, questions: Sequence[str]) -> list[Mention] | None:
    """Bare numbers as headings: 1 to k, once each, each with its own question's words."""
    found = [Mention(place(each["bare"]), each.start(), each.end()) for each in BARE.finditer(text)]
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


SHARED = 500
"""Characters of thinking that belong to no question; with more, no chain would be whole."""


class Piece(NamedTuple):
    """A question's part of the thinking, with the heading it begins with; or why there is none."""

    span: Span
    heading: Mention
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


def _piece(number: int, k: int, turns: Sequence[Mention], spans: Sequence[Span]) -> Piece:
    own = [place for place, turn in enumerate(turns) if turn.number == number]
    if not own:
        return _none("no_heading", f"the thinking does not turn to question {number}")
    if len(own) > 1:
        return _none("interleaved", f"question {number} is taken up {len(own)} times")
    if number < k and all(turn.number != number + 1 for turn in turns):
        return _none("runs_on", f"the thinking does not turn to question {number + 1}")
    return Piece(spans[own[0]], turns[own[0]])


def _none(reason: str, detail: str) -> Piece:
    return Piece(Span(0, 0), Mention(0, 0, 0), reason, detail)


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
_HEADING = re.compile(
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
    text = _HEADING.sub("", text)
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
    sentences[:1] = map(_begun, sentences[:1])
    for end in (0, -1):
        for _ in range(MOST):
            if len(sentences) > 1 and not _FIGURE.search(sentences[end]):
                del sentences[end]
    for first in map(_begun, sentences[:1]):
        sentences[0] = first[:1].upper() + first[1:]
    return " ".join(" ".join(sentences).split())


def _begun(sentence: str) -> str:
    said = _INTERJECTION.match(sentence)
    return sentence[said.end() :] if said else sentence
