r"""The answers that a conclusion gives to numbered questions.

Each box belongs to the number in front of it on its line ("2. \boxed{7}", "(2) \boxed{7}",
"Question 2: \boxed{7}"), or to the question named behind it ("\boxed{7} (Question 2)"), else to the
last heading above it. Below a heading that names its question, bare numbers count steps, unless
they list all questions. Without any box, what follows a number is read as a conclusion of its own.
As many boxes as questions and no number at all are the answers in order.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dto.drqa.wording import BARE, CIRCLED, Wording, bare_number, real_number, wording
from dto.grading.extract import final_answer, last_box
from dto.languages import DEFAULT, Languages
from dto.text import BRACE, MAX_TEXT

_CELL = re.compile(rf"[ \t]*\|[\s*_]*(?P<bare>\d{{1,2}}|[{CIRCLED}])[.)]?[\s*_]*\|")
_BRACKET = re.compile(r"[\s*_$\\)\]]*[(（]")


class NumberedAnswer(NamedTuple):
    """What is given for one number. `fault` says what is wrong with that, or why it is nothing."""

    answer: str
    fault: str


class _Box(NamedTuple):
    """`head` stands before it on its line, behind the box before it; `bare`: a number there, or 0.

    `first`: it is the first box of its line.
    """

    start: int
    end: int
    content: str
    head: str
    bare: int
    first: bool


class _Mark(NamedTuple):
    start: int
    number: int
    named: bool


def numbered_answers(
    conclusion: str, k: int, languages: Languages = DEFAULT
) -> list[NumberedAnswer]:
    """The answers to the questions 1 to k, empty where none can be told.

    Faults: `no_answer` (none has this number), `answered_twice` (and not alike), `unnumbered` (the
    boxes cannot be told apart), `extra_number` (an answer to a question beyond the k-th: each
    answer stands, but the numbers are in doubt).
    """
    words = wording(languages)
    conclusion = conclusion[-MAX_TEXT:]
    boxes = _boxes(conclusion, words)
    given: dict[int, list[str]] = {}
    if boxes:
        numbers = _numbers(conclusion, boxes, k, words)
        if not any(numbers):
            if len(boxes) != k:
                return [NumberedAnswer("", "unnumbered")] * k
            numbers = list(range(1, k + 1))
        for number, box in zip(numbers, boxes, strict=True):
            given.setdefault(number, []).append(box.content)
    else:
        for number, text in _chunks(conclusion, k, words):
            answer = final_answer(text)
            if answer is not None:
                given.setdefault(number, []).append(answer)
    extra = any(number > k for number in given)
    return [_answer(given.get(number, []), extra) for number in range(1, k + 1)]


def _answer(given: list[str], extra: bool) -> NumberedAnswer:
    if not given:
        return NumberedAnswer("", "no_answer")
    if len({re.sub(r"\s+", "", answer) for answer in given}) > 1:
        return NumberedAnswer("", "answered_twice")
    return NumberedAnswer(given[-1], "extra_number" if extra else "")


def _boxes(text: str, words: Wording) -> list[_Box]:
    """The complete boxes that stand in no other one, from left to right."""
    opened: list[int] = []  # where the box of each open brace begins; -1: it is no box's
    closed: list[tuple[int, int]] = []
    for match in BRACE.finditer(text):
        token = match.group()
        if token[-1] == "{" and token != r"\{":
            opened.append(match.start() if len(token) > 1 else -1)
        elif token == "}" and opened and (start := opened.pop()) >= 0:
            closed.append((start, match.end()))
    boxes: list[_Box] = []
    for start, end in sorted(closed):
        line, before = text.rfind("\n", 0, start) + 1, boxes[-1].end if boxes else 0
        if start < before:
            continue
        first, head = before <= line, text[max(line, before) : start]
        bare = (BARE.match(head) or _CELL.match(head)) if first else None
        bare = bare or words.inline.search(head)
        content = last_box(text[start:end]) or ""
        number = bare_number(bare["bare"]) if bare else 0
        boxes.append(_Box(start, end, content, head, number, first))
    return boxes


def _numbers(text: str, boxes: list[_Box], k: int, words: Wording) -> list[int]:
    """The number of each box; 0 for one without."""
    marks = _marks(text, k, words, boxes)
    starts = [mark.start for mark in marks]
    listed: dict[int, set[int]] = {}  # by section: how many marks begin before
    for box in boxes:
        listed.setdefault(bisect_left(starts, box.start), set()).add(box.bare)
    lists = {section for section, bare in listed.items() if bare >= set(range(1, k + 1))}
    behind = _behind(text, boxes, words)
    numbers: list[int] = []
    for index, box in enumerate(boxes):
        place_above = bisect_left(starts, box.start)
        above = marks[place_above - 1] if place_above else None
        before = numbers[-1] if numbers else 0
        named = [real_number(each.number, before, k) for each in words.mentions(box.head)]
        if behind[index]:
            # Below a heading, "\boxed{7}. Now question 2." goes on to another one.
            headed = above is not None and above.named and not _BRACKET.match(text, box.end)
            number = real_number(behind[index], before, k)
            numbers.append(above.number if above and headed else number)
        elif box.bare and not (above and above.named and place_above not in lists):
            numbers.append(box.bare)
        elif named:
            numbers.append(named[-1])
        elif not box.first:
            numbers.append(before)  # "1. \boxed{7} or \boxed{8}"
        else:
            numbers.append(above.number if above else 0)
    return numbers


def _behind(text: str, boxes: list[_Box], words: Wording) -> list[int]:
    """The question that is named behind each box on its line, where all of the line have one.

    0 throughout a line whose first box has a number in front.
    """
    found = [0] * len(boxes)
    for index, box in enumerate(boxes):
        if not box.first or box.bare or next(words.mentions(box.head), None):
            continue
        end = text.find("\n", box.end)
        end = len(text) if end < 0 else end
        own = [place for place in range(index, len(boxes)) if boxes[place].start < end]
        ends = [*(boxes[place].start for place in own[1:]), end]
        named = [
            next(words.mentions(text[boxes[place].end : until]), None)
            for place, until in zip(own, ends, strict=True)
        ]
        if all(named):
            for place, mention in zip(own, named, strict=True):
                found[place] = mention.number if mention else 0
    return found


def _marks(text: str, k: int, words: Wording, boxes: Sequence[_Box] = ()) -> list[_Mark]:
    """Where lines begin with a question's name, or with a bare number where none is named."""
    named: list[_Mark] = []
    starts = [box.start for box in boxes]
    for line in re.finditer(r"[^\n]+", text):
        first = next(words.mentions(line.group()), None)
        if first is None or first.start > 20:
            continue
        bare = BARE.match(line.group())
        if bare is not None and bare_number(bare["bare"]) != first.number:
            continue  # "3. As in question 1, …"
        if bisect_left(starts, line.start()) < bisect_left(starts, line.start() + first.start):
            continue  # it says whose the box before it is
        number = real_number(first.number, named[-1].number if named else 0, k)
        named.append(_Mark(line.start(), number, True))
    return named or [
        _Mark(match.start(), bare_number(match["bare"]), False) for match in BARE.finditer(text)
    ]


def _chunks(text: str, k: int, words: Wording) -> Iterator[tuple[int, str]]:
    """(number, what follows it) for each mark, without the mark itself."""
    marks = _marks(text, k, words)
    ends = [*(mark.start for mark in marks), len(text)][1:]
    for (start, number, _), end in zip(marks, ends, strict=True):
        chunk = text[start:end]
        bare = BARE.match(chunk)
        named = next(words.mentions(chunk), None)
        cut = bare.end() if bare else named.end if named else 0
        yield number, chunk[cut:].lstrip(" :：.*-—\t").strip()
