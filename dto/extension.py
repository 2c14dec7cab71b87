"""Settings, and the names that a recipe gives by import path: `my_package.module:name`.

The name is a function, or a class of settings whose instances can be called like that function. The
settings of `train.reward` are `train.reward_settings`. They are checked when the recipe is read.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache, reduce
from importlib import import_module
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
)

IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
NO_IMPORTS = {"imports": False}
"""The pydantic context for reading the recipe of a run: its packages may be missing."""


class Settings(BaseModel):
    """Base class of settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def is_import_path(name: str) -> bool:
    """Whether a name has the form `package.module:name`."""
    return IMPORT_PATH.fullmatch(name) is not None


def imported(path: str) -> Any:
    """The object that an import path names.

    Python searches its own path, then the working directory. Raises ValueError, with the way out,
    for a module that is missing or fails, and for a name that it does not define.
    """
    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"module {error.name!r} is not installed: install its package, or start in the folder "
            "that holds it"
        ) from None
    except Exception as error:  # a module can raise anything
        raise ValueError(f"module {module_name!r} cannot be imported: {error!r}") from error
    try:
        return reduce(getattr, name.split("."), module)
    except AttributeError:
        names = [key for key in vars(module) if not key.startswith("_")]
        hint = nearest(name, names)
        raise ValueError(f"module {module_name!r} defines no {name!r}{hint}") from None


def load(path: str, settings: Mapping[str, Any]) -> Any:
    """The function that an import path names, or the instance of the class with these settings.

    A process has one instance for the same settings. Raises ValueError as :func:`imported` does,
    and for settings that the class does not allow or that a function cannot have.
    """
    thing = imported(path)
    if isinstance(thing, type) and issubclass(thing, Settings):
        return _instance(thing, json.dumps(settings, sort_keys=True))
    if settings:
        raise ValueError(
            f"{path!r} is not a subclass of dto.Settings and takes none: drop {', '.join(settings)}"
        )
    return thing


@lru_cache
def _instance(settings_class: type[Settings], settings: str) -> Settings:
    try:
        return settings_class.model_validate_json(settings)
    except ValidationError as error:
        raise ValueError(explain(error, settings_class)[1]) from None


def name_of(*built_in: str) -> AfterValidator:
    """Accept these short names (any name if there are none), and import paths that exist.

    Under :data:`NO_IMPORTS` nothing is imported.
    """

    def check(name: str, info: ValidationInfo) -> str:
        if name in built_in or not (built_in or is_import_path(name)):
            return name
        if not is_import_path(name):
            raise ValueError(f"it is {unknown_name(name, built_in)}")
        if info.context != NO_IMPORTS:
            imported(name)
        return name

    return AfterValidator(check)


def unknown_name(name: str, built_in: Collection[str]) -> str:
    """The message, after `it is`, for a name that is no short name and no import path."""
    return (
        f"neither built in{nearest(name, built_in)} nor an import path: use {', '.join(built_in)} "
        "or my_package.module:name"
    )


def _check_settings(settings: dict[str, JsonValue], info: ValidationInfo) -> dict[str, JsonValue]:
    field = str(info.field_name).removesuffix("_settings")
    if field not in info.data:  # it was refused
        return settings
    name = info.data[field] or "default"
    if not is_import_path(name):
        if settings:
            raise ValueError(
                f"the built-in {name!r} does not read {', '.join(settings)}: the other keys of "
                "this group are its settings"
            )
    elif info.context != NO_IMPORTS and not callable(load(name, settings)) and field != "source":
        raise ValueError(f"{name!r} cannot be called: name a function or a class with __call__")
    return settings


ExtensionSettings = Annotated[
    dict[str, JsonValue], Field(validate_default=True), AfterValidator(_check_settings)
]
"""The field `X_settings` after the field `X`: the settings of the class that X names by path."""
_NEVER_SHOWN = ("api_key", "server", "_settings")  # they may hold a secret


def explain(
    error: ValidationError, settings: type[BaseModel], data: Mapping[str, Any] | None = None
) -> tuple[str, str]:
    """The key of the first mistake in `settings`, and a message with key, value and way out.

    Where a key of `data`, which the settings were read from, names a class, its keys are allowed.
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
            place = place and place[part]
            if isinstance(part, str):
                group = _group(group.model_fields[part].annotation) or group
            if isinstance(place, Mapping) and hasattr(group, "class_of"):
                group = group.class_of(place)
        hint, allowed = nearest(str(first["loc"][-1]), group.model_fields), group.model_fields
        return key, f"unknown key {key!r}{hint}; allowed: {', '.join(allowed)}"
    if first["type"] == "model_type":
        message = f"this is a group of settings: name one, as in {key}.KEY"
    if first["type"] == "tuple_type":
        item = "…" if isinstance(first["input"], dict) else first["input"]
        message = f"this is a list: write [{item}]"
    if key.endswith(_NEVER_SHOWN) or first["type"] == "missing" or isinstance(first["input"], dict):
        return key, f"{key}: {message}"
    return key, f"{key} = {first['input']!r}: {message}"


def nearest(name: str, names: Iterable[str]) -> str:
    """` (did you mean …?)` with the most similar of the names; empty if none is similar."""
    matches = get_close_matches(name, names, n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def _group(annotation: Any) -> type[BaseModel] | None:
    """The settings that a field holds, alone, in a tuple or as one of several things."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_group, get_args(annotation))), None)
