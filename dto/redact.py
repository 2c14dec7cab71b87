"""What may not leave the machine: local paths, servers, user names, keys.

What is known to be private (the paths and servers that a recipe names, the home directory) is
replaced everywhere but in what models and people wrote: the spans and token ids beside such a text
would still tell it. Afterwards everything is searched for what is left (:mod:`dto.redact`).
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from dto import tables
from dto.errors import DtoError
from dto.recipe import NAMES, Recipe

NO_SERVER = "http://server.invalid/v1"
"""Stands for a server's address (RFC 2606): a run that was pulled asks nobody by itself."""
NO_KEY = "OPENAI_API_KEY"
_MODELS = ("base", "trained", *NAMES)
_HERE = ("localhost", "127.0.0.1", "::1")
_FILES = (".jsonl", ".parquet", ".yaml", ".yml")
_KEYS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{32,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|AKIA[0-9A-Z]{16})\b|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_KEY_STARTS = ("hf_", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "AKIA", "PRIVATE KEY")
"""Looked for first: the pattern takes far longer."""
ROOTS = (
    "home|Users|root|mnt|data|tmp|var|opt|srv|scratch|workspace|work|private|Volumes|nfs|gpfs|lustre"
    "|media|export|usr|etc|proc|dev|run|shared|storage|fsx|efs|content|kaggle"
)
LOCAL_PATH = re.compile(
    rf"(?<![\w./~:-])(?:/(?:{ROOTS})|~|file:/+)/[^\s\"'`,;:)\]}}>]+"
    r"|(?<!\w)[A-Za-z]:\\[^\s\"'`,;:)\]}>]+"
)
OURS = "reason"
"""The column of tables that no model writes: why an engine or a grader failed."""
WRITTEN = ("text", "question", "prompt", "chosen", "rejected", "chain")
"""The columns of tables that models and people write, and that token ids and spans stand beside."""
ANYBODY = (
    "admin", "build", "debian", "default", "ec2-user", "guest", "home", "jovyan", "localhost",
    "nobody", "root", "runner", "server", "test", "ubuntu", "user", "worker",
)  # fmt: skip
"""Names of users and machines that tell nothing, and that stand in any text."""
_ANYBODYS_HOME = re.compile(rf"[/\\](?:home|Users)[/\\](?:{'|'.join(ANYBODY)})")
_NAMED_SECRET = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)$")


def is_local(value: str) -> bool:
    """Whether a name of a model, a dataset or a file is a place on this machine."""
    if value.startswith(("/", "~", "./", "../", "file:", "\\\\")) or PureWindowsPath(value).drive:
        return True
    several = "/" in value or "\\" in value
    return several and (value.endswith(_FILES) or os.path.exists(value))


def last_part(value: str) -> str:
    """What remains of a local path."""
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] or "root"


@dataclass(frozen=True, slots=True)
class Private:
    """What is replaced, longest first, and keys by their value, with the variable that holds it.

    A key ends everything.
    """

    replaced: Mapping[str, str]
    secrets: Mapping[str, str]

    def redact(self, text: str) -> str:
        """The text without what is known to be private."""
        for original, shown in self.replaced.items():
            if original in text:
                text = _pattern(original).sub(shown.replace("\\", r"\\"), text)
        return text

    def redact_all(self, data: Any) -> Any:
        """The same for every text within data as JSON has it, keys included."""
        return walk(data, self.redact)

    def redact_paths(self, data: Any) -> Any:
        """As `redact_all`, and whatever else looks like a local path becomes its last part."""
        return walk(data, lambda text: LOCAL_PATH.sub(_last, self.redact(text)))

    def found(self, text: str, *, written_by_us: bool) -> str | None:
        """What kind of private thing a text still holds; `written_by_us`: no path belongs there."""
        for secret, holder in self.secrets.items():
            if secret in text:
                return f"the value of {holder}"
        if any(start in text for start in _KEY_STARTS) and _KEYS.search(text):
            return "a key"
        for original in self.replaced:
            known = original in text and _pattern(original).search(text)
            if known and (written_by_us or not _ANYBODYS_HOME.fullmatch(original)):
                return "a local path or a server"
        if written_by_us and (match := LOCAL_PATH.search(text)):
            return f"the local path {last_part(match[0])!r}"
        return None


@cache
def _pattern(original: str) -> re.Pattern[str]:
    """Where a path or a server stands as such: `/m` does not stand in `km/min`.

    A path of one part, which models write too, counts as a whole text, before the rest of a row's
    id, and at the end of a key of a stage's configuration.
    """
    exact = re.escape(original)
    if ":" in original and not PureWindowsPath(original).drive:
        return re.compile(exact)
    if "." in original and not re.search(r"[/\\]", original):  # a host
        return re.compile(rf"(?<![\w.-]){exact}(?![\w-])")
    if len([part for part in re.split(r"[/\\]", original) if part not in ("", ".")]) < 2:
        return re.compile(rf"^{exact}(?=/|$)|(?<= of ){exact}$")
    return re.compile(rf"(?<![\w.-]){exact}(?![\w-])")


def _last(match: re.Match[str]) -> str:
    return last_part(match[0])


