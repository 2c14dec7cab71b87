"""How sure the model is of a trial answer (2504.15895, section 3: confidence evaluator).

Trials are greedy, so each token's probability is that of the most likely one. The published code
takes the mean over tokens 2 … n: it drops the opening brace and keeps the closing one, which hides
the one token that carries a short answer. Ours (`answer`) takes the answer's own tokens alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from dto.answers import BOX
from dto.grading.extract import closing_brace
from dto.records import Span

Confidence = Literal["answer", "mean", "geometric", "min"]


def answer_span(text: str) -> Span | None:
    r"""The characters between the braces of a trial's text, which begins at `\boxed`.

    None where no brace follows the box, or where it never closes.
    """
    brace = len(text) - len(text.removeprefix(BOX).lstrip())
    if text[brace : brace + 1] != "{":
        return None
    end = closing_brace(text, brace)
    return None if end is None else Span(brace + 1, end)


def confidence(
    kind: Confidence, text: str, ends: Sequence[int], logprobs: Sequence[float]
) -> float:
    r"""A number in [0, 1]; 0 for an empty answer and for one whose brace never closes.

    `answer`: the joint probability of the tokens that hold a character of the answer: of a digit
    its own probability, of a longer answer that of saying exactly this. `mean`, `geometric` and
    `min`: over the tokens after the opening brace, the closing one included, as published.

    Args:
        kind: which one.
        text: from `\boxed` on, the part of it that the inducer brings included.
        ends: for each generated token the offset in `text` at which it ends, -1 inside a character.
        logprobs: theirs, under the model.
    """
    answer = answer_span(text)
    if answer is None or not text[answer.start : answer.end].strip():
        return 0.0
    own: list[float] = []
    inside: list[float] = []
    character: list[float] = []  # tokens whose last one completes a character
    start = 0
    for end, logprob in zip(ends, logprobs, strict=True):
        character.append(logprob)
        if end < 0:
            continue
        if text[max(start, answer.start) : min(end, answer.end)].strip():
            own += character
        if start <= answer.end and end > answer.start:
            inside += character
        start, character = end, []
    if kind == "answer":
        return math.exp(sum(own))
    if kind == "mean":
        return sum(map(math.exp, inside)) / len(inside)
    if kind == "geometric":
        return math.exp(sum(inside) / len(inside))
    return math.exp(min(inside))
