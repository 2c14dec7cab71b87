"""Read and write records as Parquet files that polars, `datasets` and the Hub's viewer can open.

Spans are structs {start, end}, token ids list<int32>, trials and verdicts lists of structs, and
metadata a JSON string. Tables are sorted by id and have small row groups, so they can be read and
joined in bounded memory.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from itertools import groupby, islice
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from dto.errors import DtoError
from dto.records import Span

if TYPE_CHECKING:  # importing it takes 0.1 s, which `dto --help` should not
    import pyarrow as pa
    import pyarrow.parquet as pq

ROW_GROUP = 256
"""Rows in a row group: 20 MB with responses of 8,192 tokens."""
ROW_GROUP_BYTES = 64 * 2**20
"""Larger rows get smaller groups: the Hub's viewer refuses row groups above about 286 MiB."""

SORTED_KIB = 16_384  # of a sorter that are in memory, the rest on disk

R = TypeVar("R")
P = TypeVar("P")
V = TypeVar("V")
Encode = Callable[[Any], Any]


def _once(function: Callable[[Any], V]) -> Callable[[Any], V]:
    """`functools.cache` for functions that take a class, which mypy considers unhashable."""
    return cache(function)


def _identity(value: Any) -> Any:
    return value


def _column(hint: Any) -> tuple[pa.DataType, Encode]:
    """The Parquet type of a field, and the function that encodes its values."""
    import pyarrow as pa

    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if hint in plain:
        return plain[hint], _identity
    if hint is Span:
        ends = [("start", pa.int32()), ("end", pa.int32())]
        return pa.struct(ends), lambda span: {"start": span[0], "end": span[1]}
    if is_dataclass(hint):
        columns = _columns(hint)
        kind = pa.struct([(name, column) for name, column, _ in columns])
        return kind, lambda row: {name: put(getattr(row, name)) for name, _, put in columns}
    if get_origin(hint) is Literal:
        return pa.string(), _identity
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        if item is int:
            return pa.list_(pa.int32()), _identity
        kind, put = _column(item)
        return pa.list_(kind), lambda items: [put(item) for item in items]
    if get_origin(hint) is dict:
        return pa.string(), lambda value: json.dumps(value, ensure_ascii=False, sort_keys=True)
    raise TypeError(f"no Parquet type for {hint}")


@_once
def _columns(record: Any) -> tuple[tuple[str, pa.DataType, Encode], ...]:
    hints = get_type_hints(record)
    return tuple((field.name, *_column(hints[field.name])) for field in fields(record))


@_once
def schema(record: type[Any]) -> pa.Schema:
    """The Parquet schema of a record."""
    import pyarrow as pa

    return pa.schema([(name, kind) for name, kind, _ in _columns(record)])


@_once
def adapter(record: Any) -> TypeAdapter[Any]:
    """The pydantic adapter that validates plain data and builds a record."""
    return TypeAdapter(record)


@_once
def _required(record: Any) -> tuple[str, ...]:
    no_default = (MISSING, MISSING)
    return tuple(f.name for f in fields(record) if (f.default, f.default_factory) == no_default)


@_once
def _json_fields(record: Any) -> tuple[str, ...]:
    hints = get_type_hints(record)
    return tuple(name for name, hint in hints.items() if get_origin(hint) is dict)


def decode(record: type[R], row: dict[str, Any]) -> R:
    """Build a record from a row of its table. Raises DtoError for a value of another type."""
    for name in _json_fields(record):
        if name in row:
            row[name] = json.loads(row[name])
    try:
        built: R = adapter(record).validate_python(row)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DtoError(
            f"a row of {record.__name__} cannot be read: {key} = {first['input']!r}: "
            f"{first['msg']}; was the table written by another version?"
        ) from None
    return built


def write_rows(writer: pq.ParquetWriter, rows: pa.Table) -> None:
    """Add rows as one row group, or as several if they are large."""
    share = ROW_GROUP_BYTES / max(rows.nbytes, 1)
    writer.write_table(rows, row_group_size=max(1, min(ROW_GROUP, int(rows.num_rows * share))))


