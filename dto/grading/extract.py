r"""Extract the answer of a response.

The answer is the last `\boxed{…}` (or `\fbox{…}`). Braces are matched, and escaped braces are not
counted. The inner one of nested boxes is the answer. If the last box never closes, the response was
cut and has no answer, even if there is an earlier box or a statement. `\boxed 3` and
`\boxed\frac12`, without braces, count too.

Without a box the answer is the one that the text states (`dto.grading.statements`), or the text
itself if it is a single line without words. Nothing else is guessed: the last number in the text is
not an answer. Under rule `choice` a stated option has precedence over a box without one.

A clause behind the answer is removed: `72, so she sells 72 eggs`.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from dto.grading.statements import stated_answer, stated_option
from dto.grading.wording import options, without_clause
from dto.text import MAX_TEXT, closing_brace

MAX_ANSWER = 2_000  # characters; a longer text is not an answer and would only slow the parser

_BOX = re.compile(r"(?:boxed|fbox)(?![A-Za-z])\s{0,20}(\{)?")
_UNBRACED = re.compile(
    r"(?:[-+]?\d[\d,]*(?:\.\d+)?|\(?[A-Z]\)?(?![A-Za-z])|\\[dt]?frac\s*(?:\{[^{}]{0,200}\}|\d)\s*"
    r"(?:\{[^{}]{0,200}\}|\d)|\\(?:text|textbf|mathrm|mathbf|sqrt)\s*(?:\{[^{}]{0,200}\}|\d))"
    r"(?![\w{\\^_]|\s{0,3}[-+*/^=<>\\])"
)
_CUT = re.compile(r"\\(?:box?|boxed?|fbo?x?)\s*$")
_TRIAL = re.compile(r"\s*(?:\\boxed)?\s*")
_OR = re.compile(r"or|oder|ou|或", re.IGNORECASE)
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-J](?![A-Za-z])")
_MOST_BOXES = 20
_LONGEST_GAP = 200
_REVISED = re.compile(
    r"→|⇒|\\to\b|\\(?:Right|right|Longright)arrow|\\implies|"
    r"\b(?:wait|actually|no|not|wrong|incorrect|fails?|first|instead|rather|correct\w*|mistake|hmm|but|however|should|sorry|oops|"
    r"(?:re)?check\w*|later|method|attempt|again|alternatively|equivalently|so|thus|therefore|hence)\b|不[对對是]|[应應][该該]|但|所以",
    re.IGNORECASE,
)  # fmt: skip
_DELIMITER = r"(?:[\s$*]|\\[()\[\]]|\\q?quad)*"
_LINK = re.compile(
    rf"{_DELIMITER}(?:[,;、，]{_DELIMITER})?(?:(?P<word>and|or|und|oder|et|ou|y|[和或与]|"
    rf"\\text\s?\{{\s?(?:and|or)\s?\}})[\s,]*)?{_DELIMITER}",
    re.IGNORECASE,
)
_NEW_SENTENCE = re.compile(r"[.!?]\W{0,5}\s\W{0,3}[A-Z]|[。！？]")
_PART = re.compile(
    r"[\s*_]*(?:[-•]|\*\s|\(?(?:\d{1,2}|[a-z]{1,4})[).]|(?:Part|Case|Question|First|Second|Third|Fourth)\s|\$?\\?[A-Za-z_]{1,6}"
    r"(?:_?\{?\d\}?)?\s*=)"
)
_NEXT_PART = re.compile(r"[^\n]{0,40}\n\s*")
_SEPARATOR = re.compile(r"\s*(?:[,;，、]|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|[和或与])\s*")


_DENIED_BEFORE = re.compile(r"\bnot[\s:$*]*$")
_DENIED_BEHIND = re.compile(
    r"[\s.$*)\]}]*(?:(?:is|was) (?:wrong|incorrect|not (?:the|right|correct|an?)\b)"
    r"|(?:wait|no|actually|hmm)\b[^.]{0,40}\b(?:wrong|incorrect|mistake|should be)\b)",
    re.IGNORECASE,
)
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
_FORMULA = re.compile(r"[\d=^_\\+*/\[\]]")
_NAMED = re.compile(r"(?<![A-Za-z])([A-Za-z](?:_\w|_\{\w+\})?)\s*=\s*\$?\s*$")


class Boxes(NamedTuple):
    r"""The boxes that belong to the last one, in order, and how they are linked.

    They are in one sentence (`x = \boxed{3} and y = \boxed{5}`) or in a list of parts, and no word
    between them revokes one. `link` is `or` if only that word is between them, `list` if only a
    comma or "and" is, `ordered` in a numbered list, and `parts` otherwise.
    """

    answers: tuple[str, ...]
    link: Literal["or", "list", "parts", "ordered"] = "parts"

    def joined(self) -> str:
        """Join the boxes: `(a, b)` if numbered, `a or b` if linked by or, else `a, b`."""
        if self.link == "ordered":
            return f"({', '.join(self.answers)})"
        return (" or " if self.link == "or" else ", ").join(self.answers)


class _Box(NamedTuple):
    start: int
    end: int
    content: str | None  # None: it never closes


def last_box(text: str) -> str | None:
    r"""The content of the last `\boxed{…}`; None if there is none, or if it never closes."""
    text = text[-MAX_TEXT:]
    box = None if _is_cut(text) else _box_before(text, len(text))
    return None if box is None else box.content


def final_boxes(text: str) -> Boxes:
    r"""The last box and earlier boxes that belong to it; empty if the last box never closes."""
    text = text[-MAX_TEXT:]
    box = None if _is_cut(text) else _box_before(text, len(text))
    if box is None or box.content is None:
        return Boxes(())
    boxes, words = [box], set()
    while len(boxes) <= _MOST_BOXES:
        first = boxes[0]
        before = _box_before(text, first.start)
        if before is None or before.content is None or before.end > first.start:
            break
        gap = text[before.end : first.start]
        if len(gap) > _LONGEST_GAP or _REVISED.search(gap):
            break
        link = _LINK.fullmatch(gap)
        if link and (link["word"] or gap.strip("$ *\n")):
            words.add("or" if _OR.search(link["word"] or "") else "list")
        elif link and gap.count("\n") == 1 and len(gap) < 20:
            words.add("list")  # on separate lines
        elif "\n" not in gap and not _NEW_SENTENCE.search(gap):
            words.add("parts")
        elif numbered := _next_part(text, before, first):
            words.add("ordered" if numbered == "ordered" else "parts")
        else:
            break
        boxes.insert(0, before)
    names = [_NAMED.search(text[max(0, answer.start - 20) : answer.start]) for answer in boxes]
    answers = tuple(answer.content or "" for answer in boxes)
    if all(names) and len({name[1] for name in names if name}) == len(names) > 1:
        answers = tuple(
            f"{name[1]} = {answer}" for name, answer in zip(names, answers, strict=True) if name
        )
    if words == {"ordered"}:
        return Boxes(answers, "ordered")
    if words & {"parts", "ordered"} or not words:
        return Boxes(answers)
    return Boxes(answers, "or" if "or" in words else "list")


def list_length(answer: str) -> int:
    """The number of parts of a list such as `3, 5`, outside brackets; 1 for any other answer."""
    depth, count, place = 0, 1, 0
    answer = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)
    while place < len(answer):
        character = answer[place]
        separator = _SEPARATOR.match(answer, place) if depth == 0 else None
        if separator:
            count += 1
            place = separator.end()
            continue
        depth += (character in "([{") - (character in ")]}")
        place += 1
    return count


def final_answer(text: str, rule: str = "math") -> str | None:
    """The answer of a conclusion: its last box, or the answer that it states, or None.

    Under rule `choice` boxes that are linked only by "and", "or" or commas are one answer.
    """
    text = text[-MAX_TEXT:]
    if _is_cut(text):
        return None
    box = _box_before(text, len(text))
    if box is None:
        return stated_answer(text, rule)
    if box.content is None or _DENIED_BEFORE.search(text[max(0, box.start - 12) : box.start]):
        return None
    if _DENIED_BEHIND.match(text[box.end : box.end + 150]):
        return None
    if rule != "choice":
        return without_clause(box.content)
    labels = options(box.content)
    if labels is None or all(label.isdigit() for label in labels):
        if not _LETTER.search(box.content) or _FORMULA.search(_TEXT.sub(r"\1", box.content)):
            return stated_option(text) or box.content
        return box.content
    boxes = final_boxes(text)
    return box.content if boxes.link == "parts" else boxes.joined()


def trial_answer(text: str) -> str | None:
    r"""The answer that follows an inducer; `text` begins at its `\boxed` or at its brace.

    None if the text ends before the brace closes (or opens): the trial was cut. Empty if there is
    nothing in the braces, or something else in the place of the opening brace.
    """
    start = _TRIAL.match(text)
    opening = start.end() if start else 0
    if opening >= len(text):
        return None
    if text[opening] != "{":
        return ""
    closing = closing_brace(text, opening)
    if closing is None:
        return None
    inside = text[opening + 1 : closing]
    boxed = last_box(inside)
    return without_clause(inside.strip() if boxed is None else boxed)


def _is_cut(text: str) -> bool:
    """Whether a text ends where a box was beginning."""
    tail = text[-20:]
    return "\\" in tail and _CUT.search(tail) is not None


def _box_before(text: str, end: int) -> _Box | None:
    """The last box that begins before a position."""
    while True:
        end = text.rfind("box", 0, end)
        if end < 0:
            return None
        at = end - (text[end - 1 : end] == "f")
        match = _BOX.match(text, at) if text[at - 1 : at] == "\\" else None
        if match is None:
            continue
        if match[1]:
            closing = closing_brace(text, match.end() - 1)
            if closing is None:
                return _Box(at - 1, len(text), None)
            return _Box(at - 1, closing + 1, text[match.end() : closing].strip())
        if bare := _UNBRACED.match(text, match.end()):
            return _Box(at - 1, bare.end(), bare.group())


def _next_part(text: str, before: _Box, after: _Box) -> Literal["", "ordered", "named"]:
    """Whether two boxes are in adjacent lines of a list of parts, with numbers or names."""
    start = text.rfind("\n", 0, before.start) + 1
    gap = _NEXT_PART.match(text, before.end, after.start)
    if gap is None or "\n" in text[gap.end() : after.start]:
        return ""
    parts = _PART.match(text, start), _PART.match(text, gap.end())
    if parts[0] is None or parts[1] is None:
        return ""
    return "named" if "=" in parts[0][0] or parts[0][0].strip()[:1] in "-•*" else "ordered"
