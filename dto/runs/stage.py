"""What a stage says of itself, and how it is worked through: groups of rows in, a table out.

A new stage is one module with a :class:`Stage` at its end, and a line in `dto.pipeline`; every
other list of stages follows from there.

<stage>/journal           while the stage is under way (dto.runs.journal)
<stage>/rows.parquet      deterministic columns, sorted by id
<stage>/timings.parquet   id, seconds, wasted tokens: what depends on scheduling stands beside
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
"""`work(*rows, ctx)` for one group: gives a record, a Dropped, or a list of records, Dropped and
Timed."""
Needs = Literal["nothing", "tokenizer", "model"]

_DRAWN = ("temperature", "top_p", "top_k", "min_p", "presence_penalty")
SAMPLING = tuple(f"sample.{key}" for key in _DRAWN)
"""Settings of everything that imitates the policy."""
ANSWERING = tuple(f"evaluate.{key}" for key in ("samples", "max_tokens", *_DRAWN))
"""Settings of everything that answers as `evaluate` does."""
RENDERING = (
    "model.name", "model.revision", "model.tokenizer", "model.family", "model.system",
    "model.template", "model.think",
)  # fmt: skip
"""What decides how a message is rendered, and where a response thinks."""


class Group(NamedTuple):
    """The rows that are worked on together, and the key under which their result is kept.

    A group of one Dropped is that row's end: no work is done for it.
    """

    key: str
    rows: tuple[Any, ...]


class Timed(NamedTuple):
    """A row for the table, and beside it what depends on scheduling.

    `seconds` run from the request to the grade, under whatever load the engine has. `wasted` counts
    tokens that were generated for the row and are not in it, aborted requests included (where an
    abort races with a step, at most one token too many for each).
    """

    row: Any
    seconds: float
    wasted: int = 0


class Card(NamedTuple):
    """How a stage's table is published: a config of the run's dataset on the Hub.

    Without a `split` the rows have one of their own, and the config a file for each of them.
    """

    place: int  # in the card; the lowest that a run has is what `load_dataset` gives unasked
    config: str
    split: str
    about: str


def always(*values: str) -> Callable[[Recipe], tuple[str, ...]]:
    """The same for every recipe."""
    return lambda recipe: values


def responses(recipe: Recipe) -> str:
    """How many responses a run samples, in words."""
    if recipe.sample.imported:
        return "imported"
    return f"{recipe.problems.train * recipe.sample.samples:,}"


def never(recipe: Recipe) -> bool:
    """For no recipe."""
    return False


async def _no_work(*rows: Any) -> None:
    """Of a stage that works whole."""


_BASE, _NOTHING = always("base"), always()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage of a run: groups of rows go in, a table comes out; or it works as a whole.

    `reads` are the stages whose tables it reads (those upstream of them are implied). `settings`
    are the keys that decide its rows, beside `seed`; one that ends in a dot is a whole group.
    Settings that a stage before it reads need not be named: that stage's digest changes with them,
    and its own with that. `files` name files and folders
    whose content decides too. `groups` are read off the event loop; for a stage without a model
    `ctx` has no engine.

    Every group goes through `work`. A stage that works `whole` has neither groups nor work: it is
    given the run's directory, its recipe and whether programs may be run, once every engine is
    closed, and returns what its manifest is to say.
    """

    name: str
    about: str
    """What `dto --help` says."""
    amount: Callable[[Recipe], str]
    """How much it does, for the plan."""
    reads: Callable[[Recipe], tuple[str, ...]]
    settings: Callable[[Recipe], tuple[str, ...]]
    record: type[Any] = NoneType
    """A row of its table."""
    groups: Callable[[RunReader, Context], Iterator[Group]] = lambda run, ctx: iter(())
    work: Work = _no_work
    whole: Callable[[Path, Recipe, bool], dict[str, Any]] | None = None
    total: Callable[[RunReader], int | None] = lambda run: None
    """How many groups there are, for the progress bar."""
    needs: Needs = "model"
    models: Callable[[Recipe], tuple[str, ...]] = _BASE
    """The models that it asks in turn: `base`, `trained`, or names of others."""
    asks_model: Callable[[Recipe], bool] | None = None
    """Whether the model's settings and weights decide its rows; None: as it needs one."""
    renders: bool = False
    """Whether prompts decide its rows though no model does."""
    asks_judge: Callable[[Recipe], bool] = never
    """Whether a judge of its own decides its rows."""
    check: Callable[[Context], None] | None = None
    """Refuse, before any work, what the engine cannot do."""
    files: Callable[[Recipe], tuple[str, ...]] = _NOTHING
    window: int | None = None
    """Groups under way at once; None: `window` of the recipe."""
    spends: bool = True
    """Whether what it takes is a cost of optimizing and training."""
    step: bool = True
    """Whether `dto run` goes through it and it has a command of its own."""
    card: Card | None = None
    paper: str = ""
    """The arXiv id of the paper whose step it is."""
    width: Callable[[Recipe], int] = lambda recipe: 1
    """How many requests it makes together for one row."""
    of_method: bool = False
    """Whether a method of a comparison may have settings of its own for it."""

    def decided_by_model(self, recipe: Recipe) -> bool:
        """Whether the model's settings and weights decide its rows."""
        return self.needs == "model" if self.asks_model is None else self.asks_model(recipe)


