r"""Cut thinking about several numbered questions into one piece for each question.

A text turns to another question where a line begins with a mention of it (`dto.drqa.wording`),
perhaps after a few words ("Moving on to the second problem:"). Later in a line a mention does not
turn to the question. Lines that begin with bare numbers are headings if they count the questions
once, in order, and no other line names a question.

A piece is cut only if the text turns to its question once and then to the next question. Every
other case has a reason and no piece.

`alike` removes the format of a chain, so that a judge cannot tell a batch prompt from a single
question. It removes headings and the number of the question, markup, numbering and bullets at the
start of lines, boxes around answers, all white space except single spaces, and sentences without a
figure at both ends ("Okay, let me work through this."). The reasoning itself stays.
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

_LETTERS = r"a-zß-öø-ɏ\u0400-\u1fff"  # of words, in lower case; Greek letters are variables
LEAD = 60
"""Largest number of characters before the mention in a heading."""
_LEAD = re.compile(r"[^\d.!?:：。！？=\n]*")
_TITLE = re.compile(r"\s*#.*|\s*(?P<bold>[*_]{2}).*?(?P=bold)[:：.]?")
_AFTER = re.compile(
    r"(?:\s?\([^()\n]{1,60}\))?(?:\s{0,2}(?:[*_]{2}|[)）\]]|[:：.。,，、—–-])){1,4}|\s{0,3}(?=\n|$)"
)
_SENTENCE = re.compile(r"[^.!?。！？\n]{0,200}(?:[.!?。！？]+(?=\s|$)|(?=\n|$)|(?<=[。！？]))")


def headings(text: str, questions: Sequence[str], languages: Languages = DEFAULT) -> list[Mention]:
    """Find the places where a text turns to a question, from left to right.

    `start` to `end` is the heading.
    """
    words = wording(languages)
    turns: list[Mention] = []
    current = 0
    named = {mention.number for question in questions for mention in words.mentions(question)}
    for line in re.finditer(r"[^\n]+", text):
        start = line.start()
        turn = _turn(line.group(), current, len(questions), named, words)
        if turn is not None and turn.number != current:
            current = turn.number
            turns.append(Mention(current, start + turn.start, start + turn.end))
    if any(turn.number for turn in turns):
        return turns
    return turns if (counted := _counted(text, questions)) is None else counted


def _turn(line: str, current: int, k: int, named: Set[int], words: Wording) -> Mention | None:
    """Find the question that a line turns to; None if it continues the current one.

    `named` are the numbers in a question's own text ("Question 2 of the test is worth 5 points").
    They make a heading only where they are formatted as one.
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
    if first.number in named:
        return None
    # "Question 2 asks for the sum of both." belongs to the heading.
    rest = _SENTENCE.match(line, first.end)
    if rest is None or "=" in rest.group() or rest.end() == len(line):
        return Mention(number, 0, first.end)
    return Mention(number, 0, rest.end())


def _leads(line: str, mention: Mention) -> bool:
    lead = _LEAD.match(line)
    return mention.start <= LEAD and lead is not None and lead.end() >= mention.start


def _counted(text: str, questions: Sequence[str]) -> list[Mention] | None:
    """Read bare numbers as headings: 1 to k, once each, each with the words of its question."""
    counted = [
        Mention(bare_number(each["bare"]), each.start(), each.end()) for each in BARE.finditer(text)
    ]
    if [heading.number for heading in counted] != list(range(1, len(questions) + 1)):
        return None
    ends = [heading.start for heading in counted[1:]] + [len(text)]
    vocabularies = [_words(question) for question in questions]
    for heading, end in zip(counted, ends, strict=True):
        words = _words(text[heading.end : end])
        shared = [len(words & vocabulary) / max(1, len(vocabulary)) for vocabulary in vocabularies]
        share = shared[heading.number - 1]
        if not share or max(shared) > share:
            return None
    return counted


def _words(text: str) -> set[str]:
    return set(re.findall(rf"[{_LETTERS}]{{3,}}|\d+|[\u4e00-\u9fff]{{2}}", text.lower()))


SHARED = 500
"""Largest number of characters of thinking that belong to no question."""


class Piece(NamedTuple):
    """The part of the thinking about a question and its heading, or the reason for no part."""

    span: Span
    heading: Mention
    reason: str = ""
    detail: str = ""


