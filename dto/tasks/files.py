"""Read the rows of a file, a folder or a dataset of the Hub.

Files are read as streams: one row is in memory, of Parquet and .json a block of them. Rows of text
files keep their values as they are written: `datasets` would make numbers of the cells "007" and
"1e-6", and stops where a column is null in the first block and text in a later one.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO, TextIO

from dto.errors import DtoError
from dto.extension import nearest
from dto.records import Dropped
from dto.source import COMPRESSED, DATA_FILES, Source
from dto.tasks import TASKS
from dto.tasks.shapes import ANSWER, QUESTION, RESPONSE
from dto.tasks.task import Row

logger = logging.getLogger("dto")

_SAVED = ("dataset_dict.json", "state.json")  # files that save_to_disk writes
_INSPECT = ".eval"  # logs of inspect in its own format
_BLOCK = 2**26  # bytes of Parquet rows that are read together
_CHUNK = 2**20  # characters of a .json file
_LISTS = frozenset(name for name in RESPONSE if name.endswith("s"))
_TEXTS = frozenset((*QUESTION, *RESPONSE, *ANSWER)) - _LISTS
MOST_CHARACTERS = 2**28
"""Characters of one row of a .json file; a longer one is taken for a file that is broken."""
Rows = Iterable[Row | Dropped]
_Reader = Callable[[Path], Iterator[Row | Dropped]]


def read_source(source: Source) -> dict[str | None, Rows]:
    """The rows of a data file (under None), or of a dataset by split.

    Files: .jsonl, .json (:func:`_json_rows`), .csv, .tsv and .parquet; text files may be compressed
    (.gz, .zst). A dataset is one of the Hub, or a folder: data files, also of several formats, a
    copy of a Hub dataset with its card, or the output of `Dataset.save_to_disk`. What is no row (a
    line that is not a JSON object, a line of a table with too few cells) is returned as a dropped
    row. Raises DtoError for a source that does not exist or cannot be read.
    """
    name, subset = source.dataset
    path = Path(name)
    if source.kind == "file":
        read = _reader(path)
        if read is None:
            if path.suffix == _INSPECT:
                raise _inspect_log(path)
            expected = ", ".join(DATA_FILES)
            raise DtoError(f"source {name}: expected {expected}, a folder or a Hub dataset")
        return {None: _guarded(path, read)}
    if source.kind == "folder" and not path.is_dir():
        raise _missing("source", path)
    saved = path.is_dir() and any((path / name).is_file() for name in _SAVED)
    if path.is_dir() and not saved and not (subset or _has_configs(path)):
        splits = _folder(path)
        if splits:
            return splits
    return _dataset(source, saved)


def _dataset(source: Source, saved: bool) -> dict[str | None, Rows]:
    """The splits of a dataset, as the package `datasets` reads it."""
    import datasets

    name, subset = source.dataset
    try:
        loaded = (
            datasets.load_from_disk(name)
            if saved
            else datasets.load_dataset(name, subset, revision=source.revision)
        )
    except Exception as error:  # datasets passes on any error of its file systems and parsers
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if lines[0].startswith("Config name is missing"):
            configs = re.findall(r"'([^']+)'", " ".join(lines[1:2]))
            raise DtoError(
                f"dataset {name!r} has several configs: {', '.join(configs)}: add the one to read "
                f"to the name, such as {name}:{next(iter(configs), 'CONFIG')}"
            ) from None
        suggestion = nearest(name, TASKS)
        hint = f"; no task has that name{suggestion}, see `dto tasks list`" if suggestion else ""
        raise DtoError(f"dataset {name!r} cannot be loaded: {lines[0]}{hint}") from error
    if isinstance(loaded, datasets.Dataset):
        return {None: loaded}
    return {str(split): rows for split, rows in loaded.items()}


def _missing(kind: str, path: Path) -> DtoError:
    """The error for a path to nothing; a relative one is told with the folder it starts from."""
    where = "" if path.is_absolute() else f", which starts in {Path.cwd()} or beside the recipe"
    return DtoError(f"{kind} {path} does not exist: check the path{where}")


def _has_configs(folder: Path) -> bool:
    """Whether the card of a folder says which files it has."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    head = card.split("---")[1:2] if card.startswith("---") else []
    return any(re.search(r"^(configs|dataset_info):", part, re.MULTILINE) for part in head)


def _folder(folder: Path) -> dict[str | None, Rows]:
    """The data files of a folder by split, which their names tell as on the Hub; else `train`."""
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _reader(path)]
    files = [path for path in files if not _hidden(path.relative_to(folder))]
    if not files:
        if log := next(folder.rglob(f"*{_INSPECT}"), None):
            raise _inspect_log(log)
        return {}
    base = str(folder.resolve())
    try:
        named = DataFilesDict.from_patterns(get_data_patterns(base), base_path=base)
    except EmptyDatasetError:
        return {}
    splits: dict[str | None, Rows] = {}
    left = {path.resolve(): path for path in files}
    for split, names in named.items():
        own = [left.pop(path) for path in sorted({*map(Path, names)} & left.keys())]
        if own:
            splits[str(split)] = chain.from_iterable(map(_file, own))
    if not splits:  # only other files are named after a split, such as x.eval
        return {"train": chain.from_iterable(map(_file, files))}
    if left:
        others = ", ".join(path.name for path in left.values())
        logger.warning(
            "%s: not read, since other files are named after a split: %s", folder, others
        )
    return splits