class Sorter(Iterable[R]):
    """Flat records in the order of their fields; those past some megabytes lie in a private file.

    The file is in the system's folder for temporary files, and ends with the process. Raises
    DtoError if that is full.
    """

    def __init__(self, record: type[R]) -> None:
        self._record = record
        names = [f"_{name}" for name in get_type_hints(record)]
        self._insert = f"INSERT INTO records VALUES ({', '.join('?' * len(names))})"
        self._select = f"SELECT * FROM records ORDER BY {', '.join(names)}"
        self._records = sqlite3.connect("", check_same_thread=False)
        self._execute(f"PRAGMA cache_size = {-SORTED_KIB}")
        self._execute(f"CREATE TABLE records ({', '.join(names)})")

    def add(self, *values: Any) -> None:
        """Add a record by the values of its fields."""
        self._execute(self._insert, values)

    def __iter__(self) -> Iterator[R]:
        for row in self._execute(self._select):  # it holds nan as None
            yield self._record(*(nan if value is None else value for value in row))

    def __del__(self) -> None:
        self._records.close()

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._records.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise DtoError(
                f"rows cannot be sorted in the folder for temporary files: {error}; finished rows "
                "are kept: free some space there or set TMPDIR to another folder, and run again"
            ) from None


def write(path: Path, record: type[R], rows: Iterable[R], key: str = "id") -> int:
    """Write rows, sorted by `key`, as a complete file or not at all; return their number.

    Raises DtoError if keys are not strictly ascending, OSError if the disk is full.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}.part")
    columns, count, last = _columns(record), 0, ""
    source = iter(rows)
    try:
        with pq.ParquetWriter(temporary, schema(record), compression="zstd") as writer:
            while block := list(islice(source, ROW_GROUP)):
                for row in block:
                    row_id = str(getattr(row, key))
                    if row_id <= last and count:
                        raise DtoError(f"table {path}: row {row_id!r} after {last!r} is not sorted")
                    last, count = row_id, count + 1
                data = [
                    {name: put(getattr(row, name)) for name, _, put in columns} for row in block
                ]
                write_rows(writer, pa.Table.from_pylist(data, schema(record)))
        with temporary.open("r+b") as written:  # Windows forces no file that is only read
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def read(path: Path, record: type[R], without: Collection[str] = ()) -> Iterator[R]:
    """Read rows in the order of their ids, one row group in memory at a time.

    Columns named in `without` are not read: they get the field's default, or an empty list. So does
    a column missing from a table of an earlier version, if the field has a default. Raises DtoError
    for a missing file, and for a file that lacks other columns of the record.
    """
    with check(path, record) as file:
        present = set(file.schema_arrow.names).difference(without)
        names = [name for name in schema(record).names if name in present]
        empty_lists = dict.fromkeys(set(without).intersection(_required(record)), ())
        for batch in file.iter_batches(batch_size=ROW_GROUP, columns=names):
            for row in batch.to_pylist():
                row |= empty_lists
                yield decode(record, row)


def check(path: Path, record: type[Any]) -> pq.ParquetFile:
    """Open a table and check its columns. Raises DtoError as `read` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise DtoError(f"table {path} does not exist: run the stage that writes it first") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise DtoError(f"table {path} cannot be read: {error}") from None
    missing = [name for name in _required(record) if name not in file.schema_arrow.names]
    missing += ["rule"] if "answer_kind" in file.schema_arrow.names else []  # its former name
    if missing:
        file.close()
        raise DtoError(
            f"table {path} lacks the columns {', '.join(missing)} of a {record.__name__}: "
            "it comes from another version, compute it again with --recompute"
        )
    return file


def count(path: Path, **equals: str) -> int:
    """Count all rows (from the file's footer), or those with the given values in their columns."""
    if not equals:
        import pyarrow.parquet as pq

        return int(pq.read_metadata(path).num_rows)
    import polars as pl

    return int(pl.scan_parquet(path).filter(**equals).select(pl.len()).collect().item())


def merge(
    parents: Iterable[P],
    *children: tuple[Iterable[Any], Callable[[Any], str]],
    key: Callable[[P], str] = lambda parent: str(getattr(parent, "id")),  # noqa: B009
) -> Iterator[tuple[Any, ...]]:
    """Join sorted tables in one pass: yield each parent with its rows from each child table.

    Each of `children` is (rows, function from a row to its parent's key). Rows without a parent are
    skipped. Only one parent's rows are in memory at a time.
    """
    streams = [groupby(rows, child_key) for rows, child_key in children]
    heads: list[tuple[str, list[Any]] | None] = [_next_group(stream) for stream in streams]
    for parent in parents:
        parent_key = key(parent)
        groups: list[list[Any]] = []
        for index, stream in enumerate(streams):
            head = heads[index]
            while head is not None and head[0] < parent_key:
                head = _next_group(stream)
            matches = head is not None and head[0] == parent_key
            groups.append(head[1] if head is not None and matches else [])
            heads[index] = _next_group(stream) if matches else head
        yield (parent, *groups)


def _next_group(stream: Iterator[tuple[str, Iterator[Any]]]) -> tuple[str, list[Any]] | None:
    for parent_key, rows in stream:
        return parent_key, list(rows)
    return None
