"""Shared by the commands: options, and finding the recipe and run directory of a target."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from textwrap import wrap
from typing import Annotated, Any, get_args

import typer
import yaml

from dto.api import find_recipe
from dto.cluster import Ray
from dto.errors import DtoError, RecipeError, RunConflictError
from dto.extension import nearest
from dto.pipeline import STAGES, find_damage
from dto.recipe import Loader, Recipe
from dto.runs.reader import RunReader
from dto.runs.run import Consent, OpenRun, Stale, refuse
from dto.settings import Column

logger = logging.getLogger("dto")

COMPARED_BYTES = 2**31
"""Tables that a reader compares with their hashes, which takes a few seconds."""

Target = Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, or a run directory.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Out = Annotated[Path | None, typer.Option(help="Run directory; runs/NAME by default.")]
Recompute = Annotated[
    bool, typer.Option("--recompute", help="Recompute stages whose settings changed.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Replace sampled rows without asking.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start the run from scratch.")]
Again = Annotated[
    bool,
    typer.Option(
        "--recompute",
        help="Recompute stages with changed settings, or this stage if none changed.",
    ),
]
Code = Annotated[
    bool,
    typer.Option("--allow-code-execution", help="Run model-written programs in a sandbox."),
]
OnRay = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="N|ADDRESS",
        help="Process rows on N Ray actors, each with the model, or on a cluster (auto, auto,8).",
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting, as in sample.samples=8; repeatable."
    ),
]

Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="FIELD=COLUMN",
        help="The column of question, response, thinking, answer or correct; repeatable.",
    ),
]


def on_ray(text: str | None) -> Ray | None:
    """Where the rows are processed; None: in this process. Raises DtoError for a bad place."""
    return None if text is None else Ray.parse(text)


def consent(wanted: bool, yes: bool) -> Consent:
    """Ask the user before stages are computed again, if they cost tokens."""

    def ask(path: Path, stale: Sequence[Stale]) -> None:
        if not wanted:
            refuse(path, stale)
        print(
            f"{path}: these stages are computed again; the old ones stay in {path}/.aside until "
            "then:",
            file=sys.stderr,
        )
        for stage in stale:
            print(f"  {stage}", file=sys.stderr)
        if yes or not any(stage.tokens for stage in stale):
            return
        if not sys.stdin.isatty():
            raise RunConflictError(f"{path}: cannot ask without a terminal: use --yes to agree")
        if not typer.confirm("Compute these again?", err=True):
            raise RunConflictError(f"{path}: nothing was changed")

    return ask


@contextmanager
def reading(path: Path, *, refuse: bool = False) -> Iterator[None]:
    """Warn of damaged files of a run that is read; if reading fails, they are the error.

    With `refuse` they are an error in any case. Without it, a run above `COMPARED_BYTES` is
    compared with its hashes only if reading fails.
    """

    def damages() -> list[str]:
        run = RunReader(path)
        return [text for stage in STAGES.values() if (text := find_damage(run, stage))]

    small = sum(table.stat().st_size for table in path.glob("*/*.parquet")) <= COMPARED_BYTES
    damaged = damages() if small or refuse else []
    if refuse and damaged:
        raise DtoError(damaged[0])
    for text in damaged:
        logger.warning(text)
    try:
        yield
    except Exception as error:
        if not (damaged := damages()):
            raise
        raise DtoError(f"{damaged[0]} ({type(error).__name__}: {error})") from error


@contextmanager
def held(run: OpenRun, command: str = "run") -> Iterator[OpenRun]:
    """Close the run when a command ends; after Ctrl-C, print how to continue."""
    try:
        yield run
    except KeyboardInterrupt:
        print(
            f"dto: interrupted; finished rows are kept; continue with: dto {command} "
            f"{quote(str(run.path))}",
            file=sys.stderr,
        )
        raise
    finally:
        run.close()


def read_target(target: str, changes: list[str] | None) -> tuple[Recipe, Path]:
    """Read the recipe that a file, packaged recipe or run directory names; also its run directory.

    Raises RecipeError for any other target, naming the packaged recipes.
    """
    return find_recipe(target, parse_changes(changes))


def parse_changes(changes: list[str] | None) -> dict[str, Any]:
    """Parse `--set KEY=VALUE` options; values are YAML. Raises RecipeError for other forms."""
    parsed: dict[str, Any] = {}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {change!r}: write it as key=value, as in sample.samples=4")
        try:
            parsed[key.strip()] = yaml.load(value, Loader)
        except yaml.YAMLError as error:
            why = getattr(error, "problem", None) or "it cannot be read"
            raise RecipeError(f"--set {change!r}: {value!r} is not a YAML value: {why}") from None
    return parsed


def parse_columns(columns: Sequence[str]) -> dict[str, str]:
    """Parse `--map FIELD=COLUMN` options. Raises RecipeError for other forms and fields."""
    parsed: dict[str, str] = {}
    for column in columns:
        field, equals, path = column.partition("=")
        if not equals or not path.strip():
            raise RecipeError(f"--map {column!r}: write it as field=column, as in response=attempt")
        if field.strip() not in get_args(Column):
            raise RecipeError(
                f"--map {column!r}: there is no field {field.strip()!r}"
                f"{nearest(field, get_args(Column))}: use {', '.join(get_args(Column))}"
            )
        parsed[field.strip()] = path.strip()
    return parsed


WIDTH = 100
"""Columns of what is printed."""


def indented(text: str, first: str = " " * 10, rest: str = " " * 10) -> list[str]:
    """Wrap a text to the width of a terminal; words and paths stay whole."""
    return wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
