"""Which recipe and run directory a command line names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dto.errors import RecipeError
from dto.recipe import Recipe, load_recipe
from dto.settings import nearest


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
        there = [recipe.stem for recipe in _pipelines().glob("*.yaml")]
        raise RecipeError(
            f"recipe {path} does not exist, nor such a run{nearest(path.stem, there)}; recipes "
            f"that come with dto: {', '.join(sorted(there))}"
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
