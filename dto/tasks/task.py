"""What a task is: a dataset of the Hub, and how one of its rows becomes a question with its answer.

A source that a recipe names by its path or Hub id is a task too, one that `TASKS` does not list.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isinf
from string import ascii_uppercase
from typing import Any, NamedTuple

from dto.prompts import render
from dto.records import Problem, Split, content_id, derive

Row = Mapping[str, Any]

PROMPTS: Mapping[str, str] = {
    "math": "solve",
    "choice": "solve_choice",
    "code": "solve_code",
}
"""The prompt that asks a question of each kind, unless the task or the recipe names another."""


class FieldError(ValueError):
    """A field that is not there or holds something else; `reason` is the slug for a dropped row."""

    def __init__(self, reason: str, field: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.field = reason, field


class Options(NamedTuple):
    """What a question offers, in the dataset's order, and the index of the right one."""

    texts: tuple[str, ...]
    right: int


def text(row: Row, field: str) -> str:
    """The text of a field, stripped; a number as text, nothing (and NaN) as the empty text.

    Raises FieldError, naming the fields there are, when the row has no such field, and when its
    value is neither text nor finite number.
    """
    if field not in row:
        there = ", ".join(map(str, row))
        raise FieldError("missing_field", field, f"has no field {field!r}; there are {there}")
    value = row[field]
    if value is None or value != value:  # tables of floats have NaN where there is nothing
        return ""
    infinite = isinstance(value, float) and isinf(value)
    if infinite or isinstance(value, bool) or not isinstance(value, str | int | float):
        held = value if infinite else type(value).__name__
        raise FieldError("wrong_type", field, f"field {field!r} holds {held}, not text")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark or a training set.

    `question` and `answer` name fields; `gold` reads the answer out of its field, and `options`
    what a question of kind choice offers (the gold answer is then the letter of the right one).
    Where `seed` is set the options are shuffled, each question by a seed of its own that derives
    from it and from the question; without it they keep the dataset's order.

    For kind code the gold answer is JSON: `{"prompt": str, "test": str, "entry_point": str}`. The
    prompt followed by a completion, or a whole program, must pass the test: with the test's source
    behind it, and a call of `check(entry_point)` where the test defines `check` (HumanEval) or its
    `unittest` cases otherwise (BigCodeBench), it exits with 0. A field `canonical_solution`, which
    completes the prompt, comes along in the metadata.
    """

    name: str
    hub: str  # Hub id; of a source also a path
    citation: str = ""
    revision: str | None = None  # commit; None: the newest
    subsets: tuple[str | None, ...] = (None,)  # configs of the Hub dataset, all of them read
    splits: Mapping[str, Split] = field(default_factory=dict)  # the dataset's → ours; {}: by name
    question: str = "problem"
    answer: str = "answer"
    gold: Callable[[Row, str], str] = text
    options: Callable[[Row], Options] | None = None
    seed: int | None = None
    rule: str = "math"
    prompt: str | None = None  # file of prompts/ that asks the question; None: that of the kind
    kept: tuple[str, ...] | None = None  # fields for the metadata; None: all texts and numbers

    def read(self, row: Row) -> Problem:
        """The problem that a row is, its split still to be decided.

        Its question or its answer is empty where the row's is. Raises FieldError for a row that
        lacks a field or holds something else there.
        """
        question, metadata = text(row, self.question), self._metadata(row)
        if self.options is None:
            answer = self.gold(row, self.answer)
        else:
            question, answer, how = self._laid_out(question, self.options(row))
            metadata |= how
        return Problem(
            Problem.make_id(self.name, question, answer),
            self.name,
            "train",
            question,
            answer,
            self.rule,
            metadata,
            self.prompt or PROMPTS[self.rule],
        )

    def _metadata(self, row: Row) -> dict[str, str]:
        fields = (self.question, self.answer)
        return {
            key: str(value)
            for key, value in row.items()
            if isinstance(value, str | int | float)
            and (key not in fields if self.kept is None else key in self.kept)
        }

    def _laid_out(self, question: str, options: Options) -> tuple[str, str, dict[str, str]]:
        """The question with its options, the letter of the right one, and how they were put.

        `permutation` lists, letter by letter, the index that the option has in the dataset.
        """
        texts, right = options
        if not question:
            return "", "", {}
        if not 0 <= right < len(texts) <= len(ascii_uppercase):
            raise FieldError(
                "bad_options", self.answer, f"has {len(texts)} options, the right one is {right}"
            )
        if not all(texts):
            raise FieldError("bad_options", self.answer, "has an option without text")
        order, how = list(range(len(texts))), {}
        if self.seed is not None:
            row_id = content_id(question, *texts)
            random.Random(derive(self.seed, row_id, "options")).shuffle(order)
            how["options_seed"] = str(self.seed)
        how["permutation"] = " ".join(map(str, order))
        shown = [
            (letter, texts[index]) for letter, index in zip(ascii_uppercase, order, strict=False)
        ]
        laid_out = render("options", question=question, options=shown).strip()
        return laid_out, ascii_uppercase[order.index(right)], how
