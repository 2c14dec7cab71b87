"""The append-only journal of a stage in progress: one JSON line for each finished group of rows.

The first line holds the stage's configuration. The last line is incomplete after a kill; it is cut
off when the journal is opened again. So `kill -9` loses at most the groups in progress. Each line
ends with its checksum: a line that the disk damaged is left out, and its group is computed again.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from math import nan
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO, NamedTuple
from zlib import crc32

from dto import tables
from dto.errors import DtoError, disk_errors
from dto.records import Dropped
from dto.usage import Account, Usage

logger = logging.getLogger("dto")

SYNC_SECONDS = 5.0
"""Seconds between fsync calls: a power cut can lose this much work, a kill loses none of it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The result of one group: its rows, dropped rows and usage.

    `seconds` maps the group's key to its time, or the ids of its rows if the stage times each row.
    `wasted` maps ids to the tokens that were generated for a row and discarded.
    """

    key: str
    rows: Sequence[Any] = ()
    dropped: Sequence[Dropped] = ()
    usage: Usage = field(default_factory=Usage)
    seconds: dict[str, float] = field(default_factory=dict)
    wasted: dict[str, int] = field(default_factory=dict)
    judge: Usage = field(default_factory=Usage)  # the judge's usage; `usage` excludes it
    given_up: Mapping[str, int] = field(default_factory=dict)  # comparisons given up, by reason
    elapsed: float = 0.0  # seconds spent on the stage when the group was finished

    @property
    def error(self) -> str:
        """The unexpected error in which the group ended; empty if there was none."""
        return next((row.detail for row in self.dropped if row.reason == "error"), "")

    @property
    def needs_retry(self) -> bool:
        """Whether the group is computed again on resume: after an error or a failed request."""
        return bool(self.error or self.usage.failed or self.judge.failed)

    @property
    def all_failed(self) -> bool:
        """Whether the group ended in an error, or all of its requests failed."""
        return bool(self.error) or 0 < self.usage.requests == self.usage.failed


class Journal:
    """The single writer of a stage's journal. Not thread safe: call `append` from one thread only.

    `head` is the stage's configuration. A journal with a different head must not be continued; the
    caller compares `read_head` first. `done` holds the keys of the finished groups. If a group was
    tried several times, the last attempt counts.
    """

    def __init__(self, path: Path, record: type[Any], head: dict[str, Any]) -> None:
        self.path = path
        self.record = record
        self.done: set[str] = set()
        self.elapsed = 0.0  # seconds that earlier sessions worked on this stage
        self._opened = time.monotonic()
        # Requests and failed ones of policy and judge: of all groups that are done together, and of
        # the last attempt at each of the others.
        self._counts = [0, 0, 0, 0]
        self._failed: dict[str, tuple[int, int, int, int]] = {}
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
        """Index the complete lines, and return the offset at which they end."""
        end = 0
        with open(self._file, "rb", closefd=False) as lines:
            for start, end, data in _whole_lines(lines):
                if start == 0 and "head" not in data:
                    raise DtoError(
                        f"{self.path} is damaged in its first line, the configuration: compute the "
                        f"stage again after `rm {quote(str(self.path))}`"
                    )
                if not data:
                    text = "%s: bytes %d to %d are damaged; their group is computed again"
                    logger.warning(text, self.path, start, end)
                if "key" in data:
                    self._index(_entry(data, ()))
                    self.elapsed = data["elapsed"]
        return end

    def _index(self, entry: Entry) -> None:
        usage, judge = entry.usage, entry.judge
        counts = usage.requests, usage.failed, judge.requests, judge.failed
        if entry.needs_retry:
            self._failed[entry.key] = counts
        elif entry.key not in self.done:
            self.done.add(entry.key)
            self._failed.pop(entry.key, None)
            self._counts = [
                before + more for before, more in zip(self._counts, counts, strict=True)
            ]

    def requests(self, account: Account = "policy") -> tuple[int, int]:
        """The number of requests for all groups, and how many of them failed."""
        total = map(sum, zip(self._counts, *self._failed.values(), strict=True))
        requests, failed, judged, unjudged = total
        return (judged, unjudged) if account == "judge" else (requests, failed)

    def append(self, *entries: Entry) -> None:
        """Write groups. Raises DtoError if the disk fails; the journal then stays valid."""
        with disk_errors(self.path):
            self._write(*map(self._line, entries))
        for entry in entries:
            self._index(entry)

    def _line(self, entry: Entry) -> dict[str, Any]:
        rows = sorted(entry.rows, key=lambda row: str(row.id))
        return {
            "key": entry.key,
            "rows": [self._adapter.dump_python(row) for row in rows],
            "dropped": [asdict(row) for row in entry.dropped],
            "usage": asdict(entry.usage),
            "judge": asdict(entry.judge),
            "seconds": entry.seconds,
            "wasted": entry.wasted,
            "given_up": dict(entry.given_up),
            "elapsed": self.total_seconds(),
        }

    def total_seconds(self) -> float:
        """Wall seconds spent on the stage, including earlier sessions."""
        return self.elapsed + time.monotonic() - self._opened

    def _write(self, *lines: dict[str, Any]) -> None:
        data = b"".join(map(_encode, lines))
        os.lseek(self._file, self._end, os.SEEK_SET)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(data)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def close(self) -> None:
        """Sync the journal to the disk and close it."""
        with disk_errors(self.path):
            os.fsync(self._file)
        os.close(self._file)


def read_head(path: Path) -> dict[str, Any] | None:
    """The configuration with which the stage started; None without a complete first line."""
    try:
        with path.open("rb") as lines:
            head = next((data.get("head") for _, _, data in _whole_lines(lines)), None)
    except OSError:
        return None
    return head if isinstance(head, dict) else None


class _Place(NamedTuple):
    """Where an attempt at a group begins in the journal, and what places are sorted by first."""

    order: str
    key: str
    start: int


def read_entries(
    path: Path, record: type[Any] | None, order: Callable[[str], str] = str
) -> Iterator[Entry]:
    """Read the recorded groups in the order of `order(key)`, one in memory at a time.

    Writes nothing, so the stage may still be in progress. Without a `record`, rows stay plain JSON.
    """
    build = None if record is None else tables.adapter(record).validate_python
    places = tables.Sorter(_Place)
    with path.open("rb") as lines:
        for start, _, data in _whole_lines(lines):
            if "key" in data:
                places.add(order(data["key"]), data["key"], start)
        for _, attempts in groupby(places, key=lambda place: place.key):
            *_, last = attempts
            lines.seek(last.start)
            data = json.loads(lines.readline())
            yield _entry(data, [build(row) for row in data["rows"]] if build else data["rows"])


def _encode(data: dict[str, Any]) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()[:-1]
    return b'%s,"crc":"%08x"}\n' % (text, crc32(text))


def _whole_lines(lines: BinaryIO) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(start, end, content) of each complete line; the content of a damaged one is empty.

    Lines of earlier versions have no checksum.
    """
    end = 0
    for line in lines:
        if not line.endswith(b"\n"):
            return
        start, end = end, end + len(line)
        text, mark, crc = line[:-19], line[-19:-11], line[-11:-3]
        try:
            data = json.loads(line)
            intact = isinstance(data, dict) and (mark != b',"crc":"' or int(crc, 16) == crc32(text))
        except ValueError:
            intact = False
        yield start, end, data if intact else {}


def _entry(data: dict[str, Any], rows: Sequence[Any]) -> Entry:
    return Entry(
        key=data["key"],
        rows=rows,
        dropped=[Dropped(**row) for row in data["dropped"]],
        usage=Usage.read(data["usage"]),
        judge=Usage.read(data.get("judge", {})),
        seconds=data["seconds"],
        wasted=data["wasted"],
        given_up=data.get("given_up", {}),  # missing in journals of earlier versions
        elapsed=data["elapsed"],
    )


@dataclass(frozen=True, slots=True)
class Timing:
    """A row of timings.parquet: the time and wasted tokens of one row or group."""

    id: str
    seconds: float
    wasted: int


@dataclass(frozen=True, slots=True)
class GroupUsage:
    """A row of usage.parquet: the fields of `Usage` for one group."""

    key: str
    requests: int
    failed: int
    prompt: int
    cached: int
    generated: int
    wasted: int
    attention_flops: float
    model_flops: float = nan  # missing in tables of earlier versions
