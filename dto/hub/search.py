"""The last look at what goes up: what is private ends everything, what may be is told."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq

from dto.errors import DtoError
from dto.hub.private import ANYBODY, OURS, ROOTS, WRITTEN, Private, batches, texts_of

_TEXTS = (".json", ".jsonl", ".yaml", ".md", ".jinja")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")
"""Some tokens look like paths."""
_LIKE_A_PATH = re.compile(
    rf"(?<![\w./~:-])(?:/(?:{ROOTS})|~|file:/+)/[\w.-]+|(?<!\w)[A-Za-z]:\\Users\\[\w.-]+"
)
"""What a model may have made up or read; no drive alone, as `f:\\mathbb` is no path."""


@dataclass(slots=True)
class _Likeness:
    rows: set[str] = field(default_factory=set)
    example: str = ""

    def add(self, row: str, example: str) -> None:
        self.rows.add(row)
        self.example = self.example or example


@dataclass(frozen=True)
class Search:
    """Looks through a folder; `name`, on the Hub, may hold the name of the user."""

    folder: Path
    private: Private
    name: str

    def remarks(self) -> list[str]:
        """What looks private and need not be, a line for each file: paths, names of this machine.

        Raises DtoError where something private remains.
        """
        found: list[str] = []
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(self.folder).as_posix()
                found += self._table(path, name) if path.suffix == ".parquet" else []
                found += self._text(path, name) if path.suffix != ".parquet" else []
        return found

    @cached_property
    def _names(self) -> re.Pattern[str] | None:
        names = own_names()
        joined = "|".join(map(re.escape, sorted(names)))
        return re.compile(rf"(?<![\w-])(?:{joined})(?![\w-])") if names else None

    def _table(self, path: Path, name: str) -> Iterator[str]:
        paths, names, total = _Likeness(), _Likeness(), 0
        with pq.ParquetFile(path) as file:
            for batch in batches(file):
                ids = batch.column(0).to_pylist()
                total += len(ids)
                for row, column, text in texts_of(batch):
                    where = f"row {ids[row]}, column {column}"
                    if kind := self.private.found(text, written_by_us=column == OURS):
                        raise DtoError(f"{name}, {where} holds {kind}: {_way_out(column)}")
                    if ("/" in text or "\\" in text) and (match := _LIKE_A_PATH.search(text)):
                        paths.add(ids[row], f"{match[0]!r} in {where}")
                    if self._names and (match := self._names.search(text)):
                        names.add(ids[row], f"{match[0]!r} in {where}")
        for what, likeness in (("a local path", paths), ("a name of this machine", names)):
            if likeness.rows:
                yield (
                    f"{name}: {len(likeness.rows):,} of {total:,} rows hold what looks like "
                    f"{what}: {likeness.example}"
                )

    def _text(self, path: Path, name: str) -> Iterator[str]:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                text = file.read(min(int.from_bytes(file.read(8), "little"), 2**27))
            ours = True
        else:
            text = path.read_bytes()
            ours = path.suffix in _TEXTS and path.name not in _VOCABULARIES
        lines = []
        for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), start=1):
            if kind := self.private.found(line, written_by_us=ours):
                raise DtoError(
                    f"{name}, line {number} holds {kind}: nothing is uploaded; change that"
                )
            if ours and self._names and self._names.search(line.replace(self.name, "")):
                lines.append(number)
        if lines:
            yield f"{name}: a name of this machine in {len(lines):,} lines, the first is {lines[0]}"


def own_names() -> set[str]:
    """How this machine and its user are called, unless anybody's are called so."""
    names = {Path.home().name, socket.gethostname(), socket.gethostname().partition(".")[0]}
    with suppress(OSError, KeyError):  # a user without a name
        names.add(getpass.getuser())
    return {name for name in names if len(name) > 2 and name.lower() not in ANYBODY}


def _way_out(column: str) -> str:
    if column in WRITTEN:
        return (
            "nothing is uploaded; the row's token ids say the same, so it is not cut out: publish "
            "without this table (--only), or take the problem out of the run"
        )
    return (
        "nothing is uploaded; publish without this table (--only), or compute it again without that"
    )
