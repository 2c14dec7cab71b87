r"""Where a response's answer stands.

With a box: the last complete `\boxed{…}` (or `\fbox{…}`), its braces matched, escaped braces not
counted. Of nested boxes the inner one is the answer; a box that never closes is none.

Without a box, in this order, and nothing else is guessed (no "last number in the text"):

1. what follows the last "answer is", "answer:", "答案是", "答案：", "答：" or, before a
   letter, "选", up to the end of its sentence, or the line after a heading "Final Answer";
2. the whole text, when it is a single line that holds no words: `42`, `$x^2$`, `(C)`.
"""

from __future__ import annotations

import re

MAX_TEXT = 200_000  # characters at the end of a text that are searched: bounds time, not memory
MAX_ANSWER = 2_000  # characters; what is longer is no answer, and would only feed the parser

_BRACE = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_TRIAL = re.compile(r"\s*(?:\\boxed)?\s*")
_STATED = re.compile(
    # White space is bounded: a run of it must not be gone through again from each of its places.
    r"answer\*{0,9}\s{0,20}(?:is\b|[:：=])[\s*:：]{0,20}"
    r"|答案\*{0,9}\s{0,20}[是为為:：=选選][\s*:：]{0,20}|答[:：][\s*]{0,20}"
    r"|选[择項项]?[是为:：]?[\s*:：]{0,20}(?=[(（]?[A-ZＡ-Ｚ])"
    r"|final\s{1,20}answer[^\S\n]{0,20}\*{0,9}[^\S\n]{0,20}\n\s{0,20}",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.。](?:\s|$)")
_TEXT_COMMAND = re.compile(r"\\(?:text|mbox|mathrm)\s*\{[^{}]*\}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}|[\u4e00-\u9fff]")
_DECORATION = "*$ \t\r\n"


def last_box(text: str) -> str | None:
    r"""The content of the last complete `\boxed{…}`, or None."""
    text = text[-MAX_TEXT:]
    opened: list[int] = []  # where the content of each open brace begins; -1: not that of a box
    best: tuple[int, int] | None = None
    for match in _BRACE.finditer(text):
        token = match.group()
        if token == "{":
            opened.append(-1)
        elif token[-1] == "{" and len(token) > 2:
            opened.append(match.end())
        elif token == "}" and opened:
            start = opened.pop()
            if start >= 0 and (best is None or start > best[0]):
                best = (start, match.start())
    return None if best is None else text[best[0] : best[1]].strip()


def closing_brace(text: str, opening: int) -> int | None:
    """The index of the brace that closes the one at `opening`, or None when none does."""
    depth = 0
    for match in _BRACE.finditer(text, opening, opening + MAX_TEXT):
        token = match.group()
        if token[-1] == "{" and token != r"\{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None


def stated_answer(text: str) -> str | None:
    """The answer of a text that has no box, by the rules of this module, or None."""
    text = text[-MAX_TEXT:]
    starts = [match.end() for match in _STATED.finditer(text)]
    if starts:
        answer = text[starts[-1] : starts[-1] + 300].partition("\n")[0]
        end = _SENTENCE_END.search(answer)
        return _bare(answer[: end.start()] if end else answer) or None
    line = text.strip()
    if "\n" in line or len(line) > 100 or _WORD.search(_TEXT_COMMAND.sub("", line)):
        return None
    return _bare(line) or None


def final_answer(text: str) -> str | None:
    """The answer of a conclusion: its last box, else what it states, else None."""
    boxed = last_box(text)
    return boxed if boxed is not None else stated_answer(text)


def trial_answer(text: str) -> str | None:
    r"""The answer that follows an inducer; `text` begins at its `\boxed` or at its brace.

    None when the brace has not closed (or not even opened) where the text ends: the trial was cut.
    Empty when there is nothing inside, or when something other than a brace was put there.
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
    return boxed if boxed is not None else inside.strip()


def _bare(answer: str) -> str:
    r"""Without emphasis and maths delimiters around it."""
    answer = answer.strip(_DECORATION)
    for left, right in ((r"\(", r"\)"), (r"\[", r"\]")):
        if answer.startswith(left) and answer.endswith(right):
            answer = answer[2:-2]
    return answer.strip(_DECORATION)
