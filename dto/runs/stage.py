"""One stage: groups of rows go in through a bounded window, a table and a manifest come out.

<stage>/journal           while the stage is under way (dto.runs.journal)
<stage>/rows.parquet      deterministic columns, sorted by id
<stage>/timings.parquet   id, seconds: they depend on scheduling, so they stand beside the table
<stage>/usage.parquet     key of the group, tokens read, cached, generated, wasted, FLOPs
<stage>/dropped.jsonl     id, reason, detail
<stage>/manifest.json     last; then the journal, which says nothing more, is deleted
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from tqdm import tqdm

from dto import tables
from dto.errors import DtoError, disk_errors
from dto.ledger import Usage, metered
from dto.records import Dropped
from dto.runs import manifest
from dto.runs.journal import Entry, Journal

READ_AHEAD = 32
"""Groups read at once: it is done off the event loop, and a round trip costs more than a row."""
HOPELESS = 20
"""When the first so many groups all end in an error, the stage stops with it."""


USAGE_SCHEMA = {
    "key": pl.String(),
    "requests": pl.Int64(),
    "prompt": pl.Int64(),
    "cached": pl.Int64(),
    "generated": pl.Int64(),
    "wasted": pl.Int64(),
    "attention_flops": pl.Float64(),
}


class Group(NamedTuple):
    """The rows that are worked on together, and the key under which their result is kept."""

    key: str
    rows: tuple[Any, ...]


class Timed(NamedTuple):
    """A row with the wall seconds it took; the row goes to the table, the seconds beside it."""

    row: Any
    seconds: float


Work = Callable[..., Awaitable[Any]]
"""Takes a group's rows; gives a record, a Dropped, or a list of records, Dropped and Timed."""


class Stage:
    """A stage under way. `config` is everything it is computed from, upstream digests included.

    A context manager: inside, `feed` works through groups (as often as there are engines to do it
    with), then `finish` writes the table. Leaving it early keeps what was computed.
    """

    def __init__(self, directory: Path, record: type[Any], config: Mapping[str, Any]) -> None:
        self.directory = directory
        self.record = record
        self.config = dict(config)
        self._failed = 0
        self._failure = ""

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.directory.name

    def __enter__(self) -> Stage:
        manifest.reset_peak_memory()
        self._journal = Journal(self.directory / "journal", self.record, {"config": self.config})
        return self

    def __exit__(self, *exc: object) -> None:
        self._journal.close()
        if manifest.read(self.directory) is not None:
            self._journal.path.unlink(missing_ok=True)

    async def feed(
        self, groups: Iterator[Group], work: Work, *, window: int, total: int | None = None
    ) -> None:
        """Work through the groups, at most `window` at a time, those aside that are done already.

        An exception of one group is a row dropped with reason `error`. Raises DtoError when `work`
        raises one (a mistake in the set-up, not in a row), when the disk is full, and when the
        first groups all end in errors.
        """
        journal, loop = self._journal, asyncio.get_running_loop()
        slots = asyncio.Semaphore(window)
        with (
            ThreadPoolExecutor(1, "dto-reader") as reader,
            ThreadPoolExecutor(1, "dto-journal") as writer,
            tqdm(total=total, desc=self.name, disable=None, mininterval=0.5) as bar,
        ):

            def ahead() -> list[Group]:
                return list(islice(groups, READ_AHEAD))

            async def one(group: Group) -> None:
                try:
                    entry = await _attempt(group, work)
                    await loop.run_in_executor(writer, journal.append, entry)
                    self._count(entry)
                    bar.update()
                finally:
                    slots.release()

            try:
                async with asyncio.TaskGroup() as tasks:
                    while block := await loop.run_in_executor(reader, ahead):
                        owed = [group for group in block if group.key not in journal.done]
                        bar.update(len(block) - len(owed))
                        for group in owed:
                            await slots.acquire()
                            tasks.create_task(one(group))
            except BaseExceptionGroup as errors:
                raise _first(errors) from None

    def owes(self, groups: Iterator[Group]) -> bool:
        """Whether any of the groups is not done yet."""
        return any(group.key not in self._journal.done for group in groups)

    def note(self, entry: Entry) -> None:
        """Write down what needed no work."""
        self._journal.append(entry)

    def _count(self, entry: Entry) -> None:
        if entry.failed:
            self._failed += 1
            self._failure = entry.dropped[0].detail
        if self._failed >= HOPELESS and not self._journal.done:
            raise self._hopeless()

    def _hopeless(self) -> DtoError:
        return DtoError(
            f"stage {self.name}: the first {self._failed} groups all failed, the last with "
            f"{self._failure}"
        )

    async def finish(self) -> dict[str, Any]:
        """Write the table, what stands beside it, and the manifest last; returns the manifest."""
        if self._failed and not self._journal.done:
            raise self._hopeless()
        return await asyncio.to_thread(self._write)

    def _write(self) -> dict[str, Any]:
        dropped: list[Dropped] = []
        timings: dict[str, float] = {}
        usage: dict[str, Usage] = {}

        def rows() -> Iterator[Any]:
            for entry in self._journal.entries():
                dropped.extend(entry.dropped)
                timings.update(entry.seconds)
                usage[entry.key] = entry.usage
                yield from entry.rows

        directory = self.directory
        with disk_errors(directory):
            written = tables.write(directory / "rows.parquet", self.record, rows())
            pl.DataFrame(
                {"id": list(timings), "seconds": list(timings.values())},
                schema={"id": pl.String, "seconds": pl.Float64},
            ).write_parquet(directory / "timings.parquet")
            pl.DataFrame(
                [{"key": key} | asdict(each) for key, each in usage.items()], schema=USAGE_SCHEMA
            ).write_parquet(directory / "usage.parquet")
            lines = [
                json.dumps(asdict(each), ensure_ascii=False) + "\n"
                for each in sorted(dropped, key=lambda each: (each.id, each.reason, each.detail))
            ]
            manifest.write_text(directory / "dropped.jsonl", "".join(lines))
            total = Usage()
            for each in usage.values():
                total.add(each)
            done = manifest.finished(
                self.name,
                self.config,
                rows=written,
                groups=len(usage),
                dropped=dict(sorted(Counter(each.reason for each in dropped).items())),
                usage=asdict(total),
                seconds=self._journal.total_seconds(),
            )
            manifest.write(directory, done)
        return done


async def _attempt(group: Group, work: Work) -> Entry:
    begun = time.perf_counter()
    with metered() as usage:
        try:
            result = await work(*group.rows)
        except DtoError:
            raise
        except Exception as error:  # a row never ends a run: it is counted, and shown at the end
            result = Dropped(group.key, "error", f"{type(error).__name__}: {error}")
    results = result if isinstance(result, list) else [result]
    dropped = [each for each in results if isinstance(each, Dropped)]
    timed = [each for each in results if isinstance(each, Timed)]
    plain = [each for each in results if not isinstance(each, Dropped | Timed)]
    seconds = {each.row.id: each.seconds for each in timed}
    return Entry(
        key=group.key,
        rows=[*plain, *(each.row for each in timed)],
        dropped=dropped,
        usage=usage,
        seconds=seconds or {group.key: time.perf_counter() - begun},
    )


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
