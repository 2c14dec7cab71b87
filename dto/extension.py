"""Settings, and what a recipe names by an import path: `my_package.module:name`.

A name after the colon is a function, or a class of settings whose instances can be called like that
function. The settings of such a class stand in the recipe beside the name: those of `train.reward`
are `train.reward_settings`. They are checked when the recipe is read.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from functools import reduce
from importlib import import_module
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo

IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
NO_IMPORTS = {"imports": False}
"""The pydantic context for reading the recipe of a run: its packages may be missing here."""


class Settings(BaseModel):
    """Frozen, and strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @classmethod
    def class_of(cls, data: Mapping[str, Any]) -> type[Settings]:
        """The class that validates `data`: a subclass where a key of `data` names it."""
        return cls


def is_import_path(name: str) -> bool:
    """Whether a name has the form `package.module:name`."""
    return IMPORT_PATH.fullmatch(name) is not None


def imported(path: str) -> Any:
    """The object that an import path names.

    Python's own search path is searched, then the working directory. Raises ValueError, with the
    way out, for a module that is missing or fails, and for a name that it does not define.
    """
    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"module {error.name!r} of {path!r} is not installed: install its package, or start "
            "in the folder that holds it"
        ) from None
    except Exception as error:  # any code may stand there
        raise ValueError(f"{path!r} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        return reduce(getattr, name.split("."), module)
    except AttributeError:
        there = [key for key in vars(module) if not key.startswith("_")]
        raise ValueError(
            f"module {module_name!r} defines no {name!r}{nearest(name, there)}"
        ) from None


def load(path: str, settings: Mapping[str, Any]) -> Any:
    """The function that an import path names, or an instance of the class with these settings.

    Raises ValueError for what :func:`imported` does not find, and for settings that the class does
    not allow or that a function cannot have.
    """
    found = imported(path)
    if isinstance(found, type) and issubclass(found, BaseModel):
        try:
            return found.model_validate(dict(settings))
        except ValidationError as error:
            raise ValueError(f"{path!r}: {explain(error, found, settings)[1]}") from None
    if settings:
        keys = ", ".join(settings)
        raise ValueError(
            f"{path!r} is no class of dto.Settings, so it has no settings: drop {keys}"
        )
    return found


def check(
    name: str, settings: Mapping[str, Any], built_in: Collection[str], info: ValidationInfo
) -> None:
    """Check a built-in name, or an import path and its settings, while a recipe is read.

    Raises ValueError for any other name, for settings of a built-in name (these have keys of their
    own in the recipe), and as :func:`load` does. Under :data:`NO_IMPORTS` no module is imported.
    """
    if name in built_in:
        if settings:
            raise ValueError(f"{name!r} has no settings but the keys of this group: drop them")
    elif not is_import_path(name):
        raise ValueError(unknown_name(name, built_in))
    elif (info.context or {}).get("imports", True):
        load(name, settings)


def unknown_name(name: str, built_in: Collection[str]) -> str:
    """The error message for a name that is neither built in nor an import path."""
    return (
        f"{name!r} is neither built in{nearest(name, built_in)} nor an import path: use "
        f"{', '.join(built_in)}, or my_package.module:name"
    )


_NEVER_SHOWN = ("api_key", "server")  # somebody may have put a secret there


def explain(
    error: ValidationError, settings: type[BaseModel], data: Mapping[str, Any]
) -> tuple[str, str]:
    """The key of the first mistake in `data`, and a message with key, value and way out.

    `settings` is the class that was to be validated from `data`.
    """
    errors = error.errors()
    unknown = (each for each in errors if each["type"] == "extra_forbidden")
    first = next(unknown, errors[0])  # a key that is misspelt is missing where it should be
    key = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return key, message
    if first["type"] == "extra_forbidden":
        group = settings
        place: Any = data
        for part in first["loc"][:-1]:
            place = place[part]
            if isinstance(part, str):
                group = _group(group.model_fields[part].annotation) or group
            if isinstance(place, Mapping) and issubclass(group, Settings):
                group = group.class_of(place)
        allowed = group.model_fields
        return key, f"unknown key {key!r}{nearest(str(first['loc'][-1]), allowed)}; allowed: " + (
            ", ".join(allowed)
        )
    if key.endswith(_NEVER_SHOWN) or first["type"] == "missing" or isinstance(first["input"], dict):
        return key, f"{key}: {message}"
    return key, f"{key} = {first['input']!r}: {message}"


def nearest(name: str, names: Iterable[str]) -> str:
    """` (did you mean …?)` for the name that is most like the one given; nothing for no such."""
    found = get_close_matches(name, names, n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _group(annotation: Any) -> type[BaseModel] | None:
    """The settings that a field holds, alone, in a tuple or as one of several things."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_group, get_args(annotation))), None)
