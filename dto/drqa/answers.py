r"""The answers that a conclusion gives to numbered questions.

Each box belongs to the number in front of it on its line ("2. \boxed{7}", "(2) \boxed{7}",
"Question 2: \boxed{7}"), else to the last heading above it. Without any box, what follows a number
is read as a conclusion of its own. As many boxes as questions and no number at all are the answers
in order.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from dto.drqa.headings import BARE
from dto.drqa.mentions import CIRCLED, LAST, NEXT, mentions, place
from dto.grading.extract import MAX_TEXT, final_answer, last_box

_BRACE = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_INLINE = re.compile(
    rf"(?:^|[\s,;:，；：(（])(?P<bare>\d{{1,2}}|[{CIRCLED}])[.)）、:：]?[\s*_$(\\\[]*$"
)


class NumberedAnswer(NamedTuple):
    """What is given for one number. `fault` says what is wrong with that, or why it is nothing."""

    answer: str
    fault: str


class _Box(NamedTuple):
    start: int
    end: int
    content: str


def numbered_answers(conclusion: str, k: int) -> list[NumberedAnswer]:
    """The answers to the questions 1 to k, empty where none can be told.

    Faults: `no_answer` (none has this number), `answered_twice` (and not alike), `unnumbered` (the
    boxes cannot be told apart), `extra_number` (an answer to a question beyond the k-th: each
    answer stands, but the numbers are in doubt).
    """
    conclusion = conclusion[-MAX_TEXT:]
    boxes = _boxes(conclusion)
    given: dict[int, list[str]] = {}
    if boxes:
        numbers = _numbers(conclusion, boxes, k)
        if not any(numbers):
            if len(boxes) != k:
                return [NumberedAnswer("", "unnumbered")] * k
            numbers = list(range(1, k + 1))
        for number, box in zip(numbers, boxes, strict=True):
            given.setdefault(number, []).append(box.content)
    else:
        for number, text in _chunks(conclusion, k):
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


def _boxes(text: str) -> list[_Box]:
    """The complete boxes that stand in no other one, from left to right."""
    opened: list[int] = []  # where the box of each open brace begins; -1: it is no box's
    closed: list[tuple[int, int]] = []
    for match in _BRACE.finditer(text):
        token = match.group()
        if token[-1] == "{" and token != r"\{":
            opened.append(match.start() if len(token) > 1 else -1)
        elif token == "}" and opened and (start := opened.pop()) >= 0:
            closed.append((start, match.end()))
    boxes: list[_Box] = []
    for start, end in sorted(closed):
        if not boxes or start >= boxes[-1].end:
            boxes.append(_Box(start, end, last_box(text[start:end]) or ""))
    return boxes


def _numbers(text: str, boxes: list[_Box], k: int) -> list[int]:
    """The number of each box; 0 for one without."""
    marks = _marks(text, k)
    starts = [start for start, _ in marks]
    numbers: list[int] = []
    for index, box in enumerate(boxes):
        line = text.rfind("\n", 0, box.start) + 1
        before = max(line, boxes[index - 1].end if index else 0)
        head = text[before : box.start]
        own = BARE.match(head) if before == line else None
        own = own or _INLINE.search(head)
        named = [mention.number for mention in mentions(head)]
        above = bisect_left(starts, line)
        if named:
            numbers.append(_real(named[-1], numbers[-1] if numbers else 0, k))
        elif own is not None:
            numbers.append(place(own["bare"]))
        else:
            numbers.append(marks[above - 1][1] if above else 0)
    return numbers


def _marks(text: str, k: int) -> list[tuple[int, int]]:
    """Where lines begin with a question's name, or with a bare number where none is named."""
    named: list[tuple[int, int]] = []
    for line in re.finditer(r"[^\n]+", text):
        first = next(mentions(line.group()), None)
        if first is not None and first.start <= 20:
            number = _real(first.number, named[-1][1] if named else 0, k)
            named.append((line.start(), number))
    return named or [(match.start(), place(match["bare"])) for match in BARE.finditer(text)]


def _chunks(text: str, k: int) -> Iterator[tuple[int, str]]:
    """(number, what follows it) for each mark, without the mark itself."""
    marks = _marks(text, k)
    ends = [*(start for start, _ in marks), len(text)][1:]
    for (start, number), end in zip(marks, ends, strict=True):
        chunk = text[start:end]
        bare = BARE.match(chunk)
        named = next(mentions(chunk), None)
        cut = bare.end() if bare else named.end if named else 0
        yield number, chunk[cut:].lstrip(" :：.*-—\t").strip()


def _real(number: int, before: int, k: int) -> int:
    """The number that is meant where "the next" or "the last" question is named."""
    return {NEXT: before + 1, LAST: k}.get(number, number)
