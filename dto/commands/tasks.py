"""`dto tasks`: which there are, and whether one is fit to measure with."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dto.errors import DtoError
from dto.extension import nearest
from dto.recipe import ProblemSettings, load_recipe, make_recipe
from dto.source import RECIPE_FILES, Source
from dto.tasks import TASKS

if TYPE_CHECKING:
    from dto.tasks.validate import Report

tasks = typer.Typer(no_args_is_help=True, help="Benchmarks and training sets.")

_COLUMNS = (
    "rows", "number", "mathematics", "words", "letter", "program", "other_rule", "duplicates",
    "overlaps", "unexplained",
)  # fmt: skip
_SHOWN = 3  # near misses of each kind
_ALWAYS = ("rows", "duplicates", "overlaps", "unexplained")


@tasks.command("list")
def list_tasks() -> None:
    """Tasks that a recipe can name.

    In problems.source, problems.test_source and evaluate.tasks.
    """
    for task in TASKS.values():
        subset = f" ({task.subsets[0]})" if task.subsets[0] and len(task.subsets) == 1 else ""
        given = "/".join(task.splits.values())
        print(f"{task.name:<14}{task.rule:<8}{given:<11}{task.hub}{subset}")
        print(f"{'':<14}{task.citation}; revision {task.revision or 'main'}")


@tasks.command("validate")
def validate_task(
    name: Annotated[
        str, typer.Argument(metavar="TASK|RECIPE|SOURCE", help="A source: a file or a Hub id.")
    ],
    file: Annotated[
        str | None,
        typer.Option(help="Read the task from here: its own fields, or problem and answer."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="TASK|RECIPE|SOURCE whose questions it should not share; repeatable."),
    ] = None,
    ngram: Annotated[int, typer.Option(min=2, help="Words that count as an overlap.")] = 13,
    near_misses: Annotated[
        int,
        typer.Option(min=0, help="Gold answers of each kind whose near misses are tried; 0: none."),
    ] = 500,
    code: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run reference solutions, in a sandbox.")
    ] = False,
) -> None:
    """Grade gold answers and near misses of them; list duplicates and overlaps.

    Every gold answer is graded against itself. Exits with 1 when a row is unexplained: it cannot be
    read, its gold answer is missing, does not parse or is not graded correct against itself, or its
    question has another answer elsewhere. Duplicates and overlaps do not fail, and neither do near
    misses: small changes of gold answers that make other answers (a sign, a digit, a unit, …), and
    are graded correct all the same.
    """
    from dto.grading import Grader
    from dto.tasks.validate import validate

    if file is not None and name not in TASKS:
        raise DtoError(f"--file is for a task, and {name!r} is none: {_known()}")
    settings = _settings(name) if file is None else ProblemSettings(source=file, task=name)
    others = [_settings(other) for other in against or []]

    async def work() -> Report:
        async with Grader(allow_code_execution=code) as grader:
            return await validate(settings, grader, others, ngram, near_misses)

    report = asyncio.run(work())
    for line in lines(report):
        print(line)
    if report.unexplained:
        raise typer.Exit(1)


def _settings(name: str) -> ProblemSettings:
    source = Source.parse(name, TASKS)
    if Path(name).suffix in RECIPE_FILES:
        return load_recipe(Path(name)).problems
    if source.kind == "hub" and source.is_bare:
        raise DtoError(
            f"no task {name!r}{nearest(name, TASKS)}: {_known()}; or name a recipe, a file or a "
            "Hub id"
        )
    return make_recipe({"name": name, "problems": {"source": name}}, origin="tasks").problems


def _known() -> str:
    return f"there are {', '.join(TASKS)}"


def lines(report: Report) -> Iterator[str]:
    """The table, then a line for each row that is not as it should be."""
    found = sum(report.counts.values(), Counter(_ALWAYS))
    shown = [column for column in _COLUMNS if found[column]]
    yield "split   " + "".join(f"{column:>13}" for column in shown)
    for split, counts in report.counts.items():
        yield f"{split or '-':<8}" + "".join(f"{counts[column]:>13,}" for column in shown)
    for finding in (*report.unexplained, *report.duplicates, *report.overlaps):
        yield f"{finding.reason:<14} {finding.where}: {finding.detail}".removesuffix(": ")
    if report.letters:
        yield f"{'letters':<14} of gold answers: " + ", ".join(
            f"{letter} {count:,}" for letter, count in sorted(report.letters.items())
        )
    if not report.tried:
        return
    yield (
        f"{'near_misses':<14} {len(report.right):,} of {report.tried.total():,} small changes of "
        "gold answers are graded correct"
    )
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in report.tried.most_common())
    yield f"{'near_misses':<14} tried by kind: {kinds}"
    for kind, count in report.tried.items():
        accepted = [f"{each.where}: {each.detail}" for each in report.right if each.reason == kind]
        if accepted:
            first = "; ".join(accepted[:_SHOWN]) + "; …" * (len(accepted) > _SHOWN)
            share = f"{len(accepted):,} of {count:,}"
            yield f"{'near_miss':<14} {kind}, {share} graded correct: {first}"
