"""The append-only record of a stage under way: one JSON line for each finished group of rows.

The first line holds what the stage was begun with. A line is written with one call to the system
and is whole or torn; a torn one, which only the last can be, is cut off when the journal is opened
again, and its group is owed again. So `kill -9` loses at most the groups under way.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import nan
from pathlib import Path
from typing import Any, BinaryIO

from dto import tables
from dto.errors import disk_errors
from dto.records import Dropped
from dto.usage import Account, Usage

SYNC_SECONDS = 5.0
"""How often the journal is forced to the disk: what a power cut can take, a kill takes nothing."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one group: its rows, what was dropped, what it took.

    `seconds` are by id: the group's key, or its rows' ids where a stage times them itself; so are
    the tokens that a row took in vain, `wasted`, where there are any.
    """

    key: str
    rows: Sequence[Any] = ()
    dropped: Sequence[Dropped] = ()
    usage: Usage = field(default_factory=Usage)
    seconds: dict[str, float] = field(default_factory=dict)
    wasted: dict[str, int] = field(default_factory=dict)
    judge: Usage = field(default_factory=Usage)  # what a judge took is no part of `usage`
    given_up: Mapping[str, int] = field(default_factory=dict)  # comparisons, by reason
    elapsed: float = 0.0  # seconds that the stage had been worked on by then

    @property
    def error(self) -> str:
        """The unexpected error that the group ended in; empty for none."""
        return next((each.detail for each in self.dropped if each.reason == "error"), "")

    @property
    def owed(self) -> bool:
        """Whether the group is tried again on resume: after an error, or a failed request."""
        return bool(self.error or self.usage.failed or self.judge.failed)

    @property
    def in_vain(self) -> bool:
        """Whether the group ended in an error, or none of its requests came back."""
        return bool(self.error) or 0 < self.usage.requests == self.usage.failed


class Journal:
    """One writer for one stage. Not thread safe: all calls of `append` come from one thread.

    `head` is what the stage is computed from; a journal with another head is not continued (the
    caller compares `read_head` first). `done` holds the keys that are not owed any more; of a group
    that was tried again the last attempt counts.
    """

    def __init__(self, path: Path, record: type[Any], head: dict[str, Any]) -> None:
        self.path = path
        self.record = record
        self.done: set[str] = set()
        self.elapsed = 0.0  # seconds that earlier sessions worked on this stage
        self._opened = time.monotonic()
        self._requests: dict[Account, dict[str, tuple[int, int]]] = {"policy": {}, "judge": {}}
        self._adapter = tables.adapter(record)
        self._synced = time.monotonic()
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
            self._end = self._recover()
            os.ftruncate(self._file, self._end)
            if self._end == 0:
                self._write({"head": head})

    def _recover(self) -> int:
        """Index the whole lines; the offset at which they end."""
        end = 0
        with open(self._file, "rb", closefd=False) as lines:
            for _, after, data in _whole_lines(lines):
                end = after
                if "key" in data:
                    self._index(_entry(data, ()))
                    self.elapsed = data["elapsed"]
        return end

    def _index(self, entry: Entry) -> None:
        self._requests["policy"][entry.key] = entry.usage.requests, entry.usage.failed
        self._requests["judge"][entry.key] = entry.judge.requests, entry.judge.failed
        if not entry.owed:
            self.done.add(entry.key)

    def requests(self, account: Account = "policy") -> tuple[int, int]:
        """How many requests were made for the groups, and how many of these failed."""
        made = self._requests[account].values()
        return sum(asked for asked, _ in made), sum(failed for _, failed in made)

    def append(self, entry: Entry) -> None:
        """Write one group. Raises DtoError when the disk does not take it; what stands is valid."""
        rows = sorted(entry.rows, key=lambda row: str(row.id))
        with disk_errors(self.path):
            self._write(
                {
                    "key": entry.key,
                    "rows": [self._adapter.dump_python(row) for row in rows],
                    "dropped": [asdict(each) for each in entry.dropped],
                    "usage": asdict(entry.usage),
                    "judge": asdict(entry.judge),
                    "seconds": entry.seconds,
                    "wasted": entry.wasted,
                    "given_up": dict(entry.given_up),
                    "elapsed": self.total_seconds(),
                }
            )
        self._index(entry)

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

    def close(self) -> None:
        """Force everything to the disk."""
        with disk_errors(self.path):
            os.fsync(self._file)
        os.close(self._file)


def read_head(path: Path) -> dict[str, Any] | None:
    """What the stage was begun with; None when the journal holds no whole first line."""
    try:
        with path.open("rb") as lines:
            head = next((data.get("head") for _, _, data in _whole_lines(lines)), None)
    except OSError:
        return None
    return head if isinstance(head, dict) else None


def read_entries(
    path: Path, record: type[Any] | None, order: Callable[[str], Any] = str
) -> Iterator[Entry]:
    """The groups that are recorded now, in the order of `order(key)`, one in memory at a time.

    Changes nothing, and a writer may be at work. Without a `record` rows are as they stand there.
    """
    build = None if record is None else tables.adapter(record).validate_python
    with path.open("rb") as lines:
        starts = {data["key"]: start for start, _, data in _whole_lines(lines) if "key" in data}
        for key in sorted(starts, key=order):
            lines.seek(starts[key])
            data = json.loads(lines.readline())
            yield _entry(data, [build(row) for row in data["rows"]] if build else data["rows"])


def _whole_lines(lines: BinaryIO) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(start, end, content) of each line, as far as they are whole."""
    end = 0
    for line in lines:
        try:
            data = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            return
        if not isinstance(data, dict):
            return
        start, end = end, end + len(line)
        yield start, end, data


def _entry(data: dict[str, Any], rows: Sequence[Any]) -> Entry:
    return Entry(
        key=data["key"],
        rows=rows,
        dropped=[Dropped(**each) for each in data["dropped"]],
        usage=Usage.read(data["usage"]),
        judge=Usage.read(data.get("judge", {})),
        seconds=data["seconds"],
        wasted=data["wasted"],
        given_up=data.get("given_up", {}),  # a journal of an earlier version has none
        elapsed=data["elapsed"],
    )


@dataclass(frozen=True, slots=True)
class Timing:
    """A line of timings.parquet: what one row, or group, took."""

    id: str
    seconds: float
    wasted: int


@dataclass(frozen=True, slots=True)
class GroupUsage:
    """A line of usage.parquet: the fields of `Usage` for one group."""

    key: str
    requests: int
    failed: int
    prompt: int
    cached: int
    generated: int
    wasted: int
    attention_flops: float
    model_flops: float = nan  # a table of an earlier version has none
