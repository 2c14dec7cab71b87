"""The test sets of an evaluation that covers several tasks."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from dto.errors import DtoError
from dto.problems import load_problems
from dto.recipe import ProblemSettings, Recipe
from dto.records import Dropped, Problem

CHAINS = 400
"""Generated problems have no end; so many are asked where the recipe gives no number."""


def load_test_sets(recipe: Recipe, taken: Collection[Problem]) -> Iterator[Problem | Dropped]:
    """The problems of each of `recipe.evaluate.tasks`, as many as there are or as `limit` allows.

    A task is read as `problems.source` is: its test split, else its train split or its only one. A
    file, a folder and a Hub id have the fields that the recipe names; a bare name knows its own.
    Questions `taken`, those the run trains on or chooses a checkpoint by, are dropped as
    `duplicate`, and near copies of them told or dropped as `load_problems` does; one that stands in
    two tasks is asked in both. Raises DtoError as `load_problems`
    does, and for a task of which no problem is left.
    """
    limit = recipe.evaluate.limit
    apart = {"subset": None, "revision": None, "test_source": None, "task": None}
    for source in recipe.evaluate.tasks:
        path = Path(source)
        is_place = "/" in source or path.suffix or path.exists()
        own = recipe.problems if is_place else ProblemSettings(test=recipe.problems.test)
        most = (own.test or CHAINS) if source == "chains" else sys.maxsize
        changes = {"source": source, "train": 0, "dev": 0, "test": limit or most,
                   "near_duplicates": recipe.problems.near_duplicates}  # fmt: skip
        settings = own.model_copy(update={**apart, **changes})
        found = 0
        for row in load_problems(settings, recipe.seed, taken, at_most=True):
            found += isinstance(row, Problem)
            yield row if isinstance(row, Problem) else replace(row, id=f"{source} {row.id}")
        if not found:
            raise DtoError(
                f"evaluate.tasks: {source} has no usable problem: look at its fields, and at "
                "whether the run trains on them"
            )
