"""Stages that read questions: the train, dev and test problems of a run, and further test sets."""

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
from dto.tags import shown_tags
from dto.tasks import TASKS
from dto.tasks.importing import imported_problems
from dto.tasks.load import NEAR_DUPLICATE, load_problems

logger = logging.getLogger("dto")

CHAINS = 400
"""Generated problems that are asked if the recipe gives no number."""


def load_test_sets(recipe: Recipe, taken: Collection[Problem]) -> Iterator[Problem | Dropped]:
    """Read the problems of each of `recipe.evaluate.tasks`, at most `limit` of each.

    A task is read like `problems.source`: its test split, or else its train split or its only one.
    A file, a folder and a Hub id have the fields and the rule of the recipe; a task, also one named
    by import path, has its own. Questions in `taken`, which the run trains on or chooses a
    checkpoint by, are dropped as `duplicate`, and their near duplicates logged or dropped as
    `load_problems` does. A question of two tasks is asked in both. Raises DtoError as
    `load_problems` does, for a task without usable problems, and for two tasks of one name.
    """
    limit = recipe.evaluate.limit
    reset: dict[str, object] = {"subset": None, "revision": None, "test_source": None, "task": None,
             "source_settings": {}, "filter": None}  # fmt: skip
    sources: dict[str, str] = {}
    for name in recipe.evaluate.tasks:
        source = Source.parse(name, TASKS)
        is_task = source.is_bare or source.kind == "import"
        base = ProblemSettings(test=recipe.problems.test) if is_task else recipe.problems
        most = (base.test or CHAINS) if name == "chains" else sys.maxsize
        changes = {"source": name, "train": 0, "dev": 0, "test": limit or most,
                   "near_duplicates": recipe.problems.near_duplicates}  # fmt: skip
        settings = base.model_copy(update={**reset, **changes})
        count = 0
        for row in load_problems(settings, recipe.seed, taken, at_most=True):
            if isinstance(row, Dropped):
                yield replace(row, id=f"{name} {row.id}")
                continue
            if (other := sources.setdefault(row.task, name)) != name:
                raise DtoError(
                    f"evaluate.tasks: {other} and {name} are both called {row.task!r} in the "
                    "tables: rename one of them, or leave it out"
                )
            count += 1
            yield row
        if not count:
            raise DtoError(
                f"evaluate.tasks: {name} has no usable problem: check its fields, and whether the "
                "run trains on its questions"
            )


async def keep(problem: Problem, ctx: Context) -> Problem:
    """Return the problem as it was read."""
    return problem


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    recipe = ctx.recipe
    if source := recipe.sample.imported:
        rows = imported_problems(
            source,
            recipe.problems,
            recipe.seed,
            tags=shown_tags(recipe.model),
            columns=recipe.sample.map,
            batch_input=recipe.sample.batch_input,
        )
        return _rows("problems", rows)
    return _rows("problems", load_problems(recipe.problems, recipe.seed))


def _test_groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    taken = [row for row in run.rows("problems", Problem) if row.split != "test"]
    return _rows("test", load_test_sets(ctx.recipe, taken))


def _rows(stage: str, rows: Iterator[Problem | Dropped]) -> Iterator[Group]:
    """One group for each row; log near duplicates of questions in other splits at the end."""
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
    problems, sample = recipe.problems, recipe.sample
    sources = (problems.source, problems.test_source, sample.imported, sample.batch_input)
    return tuple(source for source in sources if source is not None)


STAGE = Stage(
    name="problems",
    about="Read the questions and gold answers; split them.",
    amount=_amount,
    record=Problem,
    reads=always(),
    settings=always("problems.", "sample.imported", "sample.map.", "sample.batch_input"),
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
        "problems.rule_settings",
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
