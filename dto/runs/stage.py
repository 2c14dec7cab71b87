"""Declare a stage, and run it: groups of rows go in, a table comes out.

A new stage is one module with a :class:`Stage` at its end, and a line in `dto.pipeline`. All other
lists of stages follow from that one.

<stage>/journal           while the stage is in progress (dto.runs.journal)
<stage>/rows.parquet      deterministic columns, sorted by id
<stage>/timings.parquet   id, seconds and wasted tokens, which depend on scheduling
<stage>/usage.parquet     key of the group; tokens read, cached, generated, wasted; FLOPs
<stage>/dropped.jsonl     id, reason, detail
<stage>/manifest.json     written last; then the journal is deleted
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple

from dto import tables
from dto.context import Context
from dto.errors import DtoError, disk_errors
from dto.recipe import Recipe
from dto.records import Dropped
from dto.runs import manifest
from dto.runs.journal import Entry, GroupUsage, Journal, Timing, read_entries
from dto.runs.reader import RunReader
from dto.usage import Usage, counting_given_up, metered

Work = Callable[..., Awaitable[Any]]
"""`work(*rows, ctx)` for one group returns a record, a Dropped, or a list of records, Dropped and
Timed."""
Needs = Literal["nothing", "tokenizer", "model"]

_DRAWN = ("temperature", "top_p", "top_k", "min_p", "presence_penalty")
SAMPLING = tuple(f"sample.{key}" for key in _DRAWN)
"""The settings that decide how the policy samples."""
ANSWERING = tuple(f"evaluate.{key}" for key in ("samples", "max_tokens", *_DRAWN))
"""The settings that decide how `evaluate` samples."""
RENDERING = (
    "model.name", "model.revision", "model.tokenizer", "model.family", "model.system",
    "model.template", "model.think",
)  # fmt: skip
"""The settings that decide how a message is rendered and how thinking is marked."""


class Group(NamedTuple):
    """Rows that are processed together, and the key of their result in the journal.

    A group of a single Dropped is recorded as it is, without any work.
    """

    key: str
    rows: tuple[Any, ...]


class Timed(NamedTuple):
    """A row for the table, with its time and wasted tokens, which depend on scheduling.

    `seconds` is the time from the request to the grade, under the engine's load at the time.
    `wasted` counts tokens that were generated for the row but are not part of it, including those
    of aborted requests (an abort may count one token too many).
    """

    row: Any
    seconds: float
    wasted: int = 0


class Card(NamedTuple):
    """How a stage's table is published: as a config of the run's dataset on the Hub.

    An empty `split` means that each row names its split; the config then has one file per split.
    """

    place: int  # order in the card; the lowest is the dataset's default config
    config: str
    split: str
    about: str


def always(*values: str) -> Callable[[Recipe], tuple[str, ...]]:
    """Return the same values for every recipe."""
    return lambda recipe: values


def responses(recipe: Recipe) -> str:
    """The number of responses that a run samples, as text."""
    if recipe.sample.imported:
        return "imported"
    return f"{recipe.problems.train * recipe.sample.samples:,}"


def never(recipe: Recipe) -> bool:
    """Return false for every recipe."""
    return False


async def _no_work(*rows: Any) -> None:
    """The work of a stage that runs as a whole."""


_BASE, _NOTHING = always("base"), always()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage of a run: it turns groups of rows into a table, or runs as a whole.

    `reads` names the stages whose tables it reads (their own inputs are implied). `settings` are
    the keys that decide its rows, besides `seed`; a key that ends in a dot stands for its group.
    Settings of earlier stages need not be named, since a change of their digest changes this
    stage's digest. The content of `files` (files and folders) decides the rows too. `groups` are
    read off the event loop; for a stage without a model, `ctx` has no engine.

    Every group goes through `work`. A stage with `whole` has neither groups nor work. `whole` is
    called when all engines are closed, with the run's directory, the recipe and whether programs
    may be run, and returns entries for the manifest.
    """

    name: str
    about: str
    """Its line in `dto --help`."""
    amount: Callable[[Recipe], str]
    """The amount of work, for the plan."""
    reads: Callable[[Recipe], tuple[str, ...]]
    settings: Callable[[Recipe], tuple[str, ...]]
    record: type[Any] = NoneType
    """The type of a row in its table."""
    groups: Callable[[RunReader, Context], Iterator[Group]] = lambda run, ctx: iter(())
    work: Work = _no_work
    whole: Callable[[Path, Recipe, bool], dict[str, Any]] | None = None
    total: Callable[[RunReader], int | None] = lambda run: None
    """The number of groups, for the progress bar."""
    needs: Needs = "model"
    models: Callable[[Recipe], tuple[str, ...]] = _BASE
    """The models to run it on, in order: `base`, `trained`, or other names."""
    asks_model: Callable[[Recipe], bool] | None = None
    """Whether its rows depend on the model's settings and weights; None: if it `needs` a model."""
    renders: bool = False
    """Whether its rows depend on the prompts although it needs no model."""
    asks_judge: Callable[[Recipe], bool] = never
    """Whether its rows depend on a judge model."""
    check: Callable[[Context], None] | None = None
    """Raises before any work if the engine lacks a feature."""
    files: Callable[[Recipe], tuple[str, ...]] = _NOTHING
    window: int | None = None
    """Groups in progress at once; None: `window` of the recipe."""
    spends: bool = True
    """Whether its usage is part of the cost of optimizing and training."""
    step: bool = True
    """Whether it is part of `dto run` and has a command of its own."""
    card: Card | None = None
    paper: str = ""
    """The arXiv id of the paper that it implements."""
    width: Callable[[Recipe], int] = lambda recipe: 1
    """The number of parallel requests for one row."""
    essential: str = ""  # what goes into it, if all is pointless without its rows
    of_method: bool = False
    """Whether each method of a comparison may have its own settings for it."""

    def decided_by_model(self, recipe: Recipe) -> bool:
        """Whether its rows depend on the model's settings and weights."""
        return self.needs == "model" if self.asks_model is None else self.asks_model(recipe)


