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
from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple

from dto.drqa.wording import (
    BARE,
    LAST,
    NEXT,
    Mention,
    Wording,
    bare_number,
    real_number,
    wording,
)
from dto.languages import DEFAULT, Languages
from dto.records import Span
from dto.text import closing_brace

LEAD = 60
"""Characters of a line before the mention that makes it a heading."""
_LEAD = re.compile(r"[^\d.!?:：。！？=\n]*")
_TITLE = re.compile(r"\s*#.*|\s*(?P<bold>[*_]{2}).*?(?P=bold)[:：.]?")
_AFTER = re.compile(
    r"(?:\s?\([^()\n]{1,60}\))?(?:\s{0,2}(?:[*_]{2}|[)）\]]|[:：.。,，、—–-])){1,4}|\s{0,3}(?=\n|$)"
)
_SENTENCE = re.compile(r"[^.!?。！？\n]{0,200}(?:[.!?。！？]+(?=\s|$)|(?=\n|$)|(?<=[。！？]))")


def headings(text: str, questions: Sequence[str], languages: Languages = DEFAULT) -> list[Mention]:
    """The turns of a text that deals with the questions, from left to right.

    `start` to `end` is what says so.
    """
    words = wording(languages)
    found: list[Mention] = []
    current = 0
    asked = {mention.number for question in questions for mention in words.mentions(question)}
    for line in re.finditer(r"[^\n]+", text):
        start = line.start()
        turn = _turn(line.group(), current, len(questions), asked, words)
        if turn is not None and turn.number != current:
            current = turn.number
            found.append(Mention(current, start + turn.start, start + turn.end))
    if any(turn.number for turn in found):
        return found
    return found if (counted := _counted(text, questions)) is None else counted


def _turn(line: str, current: int, k: int, asked: Set[int], words: Wording) -> Mention | None:
    """What a line turns to; None: it goes on.

    A number that a question itself names ("Question 2 of the test is worth 5 points") makes a
    heading only where it is set off as one.
    """
    first = next(words.mentions(line), None)
    every = next(words.other_mentions(line), None)
    if words.closings.match(line):
        return Mention(0, 0, 0)
    if every is not None and (first is None or every.start < first.start) and _leads(line, every):
        return Mention(0, 0, 0)
    if first is None or not _leads(line, first):
        return None
    number = real_number(first.number, current, k)
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
    found = [
        Mention(bare_number(each["bare"]), each.start(), each.end()) for each in BARE.finditer(text)
    ]
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


def split(thinking: str, questions: Sequence[str], languages: Languages = DEFAULT) -> list[Piece]:
    """The piece of each question, in their order. Spans are over `thinking`.

    Reasons: `no_heading` (no turn to this question), `runs_on` (no turn to the one after it, whose
    reasoning may be in this piece), `interleaved` (it is taken up more than once), `extra_number`
    (a number that was not asked), `shared_reasoning` (more than `SHARED` characters before the
    first question, after the last, or about all).
    """
    k = len(questions)
    turns = headings(thinking, questions, languages)
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
_BOX = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{")
_MARKUP = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]+|[-*•>][ \t]+)+|^[ \t]*[-*_]{3,}[ \t]*$|\*\*|__|</?think>|`{3}\w*",
    re.MULTILINE,
)
_SENTENCES = re.compile(r"(?<=[.!?])\s|(?<=[。！？])")
_PIECES = re.compile(r"[a-z0-9]+|[\u4e00-\u9fff]", re.IGNORECASE)


def alike(text: str, number: int | None = None, languages: Languages = DEFAULT) -> str:
    """The chain as the judge reads it; `number` is the question's in its prompt, None alone."""
    words = wording(languages)
    if number is not None:
        text = _without_number(text, number, words)
    text = _unboxed(text)
    text = _MARKUP.sub("", text)
    text = BARE.sub(_unnumbered, text)
    text = words.titles.sub("", text)
    return _trimmed(" ".join(text.split()), words)


def others(
    text: str, number: int | None, question: str, languages: Languages = DEFAULT
) -> list[str]:
    """How a chain names questions, other than as its own question's text does; in its words.

    The own `number` is none of them. Without one no question is to be named at all.
    """
    words = wording(languages)
    allowed = {_plain(question, each) for each in words.all_mentions(question)}
    return [
        said
        for each in words.all_mentions(text)
        if (number is None or each.number != number) and (said := _plain(text, each)) not in allowed
    ]


def quoted(text: str, question: str, rest: Iterable[str]) -> bool:
    """Whether a chain quotes one of the `rest` of the questions, beyond its own question."""
    said, own = _grams(text), _grams(question)
    return any((_grams(other) - own) & said for other in rest)


def goes_over_all(text: str, answers: Iterable[str], languages: Languages = DEFAULT) -> bool:
    """Whether a chain checks or sums up everything, with the `answers` to the other questions."""
    match = wording(languages).over_all.search(text)
    if match is None:
        return False
    rest = _pieces(text[match.end() :])
    told = [said for each in answers if (said := _pieces(each)).strip()]
    return bool(told) and all(each in rest for each in told)


def _pieces(text: str) -> str:
    return f" {' '.join(_PIECES.findall(text.lower()))} "


def _plain(text: str, mention: Mention) -> str:
    return " ".join(text[mention.start : mention.end].lower().split())


def _grams(text: str) -> set[tuple[str, ...]]:
    words = _PIECES.findall(text.lower())
    size = 2 * QUOTE if sum(len(word) == 1 for word in words) > len(words) / 2 else QUOTE
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def _without_number(text: str, number: int, words: Wording) -> str:
    """Without "for question 2" and its like; the sentence closes over the gap."""
    kept, at = [], 0
    for each in words.mentions(text):
        if each.number != number or each.number in (NEXT, LAST):
            continue
        before = text[at : each.start]
        start = len(before)
        for lead in words.before:
            if found := lead.search(before[:start]):
                start = found.start()
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


def _unboxed(text: str) -> str:
    while match := _BOX.search(text):
        closing = closing_brace(text, match.end() - 1)
        if closing is None:
            return _BOX.sub("", text)
        text = text[: match.start()] + text[match.end() : closing] + text[closing + 1 :]
    return text


def _trimmed(text: str, words: Wording) -> str:
    """Without the interjections and figureless sentences at both ends."""
    sentences = [each for each in _SENTENCES.split(text) if each]

    def begun(sentence: str) -> str:
        said = words.interjections.match(sentence)
        return sentence[said.end() :] if said else sentence

    sentences[:1] = map(begun, sentences[:1])
    for end in (0, -1):
        for _ in range(MOST):
            if len(sentences) > 1 and not words.figures.search(sentences[end]):
                del sentences[end]
    for first in map(begun, sentences[:1]):
        sentences[0] = first[:1].upper() + first[1:]
    return " ".join(" ".join(sentences).split())
