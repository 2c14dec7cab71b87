"""Define a task: a set of rows, and how one of them becomes a question with its gold answer.

The rows are a dataset of the Hub or what a function returns. A source that a recipe names by its
path or Hub id is a task too, one that `TASKS` does not list.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
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
"""The prompt that asks a question under each built-in rule, unless the task or the recipe names
another. Questions under any other rule are asked as under `math`."""


class FieldError(ValueError):
    """A field that is missing or has the wrong type; `reason` is the slug for a dropped row."""

    def __init__(self, reason: str, field: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.field = reason, field


class Options(NamedTuple):
    """The options of a question, in the dataset's order, and the index of the right one."""

    texts: tuple[str, ...]
    right: int


def text(row: Row, field: str) -> str:
    """The text of a field, stripped. A number becomes text, None and NaN the empty text.

    Raises FieldError, which names the fields of the row, if it has no such field, and if the value
    is neither text nor a finite number.
    """
    if field not in row:
        names = ", ".join(map(str, row))
        raise FieldError("missing_field", field, f"has no field {field!r}; its fields are {names}")
    value = row[field]
    if value is None or value != value:  # tables of floats have NaN for a missing value
        return ""
    infinite = isinstance(value, float) and isinf(value)
    if infinite or isinstance(value, bool) or not isinstance(value, str | int | float):
        actual = value if infinite else type(value).__name__
        raise FieldError("wrong_type", field, f"field {field!r} holds {actual}, not text")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark or a training set.

    Its rows are those of the dataset `hub`, or what `rows` returns for a split. `rows` is called
    with each name in `splits`; with `train`, `dev` and `test` if there are none. It returns the
    rows as mappings, and nothing for a split that the task does not have.

    `question` and `answer` name fields. `gold` reads the gold answer from its field. `options`
    reads the options of a question under rule `choice`; the gold answer is then the letter of the
    right one. With `seed` the options are shuffled, each question by a seed derived from `seed` and
    the question; without it they keep the dataset's order.

    Under rule `code` the gold answer is JSON: `{"prompt": str, "test": str, "entry_point": str}`.
    The prompt followed by a completion, or a whole program, must pass the test: it exits with 0
    when followed by the test's source and a call of `check(entry_point)`, if the test defines
    `check` (HumanEval), or by its `unittest` cases otherwise (BigCodeBench). The metadata keep a
    field `canonical_solution`, which completes the prompt.

    `rule` is a built-in rule, or one of another package by its import path, with its settings
    behind it as JSON: `my_package.rules:Near {"tolerance": 0.1}`.
    """

    name: str
    hub: str = ""  # Hub id; of a source also a path
    citation: str = ""
    revision: str | None = None  # commit; None: the newest
    subsets: tuple[str | None, ...] = (None,)  # configs of the Hub dataset; all are read
    splits: Mapping[str, Split] = field(default_factory=dict)  # the dataset's → ours; {}: by name
    question: str = "problem"
    answer: str = "answer"
    gold: Callable[[Row, str], str] = text
    options: Callable[[Row], Options] | None = None
    seed: int | None = None
    rule: str = "math"
    prompt: str | None = None  # file of prompts/ that asks the question; None: that of the rule
    kept: tuple[str, ...] | None = None  # fields for the metadata; None: all texts and numbers
    rows: Callable[[str], Iterable[Row]] | None = None  # in place of `hub`

    def __post_init__(self) -> None:
        """Raises ValueError unless there is one origin of the rows."""
        if bool(self.hub) == (self.rows is not None):
            raise ValueError(f"task {self.name!r} needs either hub or rows")

    @property
    def asked_by(self) -> str:
        """The prompt that asks the questions."""
        return self.prompt or PROMPTS.get(self.rule, PROMPTS["math"])

    def read(self, row: Row) -> Problem:
        """Read a row as a problem; its split is decided later.

        Question and answer may be empty. Raises FieldError for a row that lacks a field or has the
        wrong type in it.
        """
        question, metadata = text(row, self.question), self._metadata(row)
        if self.options is None:
            answer = self.gold(row, self.answer)
        else:
            question, answer, layout = self._laid_out(question, self.options(row))
            metadata |= layout
        return Problem(
            Problem.make_id(self.name, question, answer),
            self.name,
            "train",
            question,
            answer,
            self.rule,
            metadata,
            self.asked_by,
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
        """The question with its options, the letter of the right one, and the layout.

        The layout holds `permutation`: for each letter, the option's index in the dataset.
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
        order, layout = list(range(len(texts))), {}
        if self.seed is not None:
            row_id = content_id(question, *texts)
            random.Random(derive(self.seed, row_id, "options")).shuffle(order)
            layout["options_seed"] = str(self.seed)
        layout["permutation"] = " ".join(map(str, order))
        lettered = [
            (letter, texts[index]) for letter, index in zip(ascii_uppercase, order, strict=False)
        ]
        prompt = render("options", question=question, options=lettered).strip()
        return prompt, ascii_uppercase[order.index(right)], layout
