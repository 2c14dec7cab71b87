"""The questions of a run: those to train on, to choose by and to test on; and further test sets."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace

from dto.context import Context
from dto.errors import DtoError
from dto.recipe import ProblemSettings, Recipe
from dto.records import Dropped, Problem
from dto.runs.reader import RunReader
from dto.runs.stage import Card, Group, Stage, always
from dto.source import Source
from dto.tasks import TASKS
from dto.tasks.importing import imported_problems
from dto.tasks.load import NEAR_DUPLICATE, load_problems

logger = logging.getLogger("dto")

CHAINS = 400
"""Generated problems have no end; so many are asked where the recipe gives no number."""


def load_test_sets(recipe: Recipe, taken: Collection[Problem]) -> Iterator[Problem | Dropped]:
    """The problems of each of `recipe.evaluate.tasks`, as many as there are or as `limit` allows.

    A task is read as `problems.source` is: its test split, else its train split or its only one. A
    file, a folder and a Hub id have the fields that the recipe names; a bare name knows its own.
    Questions `taken`, those the run trains on or chooses a checkpoint by, are dropped as
    `duplicate`, and near copies of them told or dropped as `load_problems` does; one that stands in
    two tasks is asked in both. Raises DtoError as `load_problems` does, and for a task of which no
    problem is left.
    """
    limit = recipe.evaluate.limit
    apart = {"subset": None, "revision": None, "test_source": None, "task": None}
    for source in recipe.evaluate.tasks:
        is_bare = Source.parse(source, TASKS).is_bare
        own = ProblemSettings(test=recipe.problems.test) if is_bare else recipe.problems
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


async def keep(problem: Problem, ctx: Context) -> Problem:
    """A problem is a row as it was read."""
    return problem


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    recipe = ctx.recipe
    source = recipe.sample.imported
    if source:
        return _rows("problems", imported_problems(source, recipe.problems, recipe.seed))
    return _rows("problems", load_problems(recipe.problems, recipe.seed))


def _test_groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    taken = [row for row in run.rows("problems", Problem) if row.split != "test"]
    return _rows("test", load_test_sets(ctx.recipe, taken))


def _rows(stage: str, rows: Iterator[Problem | Dropped]) -> Iterator[Group]:
    """Each row by itself; at the end near copies of questions in other splits are counted."""
    counts: Counter[str] = Counter()
    copies: dict[str, list[Problem]] = {}
    for row in rows:
        if isinstance(row, Dropped):
            yield Group(f"{row.id} {row.detail}", (row,))
            continue
        counts[row.split] += 1
        if NEAR_DUPLICATE in row.metadata:
            copies.setdefault(row.split, []).append(row)
        yield Group(row.id, (row,))
    for split, problems in copies.items():
        first = problems[0]
        logger.warning(
            "%s: %s of %s %s problems repeat half or more of a question of another split, such as "
            "%s (%s): set problems.near_duplicates to drop to leave them out",
            stage, f"{len(problems):,}", f"{counts[split]:,}", split, first.id,
            first.metadata[NEAR_DUPLICATE],
        )  # fmt: skip


def _amount(recipe: Recipe) -> str:
    problems = recipe.problems
    train = "imported" if recipe.sample.imported else f"{problems.train:,}"
    also = f" (test from {problems.test_source})" if problems.test_source else ""
    return (
        f"{train} train, {problems.dev:,} dev, {problems.test:,} test from {problems.source}{also}"
    )


def _files(recipe: Recipe) -> tuple[str, ...]:
    sources = (recipe.problems.source, recipe.problems.test_source, recipe.sample.imported)
    return tuple(source for source in sources if source is not None)


STAGE = Stage(
    name="problems",
    about="Read the questions and gold answers; split them.",
    amount=_amount,
    record=Problem,
    reads=always(),
    settings=always("problems.", "sample.imported"),
    groups=_groups,
    work=keep,
    needs="nothing",
    files=_files,
    spends=False,
    card=Card(10, "problems", "", "questions with gold answers"),
)
TEST = Stage(
    name="test",
    about="Read the test sets that the recipe names.",
    amount=lambda recipe: f"the questions of {', '.join(recipe.evaluate.tasks)}",
    record=Problem,
    reads=always("problems"),
    settings=always(
        "evaluate.tasks",
        "evaluate.limit",
        "problems.question_field",
        "problems.answer_field",
        "problems.rule",
        "problems.near_duplicates",
    ),
    groups=_test_groups,
    work=keep,
    needs="nothing",
    files=lambda recipe: recipe.evaluate.tasks,
    spends=False,
    step=False,
    card=Card(11, "test_sets", "test", "the questions of the test sets that the recipe names"),
)