READ_AHEAD = 32
"""Groups read at once: it is done off the event loop, and a round trip costs more than a row."""
HOPELESS = 20
"""When none of the requests of so many groups in a row came back, the stage stops; also when the
first so many groups all end in an error."""
MAX_FAILED_REQUESTS = 0.05
"""A stage of whose requests a larger share failed is not finished: those groups stay owed."""


class Runner:
    """A stage under way. `config` is everything it is computed from, upstream digests included.

    A context manager: inside, `feed` works through groups (as often as there are engines to do it
    with), then `finish` writes the table. Leaving it early keeps what was computed.
    """

    def __init__(self, directory: Path, record: type[Any], config: Mapping[str, Any]) -> None:
        self.directory = directory
        self.record = record
        self.config = dict(config)
        self._in_vain = 0  # groups in a row
        self._unjudged = 0  # groups in a row, of those that asked a judge
        self._failure = ""

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.directory.name

    def __enter__(self) -> Runner:
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
        raises one (a mistake in the set-up, not in a row), when the disk is full, when the first
        groups all end in errors, and when many in a row get no answer from the engine. What failed
        is owed again.
        """
        from tqdm import tqdm  # reads TQDM_DISABLE, which the command line sets, when imported

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

    def _count(self, entry: Entry) -> None:
        if entry.owed:
            self._failure = _failure(entry)
        self._in_vain = self._in_vain + 1 if entry.in_vain else 0
        if self._in_vain >= HOPELESS and (entry.usage.failed or not self._journal.done):
            raise self._failed(f"{self._in_vain} groups in a row")
        if asked := entry.judge.requests:
            self._unjudged = self._unjudged + 1 if entry.judge.failed == asked else 0
        if self._unjudged >= HOPELESS:
            raise self._failed(f"the judge's requests for {self._unjudged} groups in a row")

    def _failed(self, what: str) -> DtoError:
        return DtoError(
            f"stage {self.name}: {what} failed, the last with {self._failure}; what was computed "
            "is kept, the same command tries again what failed"
        )

    async def finish(self) -> dict[str, Any]:
        """Write the table, what stands beside it, and the manifest last; returns the manifest."""
        if self._in_vain and not self._journal.done:
            raise self._failed(f"all {self._in_vain} groups")
        asked, failed = self._journal.requests()
        if failed > MAX_FAILED_REQUESTS * asked:
            raise self._failed(f"{failed:,} of {asked:,} requests")
        asked, failed = self._journal.requests("judge")
        if 0 < asked == failed:  # where some came back, the others' rows are whole, but unjudged
            raise self._failed(f"all {asked:,} requests to the judge")
        return await asyncio.to_thread(self._write)

    def _write(self) -> dict[str, Any]:
        dropped: list[Dropped] = []
        timings: list[Timing] = []
        usage: dict[str, Usage] = {}
        judge = Usage()
        given_up: Counter[str] = Counter()

        def rows() -> Iterator[Any]:
            for entry in read_entries(self._journal.path, self.record):
                dropped.extend(entry.dropped)
                timings.extend(
                    Timing(id, took, entry.wasted.get(id, 0)) for id, took in entry.seconds.items()
                )
                usage[entry.key] = entry.usage
                judge.add(entry.judge)
                given_up.update(entry.given_up)
                yield from entry.rows

        directory = self.directory
        with disk_errors(directory):
            written = tables.write(directory / "rows.parquet", self.record, rows())
            timings.sort(key=lambda timing: timing.id)
            tables.write(directory / "timings.parquet", Timing, timings)
            groups = (GroupUsage(key, **asdict(each)) for key, each in usage.items())
            tables.write(directory / "usage.parquet", GroupUsage, groups, key="key")
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
                manifest.of_path(directory / "rows.parquet"),
                rows=written,
                groups=len(usage),
                dropped=dict(sorted(Counter(each.reason for each in dropped).items())),
                given_up=dict(sorted(given_up.items())),
                usage=total.as_json(),
                **({"judge_usage": judge.as_json()} if judge.requests else {}),
                seconds=self._journal.total_seconds(),
            )
            manifest.write(directory, done)
        return done


async def _attempt(group: Group, work: Work) -> Entry:
    begun = time.perf_counter()
    with metered() as usage, metered("judge") as judge, counting_given_up() as given_up:
        try:
            ended = isinstance(group.rows[0], Dropped)
            result = group.rows[0] if ended else await work(*group.rows)
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
        judge=judge,
        given_up=given_up,
        seconds=seconds or {group.key: time.perf_counter() - begun},
        wasted={each.row.id: each.wasted for each in timed if each.wasted},
    )


def _failure(entry: Entry) -> str:
    """Why a group failed, in the words of its error or of its rows."""
    reasons = (str(getattr(row, "reason", "")) for row in entry.rows)
    details = (each.detail for each in entry.dropped)
    verdicts = (each for row in entry.rows for each in getattr(row, "verdicts", ()))
    unjudged = (each.reason for each in verdicts if each.verdict == "unjudged")
    return entry.error or next(filter(None, (*reasons, *details, *unjudged)), "a failed request")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