def _inspect_log(path: Path) -> DtoError:
    shell = f"inspect log dump {quote(str(path))} > {quote(path.stem)}.json"
    return DtoError(f"{path} is a packed log of inspect: write it as JSON with `{shell}`")


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _file(path: Path) -> Iterator[Row | Dropped]:
    read = _reader(path)
    assert read is not None
    return _guarded(path, read)


def _reader(path: Path) -> _Reader | None:
    """The function that reads a file of this name; None for a name of no data file."""
    name = path.name.lower()
    plain = name.removesuffix(next((end for end in COMPRESSED if name.endswith(end)), ""))
    if name.endswith(".parquet"):
        return _parquet
    readers: dict[str, _Reader] = {
        ".jsonl": _json_lines,
        ".json": _json_rows,
        ".csv": _table,
        ".tsv": _table,
    }
    return readers.get(Path(plain).suffix)


def _guarded(path: Path, read: _Reader) -> Iterator[Row | Dropped]:
    import pyarrow as pa

    if not path.is_file():
        raise _missing("file", path)
    try:
        yield from read(path)
    except (OSError, EOFError, zlib.error, pa.ArrowInvalid, UnicodeError, csv.Error) as error:
        raise DtoError(f"file {path} cannot be read: {error}") from None


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix.lower() == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), _CHUNK)
    return path.open("rb")


def _json_lines(path: Path) -> Iterator[Row | Dropped]:
    """The rows of a JSON Lines file: only a line feed ends a line, since text may hold U+2028."""
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield _json_object(line)
            except ValueError as error:
                yield _unreadable("line", number, f"{path}, line {number} {error}")


