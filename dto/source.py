"""What a text names, decided once: generated chains, a task, a file, a folder or a Hub dataset.

The same text can name several (a folder `gsm8k` beside the task, a folder `user/name` beside the
dataset of the Hub). This order decides: chains, a task, the suffix of a data file or recipe, what
exists on this machine, how the text is written; what is left is of the Hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["chains", "task", "file", "folder", "hub"]

DATA_FILES = (".jsonl", ".parquet")
RECIPE_FILES = (".yaml", ".yml")
_PATH = re.compile(r"/|~|\.{1,2}(?:/|$)|[A-Za-z]:[\\/]|\\\\|file:")


@dataclass(frozen=True, slots=True)
class Source:
    """A text from a recipe or a command line, and what it names.

    `exists`: a file or folder of this name is on this machine; a path that leads nowhere is a
    `folder` that does not exist, unless its suffix is a file's. `subset` and `revision` are those
    of a dataset of the Hub, where whoever names it gives them.
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
        """Decide what `text` names; `tasks` are the names of the tasks (`dto.tasks.TASKS`).

        Without `tasks` none is one, as where a model is named. Nothing is fetched, and nothing is
        raised: a name of the Hub may be one that the Hub does not have.
        """
        exists = os.path.exists(text)  # Path.exists raises for names that are too long
        is_folder, suffix = os.path.isdir(text), Path(text).suffix
        deep = text.count("/") > 1 and "://" not in text
        kind: Kind = "hub"
        if text == "chains":
            kind = "chains"
        elif text in tasks:
            kind = "task"
        elif (
            suffix in DATA_FILES
            or (suffix in RECIPE_FILES and not is_folder)
            or os.path.isfile(text)
        ):
            kind = "file"
        elif is_folder or deep or text.startswith(".") or _PATH.match(text):
            kind = "folder"
        return cls(text, kind, exists, subset, revision)

    @property
    def is_local(self) -> bool:
        """Whether it is a file or folder, there or not."""
        return self.kind in ("file", "folder")

    @property
    def is_bare(self) -> bool:
        """Whether it is a single word, as tasks are named: no path, no suffix, nothing on disk."""
        return not ("/" in self.name or Path(self.name).suffix or self.exists)

    @property
    def tells_place(self) -> bool:
        """Whether the text says where on this machine something is, and so is nobody's business.

        It is written as a path, or has several parts that are a local file or folder or exist here.
        `user/name` is not, unless it exists; nor is text with lines.
        """
        if "\n" in self.name:
            return False
        several = "/" in self.name or "\\" in self.name
        return _PATH.match(self.name) is not None or (several and (self.is_local or self.exists))

    @property
    def last_part(self) -> str:
        """The name of the file or folder alone, of a Windows path too; `folder` where it has none.

        Other sources have no parts to cut: a dataset `user/name` stays itself.
        """
        if not (self.is_local or self.tells_place):
            return self.name
        return re.split(r"[/\\]", self.name.removeprefix("file:").rstrip("/\\"))[-1] or "folder"
