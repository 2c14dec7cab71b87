"""Read the rows of a file, a folder or a dataset of the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from dto.errors import DtoError
from dto.extension import nearest
from dto.records import Dropped
from dto.source import Source
from dto.tasks import TASKS
from dto.tasks.task import Row

_SAVED = ("dataset_dict.json", "state.json")  # files that save_to_disk writes
Rows = Iterable[Row | Dropped]


def read_source(source: Source) -> dict[str | None, Rows]:
    """The rows of a .jsonl or .parquet file (under None), or of a dataset by split.

    A dataset is one of the Hub, or a folder: a copy of a Hub dataset (data files, with or without a
    card) or the output of `Dataset.save_to_disk`. A line of a .jsonl file that is not a JSON object
    is returned as a dropped row. Raises DtoError for a source that does not exist or cannot be
    read.
    """
    name, path = source.name, Path(source.name)
    if source.kind == "file" and path.suffix == ".jsonl":
        return {None: _json_lines(path)}
    if source.kind == "file" and path.suffix == ".parquet":
        return {None: _parquet(path)}
    if source.kind == "file":
        raise DtoError(f"source {name}: expected .jsonl, .parquet, a folder or a Hub dataset")
    if source.kind == "folder" and not path.is_dir():
        raise _missing("source", path)
    import datasets

    saved = path.is_dir() and any((path / name).is_file() for name in _SAVED)
    try:
        loaded = (
            datasets.load_from_disk(name)
            if saved
            else datasets.load_dataset(name, source.subset, revision=source.revision)
        )
    except Exception as error:  # datasets passes on any error of its file systems and parsers
        lines = str(error).strip().splitlines() or [type(error).__name__]
        two_lines = lines[0].startswith("Config name is missing") and lines[1:]
        first = " ".join(lines[:2]) if two_lines else lines[0]
        suggestion = nearest(name, TASKS)
        hint = f"; no task has that name{suggestion}, see `dto tasks list`" if suggestion else ""
        raise DtoError(f"dataset {name!r} cannot be loaded: {first}{hint}") from error
    if isinstance(loaded, datasets.Dataset):
        return {None: loaded}
    return {str(split): rows for split, rows in loaded.items()}


def _missing(kind: str, path: Path) -> DtoError:
    """The error for a path to nothing; a relative one is told with the folder it starts from."""
    where = "" if path.is_absolute() else f", which starts in {Path.cwd()} or beside the recipe"
    return DtoError(f"{kind} {path} does not exist: check the path{where}")


def _json_lines(path: Path) -> Iterator[Row | Dropped]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    yield _json_object(line)
                except ValueError as error:
                    detail = f"{where} {error}"
                    yield Dropped(f"line/{number:08d}", "unreadable_row", detail)
    except FileNotFoundError:
        raise _missing("file", path) from None
    except OSError as error:
        raise DtoError(f"file {path} cannot be read: {error}") from None


def _json_object(line: bytes) -> Row:
    """Read a line of JSON. Raises ValueError for anything but an object."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if b"\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be read: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"holds {type(row).__name__}, not an object")
    return row


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise _missing("file", path)
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise DtoError(f"file {path} cannot be read: {error}") from None
