"""The append-only record of a stage under way: one JSON line for each finished group of rows.

The first line holds what the stage was begun with. A line is written with one call to the system
and is whole or torn; a torn one, which only the last can be, is cut off when the journal is opened
again, and its group is owed again. So `kill -9` loses at most the groups under way.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dto import tables
from dto.errors import disk_errors
from dto.ledger import Usage
from dto.records import Dropped

SYNC_SECONDS = 5.0
"""How often the journal is forced to the disk: what a power cut can take, a kill takes nothing."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one group: its rows, what was dropped, what it took.

    `seconds` are by id: the group's key, or its rows' ids where a stage times them itself.
    """

    key: str
    rows: Sequence[Any] = ()
    dropped: Sequence[Dropped] = ()
    usage: Usage = field(default_factory=Usage)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether the group ended in an unexpected error; it is tried again on resume."""
        return any(each.reason == "error" for each in self.dropped)


class Journal:
    """One writer for one stage. Not thread safe: all calls of `append` come from one thread.

    `head` is what the stage is computed from; a journal with another head is not continued (the
    caller compares `read_head` first). `done` holds the keys that are not owed any more.
    """

    def __init__(self, path: Path, record: type[Any], head: dict[str, Any]) -> None:
        self.path = path
        self.record = record
        self.done: set[str] = set()
        self.elapsed = 0.0  # seconds that earlier sessions worked on this stage
        self._opened = time.monotonic()
        self._offsets: dict[str, int] = {}
        self._adapter = tables.adapter(record)
        self._synced = time.monotonic()
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            self._end = self._recover()
            os.ftruncate(self._file, self._end)
            if self._end == 0:
                self._write({"head": head})

    def _recover(self) -> int:
        """Index the whole lines; the offset at which they end."""
        end = 0
        with open(self._file, "rb", closefd=False) as lines:
            for line in lines:
                try:
                    record = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    record = None
                if record is None:
                    break
                if "key" in record:
                    self._index(record["key"], end, failed=_is_failed(record))
                    self.elapsed = record["elapsed"]
                end += len(line)
        return end

    def _index(self, key: str, offset: int, *, failed: bool) -> None:
        self._offsets[key] = offset
        if not failed:
            self.done.add(key)

    def append(self, entry: Entry) -> None:
        """Write one group. Raises DtoError when the disk does not take it; what stands is valid."""
        rows = sorted(entry.rows, key=lambda row: str(row.id))
        offset = self._end
        with disk_errors(self.path):
            self._write(
                {
                    "key": entry.key,
                    "rows": [self._adapter.dump_python(row) for row in rows],
                    "dropped": [asdict(each) for each in entry.dropped],
                    "usage": asdict(entry.usage),
                    "seconds": entry.seconds,
                    "elapsed": self.total_seconds(),
                }
            )
        self._index(entry.key, offset, failed=entry.failed)

    def total_seconds(self) -> float:
        """Wall seconds spent on the stage, those of earlier sessions included."""
        return self.elapsed + time.monotonic() - self._opened

    def _write(self, data: dict[str, Any]) -> None:
        line = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        os.lseek(self._file, self._end, os.SEEK_SET)
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def entries(self) -> Iterator[Entry]:
        """All groups in the order of their keys, one in memory at a time."""
        with self.path.open("rb") as lines:
            for key in sorted(self._offsets):
                lines.seek(self._offsets[key])
                data = json.loads(lines.readline())
                yield Entry(
                    key=key,
                    rows=[self._adapter.validate_python(row) for row in data["rows"]],
                    dropped=[Dropped(**each) for each in data["dropped"]],
                    usage=Usage(**data["usage"]),
                    seconds=data["seconds"],
                )

    def close(self) -> None:
        """Force everything to the disk."""
        with disk_errors(self.path):
            os.fsync(self._file)
        os.close(self._file)


def read_head(path: Path) -> dict[str, Any] | None:
    """What the stage was begun with; None when the journal holds no whole first line."""
    try:
        with path.open("rb") as lines:
            first = lines.readline()
        head = json.loads(first).get("head") if first.endswith(b"\n") else None
    except (OSError, ValueError):
        return None
    return head if isinstance(head, dict) else None


def _is_failed(record: dict[str, Any]) -> bool:
    return any(each["reason"] == "error" for each in record["dropped"])
