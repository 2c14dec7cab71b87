"""Join the output of an OpenAI batch with the requests of its input file, by `custom_id`.

vLLM's `run-batch` and compatible servers write the same two files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dto.errors import DtoError
from dto.records import Dropped
from dto.source import Source
from dto.tasks.files import Rows, read_source
from dto.tasks.task import Row

FAILED = "failed_request"


class BatchFiles(NamedTuple):
    """The files of one or more batches: requests, and what came back (errors, too)."""

    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]


def batch_files(source: str, batch_input: str | None) -> BatchFiles | None:
    """The files of a batch: an output with its input, or a folder with both. None: no batch."""
    path = Path(source)
    if batch_input is not None:
        if Path(batch_input).suffix != ".jsonl":
            raise DtoError(f"--input {batch_input}: the input of a batch is a .jsonl file")
        if Source.parse(source).kind != "file":
            raise DtoError(
                f"--input {batch_input} goes with one output file of a batch, and {source} is "
                "none: name that file, or leave --input out if a folder holds both"
            )
        return BatchFiles((Path(batch_input),), (path,))
    if not path.is_dir():
        return None
    files = [file for file in sorted(path.glob("*.jsonl")) if file.is_file()]
    firsts = {file: _first_row(file) for file in files}
    inputs = tuple(file for file in files if {"custom_id", "body"} <= firsts[file].keys())
    outputs = tuple(file for file in files if {"custom_id", "response"} <= firsts[file].keys())
    return BatchFiles(inputs, outputs) if inputs and outputs else None


def _first_row(path: Path) -> Row:
    with path.open("rb") as lines:
        row = _loaded(next((line for line in lines if line.strip()), b""))
    return row if isinstance(row, dict) else {}


def batch_rows(files: BatchFiles) -> Rows:
    """The rows of the outputs, each with the columns of its request.

    A row whose request failed (`failed_request`) or is in no input file (`missing_field`) is
    dropped. Only places in the input files are kept in memory, not the requests. Raises DtoError
    for a file that cannot be read, and for a `custom_id` that two requests have.
    """
    requests = _requests(files.inputs)
    number = 0
    for path in files.outputs:
        for row in read_source(Source.parse(str(path)))[None]:
            number += 1
            if isinstance(row, Dropped):
                yield row
                continue
            custom_id, row_id = str(row.get("custom_id")), f"row/{number:08d}"
            where = f"{path}, custom_id {custom_id}"
            if (why := _failure(row)) is not None:
                yield Dropped(row_id, FAILED, f"{where}: {why}")
            elif custom_id not in requests:
                names = ", ".join(map(str, files.inputs))
                yield Dropped(row_id, "missing_field", f"{where}: no such request in {names}")
            else:
                yield {**_at(*requests[custom_id]), **row}


def _failure(row: Row) -> str | None:
    response, error = row.get("response"), row.get("error")
    if not isinstance(response, dict) or error:
        return f"the request failed: {json.dumps(error, ensure_ascii=False)[:200]}"
    status = response.get("status_code", 200)
    return None if status == 200 else f"the request failed with status {status}"


def _requests(paths: Sequence[Path]) -> dict[str, tuple[Path, int]]:
    """File and offset of each request."""
    places: dict[str, tuple[Path, int]] = {}
    for path in paths:
        for offset, line in _lines(path):
            row = _loaded(line)
            if not isinstance(row, dict) or "custom_id" not in row:
                raise DtoError(
                    f"{path}: a line has no custom_id: it is not the input file of a batch"
                )
            custom_id = str(row["custom_id"])
            if custom_id in places:
                raise DtoError(
                    f"{path}: custom_id {custom_id} occurs twice: import each batch by itself, "
                    "with --input"
                )
            places[custom_id] = (path, offset)
    return places


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    offset = 0
    try:
        with path.open("rb") as lines:
            for line in lines:
                if line.strip():
                    yield offset, line
                offset += len(line)
    except OSError as error:
        raise DtoError(f"file {path} cannot be read: {error}") from None


def _at(path: Path, offset: int) -> dict[str, Any]:
    with path.open("rb") as lines:
        lines.seek(offset)
        row: dict[str, Any] = _loaded(lines.readline())
    return row


def _loaded(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
