"""Decide what a name refers to: generated chains, a task, a file, a folder or a Hub dataset.

A name can be ambiguous (a folder `gsm8k` beside the task, a folder `user/name` beside the Hub
dataset). The first match wins: chains, a task, an import path, the suffix of a data file or recipe,
an existing file or folder, the form of a path. Any other name is a Hub dataset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dto.extension import is_import_path
from dto.prompts import resource

if TYPE_CHECKING:
    from dto.recipe import Recipe

Kind = Literal["chains", "task", "import", "file", "folder", "hub"]

COMPRESSED = (".gz", ".zst")
_TEXT_FILES = (".jsonl", ".json", ".csv", ".tsv")
DATA_FILES = (*_TEXT_FILES, ".parquet")
_ENDS = (*DATA_FILES, *(f"{plain}{end}" for plain in _TEXT_FILES for end in COMPRESSED))
RECIPE_FILES = (".yaml", ".yml")
_PATH = re.compile(r"/|~|\.{1,2}(?:/|$)|[A-Za-z]:[\\/]|\\\\|file:")


@dataclass(frozen=True, slots=True)
class Source:
    """A name from a recipe or a command line, and the kind of thing that it refers to.

    `exists`: this machine has a file or folder of this name. A path to nothing is a `folder` that
    does not exist, unless it has the suffix of a file. `subset` and `revision` belong to a Hub
    dataset, if given.
    """

    name: str
    kind: Kind
    exists: bool = False
    subset: str | None = None
    revision: str | None = None

    @classmethod
    def parse(
        cls,
        text: str,
        tasks: Container[str] = (),
        subset: str | None = None,
        revision: str | None = None,
    ) -> Source:
        """Decide what `text` refers to; `tasks` are the names of the tasks (`dto.tasks.TASKS`).

        Leave `tasks` empty where a task makes no sense, as for a model. Nothing is fetched or
        raised, so a Hub dataset may turn out not to exist.
        """
        exists = os.path.exists(text)  # Path.exists raises for names that are too long
        is_folder, suffix = os.path.isdir(text), Path(text).suffix
        deep = text.count("/") > 1 and "://" not in text
        kind: Kind = "hub"
        if text == "chains":
            kind = "chains"
        elif text in tasks:
            kind = "task"
        elif is_import_path(text):
            kind = "import"
        elif (
            text.lower().endswith(_ENDS)
            or (suffix in RECIPE_FILES and not is_folder)
            or os.path.isfile(text)
        ):
            kind = "file"
        elif is_folder or deep or text.startswith(".") or _PATH.match(text):
            kind = "folder"
        return cls(text, kind, exists, subset, revision)

    @property
    def dataset(self) -> tuple[str, str | None]:
        """The name and the config of a dataset; the config may follow the name: `user/name:main`.

        Of anything else the name and `subset`.
        """
        name, _, config = self.name.rpartition(":")
        named = self.subset is None and not self.exists and config and "/" not in config
        is_hub, is_folder = self.kind == "hub", self.kind == "folder"
        if named and ((is_hub and "/" in name) or (is_folder and os.path.isdir(name))):
            return name, config
        return self.name, self.subset

    @property
    def stem(self) -> str:
        """The name for a run of its rows: `a` of data/a.jsonl.gz, `name-main` of user/name:main."""
        name, config = self.dataset
        name = Path(name).name
        ends = [end for end in _ENDS if name.lower().endswith(end)]
        stem = name[: -len(max(ends, key=len))] if ends else Path(name).stem
        return f"{stem}-{config}" if config else stem

    @property
    def is_local(self) -> bool:
        """Whether it is a file or folder, existing or not."""
        return self.kind in ("file", "folder")

    @property
    def is_bare(self) -> bool:
        """Whether it is a single word like a task's name: no path, no suffix, nothing on disk."""
        return not ("/" in self.name or Path(self.name).suffix or self.exists)

    @property
    def tells_place(self) -> bool:
        """Whether the text reveals a location on this machine, and so must not be published.

        True for the form of a path, and for several parts that are, or look like, a local file or
        folder. False for `user/name`, unless it exists here, and for text of several lines.
        """
        if "\n" in self.name:
            return False
        several = "/" in self.name or "\\" in self.name
        return _PATH.match(self.name) is not None or (several and (self.is_local or self.exists))

    @property
    def last_part(self) -> str:
        """The last part of a local path (also of a Windows path), or `folder` if it has none.

        Other names are returned unchanged, such as the dataset `user/name`.
        """
        if not (self.is_local or self.tells_place):
            return self.name
        return re.split(r"[/\\]", self.name.removeprefix("file:").rstrip("/\\"))[-1] or "folder"


def packaged(path: Path) -> Path | None:
    """The file of the recipe that dto ships under this name; None where there is none."""
    name = f"{path.name.removesuffix('.yaml')}.yaml"
    file = recipes() / ("baselines" if path.parent.name == "baselines" else "") / name
    known = path.parent.name in ("", "pipelines", "baselines")
    return file if file.is_file() and known else None


def recipes() -> Path:
    """The folder of the recipes that dto ships."""
    return Path(str(resource("pipelines"))).resolve()


def beside(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The sources of a recipe in `folder` that are files beside it, by their dotted keys.

    A path is relative to the working directory, and to the recipe's folder if that has none.
    """

    def found(name: str | None) -> str | None:
        source = Source.parse(name or "")
        there = folder / source.name
        return str(there) if source.is_local and not source.exists and there.exists() else name

    problems, tasks = recipe.problems, recipe.evaluate.tasks
    named: dict[str, Any] = {
        "problems.source": problems.source,
        "problems.test_source": problems.test_source,
        "sample.imported": recipe.sample.imported,
    }
    changed = {key: found(name) for key, name in named.items() if found(name) != name}
    moved = [found(task) for task in tasks]
    return changed | ({"evaluate.tasks": moved} if moved != [*tasks] else {})
