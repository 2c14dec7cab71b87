"""Records as Parquet that polars, `datasets` and the Hub's viewer open directly.

Spans are structs {start, end}, lists of ids list<int32>, trials and verdicts lists of structs, free
metadata a JSON string. Tables are sorted by id and cut into small row groups: they are read, and
joined with one another, in bounded memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from dto.errors import DtoError
from dto.records import Span

if TYPE_CHECKING:  # a tenth of a second, which `dto --help` need not wait for
    import pyarrow as pa
    import pyarrow.parquet as pq

ROW_GROUP = 256
"""Rows in a row group: 20 MB with responses of 8,192 tokens, far below what viewers refuse."""
ROW_GROUP_BYTES = 64 * 2**20
"""Fewer where rows are that large: the Hub's viewer refuses row groups of some 286 MiB."""

R = TypeVar("R")
P = TypeVar("P")
V = TypeVar("V")
Encode = Callable[[Any], Any]


def _once(function: Callable[[Any], V]) -> Callable[[Any], V]:
    """`functools.cache` for functions of a class, which mypy does not take for hashable."""
    return cache(function)


def _identity(value: Any) -> Any:
    return value


def _column(hint: Any) -> tuple[pa.DataType, Encode]:
    """The Parquet type of a field and how its value is written."""
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
        return pa.list_(kind), lambda items: [put(each) for each in items]
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
    """Checks and builds a record from plain data (pydantic)."""
    return TypeAdapter(record)


@_once
def _required(record: Any) -> tuple[str, ...]:
    without = (MISSING, MISSING)
    own = fields(record)
    return tuple(f.name for f in own if (f.default, f.default_factory) == without)


@_once
def _json_fields(record: Any) -> tuple[str, ...]:
    hints = get_type_hints(record)
    return tuple(name for name, hint in hints.items() if get_origin(hint) is dict)


def _decode(record: type[R], row: dict[str, Any]) -> R:
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
    """Add rows as one row group, or as several where they are large."""
    share = ROW_GROUP_BYTES / max(rows.nbytes, 1)
    writer.write_table(rows, row_group_size=max(1, min(ROW_GROUP, int(rows.num_rows * share))))


def write(path: Path, record: type[R], rows: Iterable[R], key: str = "id") -> int:
    """Write rows, which come sorted by `key`, and return their number; whole or not at all.

    Raises DtoError when keys do not ascend strictly, OSError when the disk is full.
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
    """Rows in the order of their ids, one row group in memory at a time.

    The lists that `without` names are not read: they are empty. A column that the table lacks, as
    an earlier version did not have it, gives the field's default, if it has one. Raises DtoError
    for a missing file and for one whose columns are not the record's.
    """
    with check(path, record) as file:
        there = set(file.schema_arrow.names).difference(without)
        names = [name for name in schema(record).names if name in there]
        left_out = dict.fromkeys(without, ())
        for batch in file.iter_batches(batch_size=ROW_GROUP, columns=names):
            for row in batch.to_pylist():
                row |= left_out
                yield _decode(record, row)


def check(path: Path, record: type[Any]) -> pq.ParquetFile:
    """A table, opened; raises what `read` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise DtoError(f"table {path} does not exist: run the stage that writes it first") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise DtoError(f"table {path} cannot be read: {error}") from None
    missing = [name for name in _required(record) if name not in file.schema_arrow.names]
    if missing:
        file.close()
        raise DtoError(
            f"table {path} lacks the columns {', '.join(missing)} of a {record.__name__}: "
            "it comes from another version, compute it again with --recompute"
        )
    return file


def find(path: Path, record: type[R], column: str, value: str | int) -> list[R]:
    """The rows whose `column` holds `value`; only the row groups that can have it are read."""
    import pyarrow.parquet as pq

    there = pq.read_schema(path).names
    names = [name for name in schema(record).names if name in there]
    found = pq.read_table(path, columns=names, filters=[(column, "=", value)])
    return [_decode(record, row) for row in found.to_pylist()]


def count(path: Path, **equals: str) -> int:
    """Number of rows: all, from the file's footer, or those whose columns hold the values given."""
    if not equals:
        import pyarrow.parquet as pq

        return int(pq.read_metadata(path).num_rows)
    import polars as pl

    return int(pl.scan_parquet(path).filter(**equals).select(pl.len()).collect().item())


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a small file, one a line; none where it is missing.

    A line ends at a line feed alone, for a text may hold U+2028. What follows the last one is torn,
    and left out.
    """
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def merge(
    parents: Iterable[P],
    *children: tuple[Iterable[Any], Callable[[Any], str]],
    key: Callable[[P], str] = lambda parent: str(getattr(parent, "id")),  # noqa: B009
) -> Iterator[tuple[Any, ...]]:
    """Join sorted tables in one pass: each parent with the list of its rows in each child table.

    `children` are (rows, key of the parent that a row belongs to). Rows whose parent is not there
    are skipped. At most one parent's rows are in memory.
    """
    streams = [groupby(rows, child_key) for rows, child_key in children]
    heads: list[tuple[str, list[Any]] | None] = [_next_group(stream) for stream in streams]
    for parent in parents:
        own = key(parent)
        found: list[list[Any]] = []
        for index, stream in enumerate(streams):
            head = heads[index]
            while head is not None and head[0] < own:
                head = _next_group(stream)
            matches = head is not None and head[0] == own
            found.append(head[1] if head is not None and matches else [])
            heads[index] = _next_group(stream) if matches else head
        yield (parent, *found)


def _next_group(stream: Iterator[tuple[str, Iterator[Any]]]) -> tuple[str, list[Any]] | None:
    for own, rows in stream:
        return own, list(rows)
    return None
