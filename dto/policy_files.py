"""Exit policies that a recipe names by file, such as `dto calibrate` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dto.errors import RecipeError


def read_policies(data: dict[str, Any], origin: str) -> None:
    """Put the content of policy files in the place of their names, in the data of a recipe.

    Raises RecipeError, which begins with `origin`, for a file that cannot be read.
    """
    evaluate = data.get("evaluate")
    exits = evaluate.get("exits") if isinstance(evaluate, dict) else None
    if not isinstance(exits, list):
        return
    for place, exit in enumerate(exits):
        if isinstance(exit, dict) and "file" in exit:
            own = {key: value for key, value in exit.items() if key != "file"}
            exits[place] = _read_policy(exit["file"], origin) | own


def _read_policy(file: Any, origin: str) -> dict[str, Any]:
    try:
        policy = yaml.safe_load(Path(str(file)).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{origin}: policy {file!r} cannot be read: {reason}") from None
    if not isinstance(policy, dict):
        raise RecipeError(f"{origin}: policy {file!r} holds no mapping of settings of an exit")
    return policy
