"""The answers that a conclusion gives to numbered questions."""

from __future__ import annotations

from typing import NamedTuple


class NumberedAnswer(NamedTuple):
    """What is given for one number; `fault` says why that is nothing."""

    answer: str
    fault: str


def numbered_answers(conclusion: str, k: int) -> list[NumberedAnswer]:
    """The answers to the questions 1 to k."""
    raise NotImplementedError
