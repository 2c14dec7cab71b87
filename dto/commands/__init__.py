"""Shared by the commands: options, and finding the recipe and run directory of a target."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from textwrap import wrap
from typing import Annotated, Any

import typer
import yaml

from dto.api import find_recipe
from dto.errors import RecipeError, RunConflictError
from dto.recipe import Loader, Recipe
from dto.runs.run import Consent, OpenRun, Stale, refuse

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
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting, as in sample.samples=8; repeatable."
    ),
]


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