def _json_object(line: bytes) -> Row:
    """Read a line of JSON. Raises ValueError for anything but an object."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if b"\\u" in line:
            _check_text(row)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be read: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"holds {type(row).__name__}, not an object")
    return row


def _check_text(row: object) -> None:
    """Raise ValueError for half a surrogate pair, which is not text."""
    json.dumps(row, ensure_ascii=False).encode()


def _unreadable(unit: str, number: int, detail: str) -> Dropped:
    return Dropped(f"{unit}/{number:08d}", "unreadable_row", detail)


class _JsonValues:
    """The values of a JSON text, one in memory at a time.

    The values are those of `json`, as in JSON Lines: NaN is read, and half a surrogate pair is
    found. Streaming parsers refuse the one and replace the other.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text, self._at, self._ended = "", 0, False
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            rest = re.compile(r"\s*").match(self._text, self._at)
            self._at = rest.end() if rest else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, expected: str) -> str:
        """Pass one of these characters. Raises ValueError for another."""
        found = self.peek()
        if not found or found not in expected:
            signs = " or ".join(f"`{sign}`" for sign in expected)
            raise ValueError(f"expected {signs}, found {f'`{found}`' if found else 'its end'}")
        self._at += 1
        return found

    def value(self) -> Any:
        """Read a whole value. Raises ValueError if it is not JSON."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                unfinished = error.pos > len(self._text) - 16 or "Unterminated" in error.msg
                if unfinished and self._more():
                    continue
                raise ValueError(f"{error.msg}: {self._text[error.pos : error.pos + 30]}") from None
            except RecursionError:
                raise ValueError("it is nested too deep") from None
            if end < len(self._text) or not self._more():  # 12 may be the beginning of 123
                self._at = end
                return value

    def _more(self) -> bool:
        """Read on, as much as there is already, so that long values are tried a few times only."""
        self._text, self._at = self._text[self._at :], 0
        if self._ended or len(self._text) > MOST_CHARACTERS:
            return False
        chunk = self._file.read(max(_CHUNK, len(self._text)))
        self._text += chunk
        self._ended = not chunk
        return bool(chunk)


def _json_rows(path: Path) -> Iterator[Row | Dropped]:
    """The objects of a .json file: of an array, or of the one list of objects in its object.

    An object without such a list, or whose only one is a chat, is a row itself. A file of several
    objects is read as JSON Lines. Of a log of inspect the `samples` are read. Raises DtoError if
    another object has several lists of objects.
    """
    try:
        with _text(path, errors="surrogateescape") as file:
            values = _JsonValues(file)
            first = values.peek()
            if first == "[":
                yield from _elements(values, path)
                return
            if not first:
                return
            lists, several = _lists_of_objects(values)
        if several:
            yield from _json_lines(path)
            return
        if len(lists) > 1:
            raise DtoError(
                f"file {path} has several lists of objects: {', '.join(lists)}: keep the one to "
                "read, or write it to a file of its own"
            )
        with _text(path, errors="surrogateescape") as file:
            values = _JsonValues(file)
            if not lists:
                yield _checked(values.value(), path, 1)
                return
            values.take("{")
            while True:
                key = values.value()
                values.take(":")
                if key in lists:
                    yield from _elements(values, path)
                    return
                values.value()
                values.take(",")
    except ValueError as error:
        raise DtoError(f"file {path} is not JSON: {error}") from None


def _elements(values: _JsonValues, path: Path) -> Iterator[Row | Dropped]:
    values.take("[")
    if values.peek() == "]":
        return
    for number in count(1):
        yield _checked(values.value(), path, number)
        if values.take(",]") == "]":
            return


def _checked(value: object, path: Path, number: int) -> Row | Dropped:
    where = f"{path}, element {number}"
    if not isinstance(value, dict):
        detail = f"{where} holds {type(value).__name__}, not an object"
        return _unreadable("element", number, detail)
    try:
        _check_text(value)
    except ValueError as error:
        return _unreadable("element", number, f"{where} cannot be read: {error}")
    return value


def _lists_of_objects(values: _JsonValues) -> tuple[list[str], bool]:
    """The keys of an object that hold a list of objects, and whether more follows the object.

    Beside `eval`, as in a log of inspect, `samples` are the only such list.
    """
    lists: list[str] = []
    keys = set()
    values.take("{")
    while values.peek() != "}":
        key = values.value()
        keys.add(str(key))
        values.take(":")
        if values.peek() == "[":
            values.take("[")
            if values.peek() == "{":
                first = values.value()
                if not (isinstance(first, dict) and _is_turn(first)):
                    lists.append(str(key))
                if values.peek() != "]":
                    values.take(",")
            while values.peek() != "]":
                values.value()
                if values.peek() != "]":
                    values.take(",")
            values.take("]")
        else:
            values.value()
        if values.peek() != "}":
            values.take(",")
    values.take("}")
    if "samples" in lists and "eval" in keys:
        lists = ["samples"]
    return lists, bool(values.peek())


def _is_turn(value: object) -> bool:
    """Whether a value is a message of a chat."""
    return isinstance(value, dict) and ("role" in value or "from" in value)


def _text(path: Path, errors: str = "strict") -> TextIO:
    """Open a text file: UTF-8, or the encoding that its byte order mark names."""
    with _open(path) as file:
        wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    encoding = "utf-16" if wide else "utf-8-sig"
    return io.TextIOWrapper(_open(path), encoding=encoding, errors=errors, newline="")


def _table(path: Path) -> Iterator[Row | Dropped]:
    """The rows of a .csv or .tsv file: cells are text, and empty ones null.

    A cell that is a JSON list of messages is read as a chat, and outside of columns for one text, a
    JSON list of texts, objects or truth values as that list. A list of responses in another form
    is dropped (`wrong_type`). Raises DtoError for two columns with one name.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default is 131,072 characters
    tabs = ".tsv" in path.suffixes[-2:] or ".TSV" in path.suffixes[-2:]
    with _text(path, errors="surrogateescape") as file:
        lines = csv.reader(file, delimiter="\t" if tabs else ",")
        names = next(lines, [])
        if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
            raise DtoError(f"file {path} has several columns {twice[0]!r}: rename all but one")
        for number, cells in enumerate(lines, start=1):
            if not cells:
                continue
            where = f"{path}, row {number}"
            if len(cells) != len(names):
                detail = f"{where} has {len(cells)} cells, its header {len(names)}"
                yield _unreadable("row", number, detail)
                continue
            row = {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True)}
            broken = [name for name in _LISTS & row.keys() if _is_broken(row[name])]
            if broken:
                detail = f"{where}: {broken[0]} is a list, but not JSON: write it with json.dumps"
                yield Dropped(f"row/{number:08d}", "wrong_type", detail)
                continue
            try:
                _check_text(row)
            except ValueError as error:
                yield _unreadable("row", number, f"{where} cannot be read: {error}")
                continue
            yield row


def _cell(name: str, cell: str) -> Any:
    if not cell.startswith("["):
        return cell or None
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    if values and all(map(_is_turn, values)):
        return values
    is_list = all(value is None or isinstance(value, str | bool | dict) for value in values)
    return values if is_list and name not in _TEXTS else cell


def _is_broken(cell: object) -> bool:
    """Whether a cell is a list of texts as Python or pandas shows it, or the beginning of one."""
    return isinstance(cell, str) and re.match(r"\[\s*['\"]", cell) is not None


def _parquet(path: Path) -> Iterator[Row | Dropped]:
    import pyarrow.parquet as pq

    number = 0
    with pq.ParquetFile(path, buffer_size=_CHUNK) as file:
        metadata = file.metadata
        size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        rows = max(1, min(1024, _BLOCK * metadata.num_rows // max(1, size)))
        for batch in file.iter_batches(batch_size=rows):
            try:
                yield from batch.to_pylist()
            except UnicodeDecodeError:
                for index in range(batch.num_rows):
                    try:
                        yield from batch.slice(index, 1).to_pylist()
                    except UnicodeDecodeError as error:
                        where = f"{path}, row {number + index + 1}"
                        detail = f"{where} cannot be read: {error}"
                        yield _unreadable("row", number + index + 1, detail)
            number += batch.num_rows