def split(thinking: str, questions: Sequence[str], languages: Languages = DEFAULT) -> list[Piece]:
    """Find the piece of each question, in order. Spans are over `thinking`.

    Reasons: `no_heading` (the text does not turn to this question), `runs_on` (it does not turn to
    the next one, so this piece may hold its reasoning), `interleaved` (it turns to the question
    more than once), `extra_number` (it names a number above k), `shared_reasoning` (more than
    `SHARED` characters before the first question, after the last, or about all questions).
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
    indices = [index for index, turn in enumerate(turns) if turn.number == number]
    if not indices:
        return _none("no_heading", f"the thinking does not turn to question {number}")
    if len(indices) > 1:
        return _none("interleaved", f"the thinking turns {len(indices)} times to question {number}")
    if number < k and all(turn.number != number + 1 for turn in turns):
        return _none("runs_on", f"the thinking does not turn to question {number + 1}")
    return Piece(spans[indices[0]], turns[indices[0]])


def _none(reason: str, detail: str) -> Piece:
    return Piece(Span(0, 0), Mention(0, 0, 0), reason, detail)


MOST = 3
"""Largest number of sentences without a figure that are removed at each end."""
QUOTE = 8
"""Consecutive words of another question that count as a quotation; in Chinese twice as many
characters."""
_BOX = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{")
_MARKUP = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]+|[-*•>][ \t]+)+|^[ \t]*[-*_]{3,}[ \t]*$|\*\*|__|</?think>|`{3}\w*",
    re.MULTILINE,
)
_SENTENCES = re.compile(r"(?<=[.!?])\s|(?<=[。！？])")
_PIECES = re.compile(rf"[{_LETTERS}0-9]+|[\u4e00-\u9fff]")


def alike(text: str, number: int | None = None, languages: Languages = DEFAULT) -> str:
    """Format a chain as the judge reads it.

    `number` is that of its question in a batch prompt; None if the question was asked alone.
    """
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
    """List the mentions of other questions in a chain, as it words them.

    Mentions of `number` and mentions in the text of `question` do not count. With None every number
    is another question.
    """
    words = wording(languages)
    allowed = {_plain(question, mention) for mention in words.all_mentions(question)}
    return [
        name
        for mention in words.all_mentions(text)
        if number is None or mention.number != number
        if (name := _plain(text, mention)) not in allowed
    ]


def quoted(text: str, question: str, other_questions: Iterable[str]) -> bool:
    """Whether a chain quotes one of the other questions."""
    grams, own_grams = _grams(text), _grams(question)
    return any((_grams(other) - own_grams) & grams for other in other_questions)


def goes_over_all(text: str, answers: Iterable[str], languages: Languages = DEFAULT) -> bool:
    """Whether a chain checks or sums up all `answers`, those to the other questions."""
    match = wording(languages).over_all.search(text)
    if match is None:
        return False
    after = _pieces(text[match.end() :])
    pieces = [piece for answer in answers if (piece := _pieces(answer)).strip()]
    return bool(pieces) and all(piece in after for piece in pieces)


def _pieces(text: str) -> str:
    return f" {' '.join(_PIECES.findall(text.lower()))} "


def _plain(text: str, mention: Mention) -> str:
    return " ".join(text[mention.start : mention.end].lower().split())


def _grams(text: str) -> set[tuple[str, ...]]:
    words = _PIECES.findall(text.lower())
    size = 2 * QUOTE if sum(len(word) == 1 for word in words) > len(words) / 2 else QUOTE
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def _without_number(text: str, number: int, words: Wording) -> str:
    """Remove phrases such as "for question 2", and the punctuation that they leave."""
    kept, at = [], 0
    for mention in words.mentions(text):
        if mention.number != number or mention.number in (NEXT, LAST):
            continue
        before = text[at : mention.start]
        start = len(before)
        for lead in words.before:
            if match := lead.search(before[:start]):
                start = match.start()
        bracketed = before[start:].endswith(("(", "（"))
        before = before[:start]
        kept.append(before)
        at = mention.end
        if bracketed and text[at : at + 1] in (")", "）"):
            at += 1
        if not before.strip() or before.rstrip()[-1:] in ".!?。！？":
            at += len(text[at:]) - len(text[at:].lstrip(" \t,，:：.、"))
        elif text[at : at + 1] in ".,;:!?，。：；！？":
            kept[-1] = before.rstrip()
    return "".join(kept) + text[at:]


def _unnumbered(number: re.Match[str]) -> str:
    """Remove a number at the start of a line; alone on its line it is a figure and stays."""
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
    """Remove interjections and sentences without a figure at both ends."""
    sentences = [each for each in _SENTENCES.split(text) if each]

    def begun(sentence: str) -> str:
        match = words.interjections.match(sentence)
        return sentence[match.end() :] if match else sentence

    sentences[:1] = map(begun, sentences[:1])
    for end in (0, -1):
        for _ in range(MOST):
            if len(sentences) > 1 and not words.figures.search(sentences[end]):
                del sentences[end]
    for first in map(begun, sentences[:1]):
        sentences[0] = first[:1].upper() + first[1:]
    return " ".join(" ".join(sentences).split())
