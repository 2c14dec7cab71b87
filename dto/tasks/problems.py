"""The questions of a run: those to train on, to choose by and to test on; and further test sets."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

from dto.context import Context
from dto.recipe import Recipe
from dto.records import Dropped, Problem
from dto.runs.reader import RunReader
from dto.runs.stage import Card, Group, Stage, always
from dto.tasks.importing import imported_problems
from dto.tasks.load import NEAR_DUPLICATE, load_problems, load_test_sets

logger = logging.getLogger("dto")


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
        "problems.answer_kind",
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