def walk(data: Any, change: Callable[[str], str]) -> Any:
    """Plain data with every text in it changed."""
    if isinstance(data, str):
        return change(data)
    if isinstance(data, Mapping):
        return {walk(key, change): walk(value, change) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [walk(each, change) for each in data]
    return data


def private_of(recipe: Recipe, run: Path) -> Private:
    """What is private about a run on this machine."""
    settings = recipe.model_dump(mode="json")
    replaced: dict[str, str] = {}
    labels = dict.fromkeys(_MODELS, "")  # no two places alike, and none like a model of ours
    for key, value in _texts(settings):
        if key.endswith("server"):
            replaced[value] = NO_SERVER
            replaced |= dict.fromkeys(_hosts(value), "server.invalid")
        elif key != "system" and is_local(value):
            whole = str(Path(value).expanduser().absolute())
            replaced[value] = replaced[whole] = _label(last_part(value), whole, labels)
    replaced[str(run.absolute())] = run.name
    home = str(Path.home())
    if len(Path(home).parts) > 2:
        replaced[home] = "~"
    with suppress(OSError, KeyError):  # a user without a name
        for folder in ("/home/", "/Users/", "\\Users\\"):
            replaced[f"{folder}{getpass.getuser()}"] = "~"
    replaced = {original: shown for original, shown in replaced.items() if original != shown}
    ordered = dict(sorted(replaced.items(), key=lambda each: (-len(each[0]), each[0])))
    return Private(ordered, _secrets(settings))


def _hosts(server: str) -> list[str]:
    """How a server's host stands in errors, with its port and alone; not where it is any word."""
    place = urlsplit(server)
    if place.hostname in (*_HERE, None):
        return []
    forms = (place.netloc, str(place.hostname))
    return [form for form in forms if "." in form or ":" in form]


def _label(name: str, place: str, labels: dict[str, str]) -> str:
    """A place's last part, numbered where another place has that name already."""
    label, number = name, 2
    while labels.setdefault(label, place) != place:
        label, number = f"{name}-{number}", number + 1
    return label


def _texts(data: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(data, str):
        yield key, data
    elif isinstance(data, Mapping):
        for name, value in data.items():
            yield from _texts(value, name)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from _texts(value, key)


def _secrets(settings: Mapping[str, Any]) -> dict[str, str]:
    from huggingface_hub import get_token

    named = {value for key, value in _texts(settings) if key == "api_key"}
    found = {
        value: name
        for name, value in sorted(os.environ.items())
        if name in named or _NAMED_SECRET.search(name)
    }
    found[get_token() or ""] = "the token of the Hub"
    return {value: name for value, name in found.items() if len(value) >= 8}


def without_servers(settings: dict[str, Any]) -> dict[str, Any]:
    """A recipe's settings without addresses, and without the names of keys' variables.

    Done to what is pulled too: a recipe of somebody else's would otherwise send a key of one's own
    wherever it says.
    """
    for group in (settings.get("model"), settings.get("judge")):
        if isinstance(group, dict):
            if group.get("server"):
                group["server"] = NO_SERVER
            group["api_key"] = NO_KEY
    return settings


def redact_table(source: Path, target: Path, private: Private) -> bool:
    """Copy a table without what is private, if it holds any; whether it did.

    The reasons of failures are ours and may name any file: paths in them are cut too. Rows stand in
    the order of their ids afterwards too: those of an evaluation begin with the name of a model,
    which may be a path, and only then the table is gathered to sort it.
    """
    with pq.ParquetFile(source) as file:
        if not any(_holds(batch, private) for batch in batches(file)):
            return False
        schema, key = file.schema_arrow, file.schema_arrow.names[0]
        last, ascending = "", True
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for batch in batches(file):
                rows = [
                    {name: _redacted(name, value, private) for name, value in row.items()}
                    for row in batch.to_pylist()
                ]
                keys = [last, *(row[key] for row in rows)]
                ascending = ascending and keys == sorted(keys)
                last = keys[-1]
                tables.write_rows(writer, pa.Table.from_pylist(rows, schema))
    if not ascending:
        ordered = pq.read_table(target).sort_by(key)
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for start in range(0, ordered.num_rows, tables.ROW_GROUP):
                tables.write_rows(writer, ordered.slice(start, tables.ROW_GROUP))
    return True


def batches(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """A table's rows, a row group's worth at a time."""
    yield from file.iter_batches(batch_size=tables.ROW_GROUP)


def _holds(batch: pa.RecordBatch, private: Private) -> bool:
    return any(_redacted(name, text, private) != text for _, name, text in texts_of(batch))


def _redacted(column: str, value: Any, private: Private) -> Any:
    if column in WRITTEN:
        return value
    return private.redact_paths(value) if column == OURS else private.redact_all(value)


def texts_of(batch: pa.RecordBatch) -> Iterator[tuple[int, str, str]]:
    """(row, column, text) of every text, however deep it lies; numbers are not looked at."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if _has_text(column.type):
            for row, value in enumerate(column.to_pylist()):
                yield from ((row, name, text) for _, text in _texts(value) if text)


def _has_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _has_text(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_has_text(kind.field(place).type) for place in range(kind.num_fields))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


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
