"""What commands share: the options of a run, the recipe and directory that a target names."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
import yaml

from dto.errors import RecipeError, RunConflictError
from dto.extension import nearest
from dto.recipe import Recipe, load_recipe
from dto.runs.run import Consent, Run, Stale, refuse

Target = Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, or a run directory.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Out = Annotated[Path | None, typer.Option(help="Run directory; runs/NAME by default.")]
Recompute = Annotated[
    bool, typer.Option("--recompute", help="Compute again what other settings computed.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before sampled rows are replaced.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Begin the run anew.")]
Again = Annotated[
    bool, typer.Option("--recompute", help="Compute again what changed; else this stage.")
]
Code = Annotated[
    bool,
    typer.Option("--allow-code-execution", help="Run programs that a model wrote, in a sandbox."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: sample.samples=8; repeat."),
]


def consent(wanted: bool, yes: bool) -> Consent:
    """Who is asked before something is computed again: nobody where nothing was spent on it."""

    def ask(path: Path, stale: Sequence[Stale]) -> None:
        if not wanted:
            refuse(path, stale)
        print(f"{path}: computed again, and kept in {path}/.aside until then:", file=sys.stderr)
        for each in stale:
            print(f"  {each}", file=sys.stderr)
        if yes or not any(each.tokens for each in stale):
            return
        if not sys.stdin.isatty():
            raise RunConflictError(f"{path}: nobody can be asked here: say yes with --yes")
        if not typer.confirm("Compute these again?", err=True):
            raise RunConflictError(f"{path}: nothing was changed")

    return ask


@contextmanager
def held(run: Run, command: str = "run") -> Iterator[Run]:
    """Hold a run while a command works on it; says how to go on after Ctrl-C."""
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
    """The recipe that a file, a packaged recipe or a run directory holds, and the run directory.

    Raises RecipeError for what is neither, and names what there is.
    """
    path = Path(target)
    if path.is_dir():
        if not (path / "recipe.yaml").is_file():
            raise RecipeError(f"{path} is no run directory: it holds no recipe.yaml")
        return load_recipe(path / "recipe.yaml", parse_changes(changes)), path
    file = path if path.exists() else packaged(path)
    if file is None:
        known = [recipe.stem for recipe in _pipelines().glob("*.yaml")]
        raise RecipeError(
            f"recipe {path} does not exist, nor such a run{nearest(path.stem, known)}; recipes "
            f"that come with dto: {', '.join(sorted(known))}"
        )
    recipe = load_recipe(file, parse_changes(changes))
    return recipe, Path("runs") / recipe.name


def _pipelines() -> Path:
    from dto.prompts import resource

    return Path(str(resource("pipelines"))).resolve()


def packaged(path: Path) -> Path | None:
    """The recipe that comes with dto under this name, if there is one."""
    name = f"{path.name.removesuffix('.yaml')}.yaml"
    file = _pipelines() / ("baselines" if path.parent.name == "baselines" else "") / name
    known = path.parent.name in ("", "pipelines", "baselines")
    return file if file.is_file() and known else None


def parse_changes(changes: list[str] | None) -> dict[str, Any]:
    """What `--set KEY=VALUE` says; values are YAML. Raises RecipeError for what is not that."""
    parsed: dict[str, Any] = {}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {change!r}: write it as key=value, as in sample.samples=4")
        try:
            parsed[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RecipeError(f"--set {change!r}: {value!r} is not a YAML value") from None
    return parsed