BESIDE = ("dropped.jsonl", "timings.parquet", "usage.parquet")
"""Files of a stage beside its table, whose hashes the manifest has too."""
READ_AHEAD = 32
"""Groups read at a time by the reader thread, since switching threads costs more than a row."""
MAX_CONSECUTIVE_FAILURES = 20
"""Abort after so many consecutive groups whose requests all failed, or first groups in error."""
MAX_FAILED_REQUESTS = 0.05
"""The largest share of failed requests with which a stage can finish; above it, resume retries."""


class Runner:
    """Runs one stage. `config` is everything that decides its rows, including upstream digests.

    Use it as a context manager: call `feed` once per engine to process groups, then `finish` to
    write the table. Leaving it early keeps the finished groups.
    """

    def __init__(self, directory: Path, record: type[Any], config: Mapping[str, Any]) -> None:
        self.directory, self.name = directory, directory.name
        self.record = record
        self.config = dict(config)
        self._failed_in_a_row = self._unjudged_in_a_row = 0  # groups; those that asked a judge
        self._failure = ""

    def __enter__(self) -> Runner:
        manifest.reset_peak_memory()
        self._journal = Journal(self.directory / "journal", self.record, {"config": self.config})
        return self

    def __exit__(self, *exc: object) -> None:
        self._journal.close()
        if manifest.read(self.directory) is not None:
            self._journal.path.unlink(missing_ok=True)

    async def feed(
        self,
        groups: Iterator[Group],
        work: Work,
        *,
        window: int,
        total: int | None = None,
        elsewhere: Callable[[Group], Awaitable[Entry]] | None = None,
        status: Callable[[], str] = str,
    ) -> None:
        """Process the groups, at most `window` at a time, skipping those already in the journal.

        `elsewhere` replaces `work`: it does in another process what `attempt` does here; `status`
        is shown beside the progress. An exception in one group drops it with reason `error`. A
        DtoError of `work` is raised: the configuration is wrong, not a row. Also raises DtoError if
        the disk is full, if the first groups all end in errors, and if many consecutive groups get
        no answer from the engine. Failed groups are computed again on resume.
        """
        from tqdm import tqdm  # reads TQDM_DISABLE, which the command line sets, when imported

        journal, loop = self._journal, asyncio.get_running_loop()
        slots, writing = asyncio.Semaphore(window), asyncio.Lock()
        ready: list[Entry] = []
        start, generated = time.perf_counter(), 0
        with (
            ThreadPoolExecutor(1, "dto-reader") as reader,
            ThreadPoolExecutor(1, "dto-journal") as writer,
            tqdm(total=total, desc=self.name, disable=None, mininterval=0.5) as bar,
        ):

            def read_block() -> list[Group]:
                return list(islice(groups, READ_AHEAD))

            async def keep(entry: Entry) -> None:
                """Write an entry, together with all others that became ready meanwhile."""
                nonlocal generated
                ready.append(entry)
                async with writing:
                    entries = ready.copy()
                    ready.clear()
                    if entries:
                        await loop.run_in_executor(writer, journal.append, *entries)
                    for written in entries:
                        self._count(written)
                        generated += written.usage.generated
                    rate = generated / (time.perf_counter() - start)
                    bar.set_postfix_str(f"{rate:,.0f} tokens/s {status()}".strip(), refresh=False)
                    bar.update(len(entries))

            async def process(group: Group) -> None:
                try:
                    await keep(await (elsewhere(group) if elsewhere else attempt(group, work)))
                finally:
                    slots.release()

            try:
                async with asyncio.TaskGroup() as tasks:
                    while read := await loop.run_in_executor(reader, read_block):
                        pending = [group for group in read if group.key not in journal.done]
                        bar.update(len(read) - len(pending))
                        for group in pending:
                            await slots.acquire()
                            tasks.create_task(process(group))
            except BaseExceptionGroup as errors:
                raise _first(errors) from None

    def has_pending(self, groups: Iterator[Group]) -> bool:
        """Whether any of the groups is not finished."""
        return any(group.key not in self._journal.done for group in groups)

    def _count(self, entry: Entry) -> None:
        if entry.needs_retry:
            self._failure = _failure(entry)
        self._failed_in_a_row = self._failed_in_a_row + 1 if entry.all_failed else 0
        if self._failed_in_a_row >= MAX_CONSECUTIVE_FAILURES and (
            entry.usage.failed or not self._journal.done
        ):
            raise self._failed(f"{self._failed_in_a_row} groups in a row")
        if requests := entry.judge.requests:
            unjudged = entry.judge.failed == requests
            self._unjudged_in_a_row = self._unjudged_in_a_row + 1 if unjudged else 0
        if self._unjudged_in_a_row >= MAX_CONSECUTIVE_FAILURES:
            raise self._failed(
                f"the judge's requests for {self._unjudged_in_a_row} groups in a row"
            )

    def _failed(self, subject: str) -> DtoError:
        return DtoError(
            f"stage {self.name}: {subject} failed, the last with {self._failure}; finished rows "
            "are kept, and the same command tries the failed ones again"
        )

    async def finish(self, further: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write the tables, and the manifest last, with `further` entries; return the manifest."""
        if self._failed_in_a_row and not self._journal.done:
            raise self._failed(f"all {self._failed_in_a_row} groups")
        requests, failed = self._journal.requests()
        if failed > MAX_FAILED_REQUESTS * requests:
            raise self._failed(f"{failed:,} of {requests:,} requests")
        requests, failed = self._journal.requests("judge")
        if 0 < requests == failed:  # if only some failed, their rows are complete, but unjudged
            raise self._failed(f"all {requests:,} requests to the judge")
        return await asyncio.to_thread(self._write, further or {})

    def _write(self, further: Mapping[str, Any]) -> dict[str, Any]:
        dropped, timings = tables.Sorter(Dropped), tables.Sorter(Timing)
        usage = tables.Sorter(GroupUsage)
        total, judge, groups = Usage(), Usage(), 0
        reasons, given_up = Counter[str](), Counter[str]()

        def rows() -> Iterator[Any]:
            nonlocal groups
            for entry in read_entries(self._journal.path, self.record):
                for row in entry.dropped:
                    dropped.add(row.id, row.reason, row.detail)
                    reasons[row.reason] += 1
                for row_id, seconds in entry.seconds.items():
                    timings.add(row_id, seconds, entry.wasted.get(row_id, 0))
                usage.add(entry.key, *asdict(entry.usage).values())
                total.add(entry.usage)
                judge.add(entry.judge)
                given_up.update(entry.given_up)
                groups += 1
                yield from entry.rows

        directory = self.directory
        with disk_errors(directory):
            written = tables.write(directory / "rows.parquet", self.record, rows())
            tables.write(directory / "timings.parquet", Timing, timings)
            tables.write(directory / "usage.parquet", GroupUsage, usage, key="key")
            lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in dropped)
            manifest.write_text(directory / "dropped.jsonl", lines)
            content = manifest.finished(
                self.name,
                self.config,
                manifest.of_path(directory / "rows.parquet"),
                files={name: manifest.of_path(directory / name) for name in BESIDE},
                rows=written,
                groups=groups,
                dropped=dict(sorted(reasons.items())),
                given_up=dict(sorted(given_up.items())),
                usage=total.as_json(),
                **({"judge_usage": judge.as_json()} if judge.requests else {}),
                seconds=self._journal.total_seconds(),
                **further,
            )
            content["check"] = manifest.digest(content)
            manifest.write(directory, content)
        return content


async def attempt(group: Group, work: Work) -> Entry:
    """Process one group, and count what it used. Raises DtoError: the configuration is wrong."""
    start = time.perf_counter()
    with metered() as usage, metered("judge") as judge, counting_given_up() as given_up:
        try:
            is_dropped = isinstance(group.rows[0], Dropped)
            result = group.rows[0] if is_dropped else await work(*group.rows)
        except DtoError:
            raise
        except Exception as error:  # one row never ends a run; the last lines of the run count it
            result = Dropped(group.key, "error", f"{type(error).__name__}: {error}")
    results = result if isinstance(result, list) else [result]
    dropped = [row for row in results if isinstance(row, Dropped)]
    timed = [row for row in results if isinstance(row, Timed)]
    plain = [row for row in results if not isinstance(row, Dropped | Timed)]
    seconds = {result.row.id: result.seconds for result in timed}
    return Entry(
        key=group.key,
        rows=[*plain, *(result.row for result in timed)],
        dropped=dropped,
        usage=usage,
        judge=judge,
        given_up=given_up,
        seconds=seconds or {group.key: time.perf_counter() - start},
        wasted={result.row.id: result.wasted for result in timed if result.wasted},
    )


def _failure(entry: Entry) -> str:
    """Why a group failed: its error, or the first reason that one of its rows gives."""
    reasons = (str(getattr(row, "reason", "")) for row in entry.rows)
    details = (row.detail for row in entry.dropped)
    verdicts = (verdict for row in entry.rows for verdict in getattr(row, "verdicts", ()))
    unjudged = (verdict.reason for verdict in verdicts if verdict.verdict == "unjudged")
    return entry.error or next(filter(None, (*reasons, *details, *unjudged)), "a failed request")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
