"""Where questions come from, generated chains, a task, a file or a dataset on the Hub; and overlap.

Whether two sets share questions is told by word n-grams, as GPT-3 was decontaminated (2005.14165,
appendix C: 13-grams). Departs from it: questions are reported, not cut, and n-grams are not left
out for being frequent: a phrase that contests repeat ("where m and n are relatively prime …") is
found too, and told from a copy by how little of the question it is. A question of fewer than n
words overlaps with its equal alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from heapq import nsmallest
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dto.errors import DtoError
from dto.extension import nearest
from dto.grading.grader import unreadable_golds
from dto.recipe import ProblemSettings
from dto.records import Dropped, Problem, Split, content_id
from dto.source import Source
from dto.tasks import TASKS
from dto.tasks.task import PROMPTS, FieldError, Row, Task, text

_SPLIT_NAMES: Mapping[str, Split] = {
    "test": "test",
    "dev": "dev",
    "validation": "dev",
    "valid": "dev",
    "train": "train",
}
_ORDER: tuple[Split | None, ...] = ("test", "dev", "train", None)
"""In which a question that stands in several splits is kept; None: rows of no split."""
_SLACK = 4096
"""Problems of a pool beyond those asked for: they stand in for gold answers that are unreadable."""
NEAR = 0.5
"""Share of the 13-grams of the shorter of two questions by which one is a near copy."""
NEAR_DUPLICATE = "near_duplicate"
_SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves in a folder
Rows = Iterable[Row | Dropped]

WORDS = 13
_WORD = re.compile(r"[\u3400-\u9fff]|(?:(?![\u3400-\u9fff])[^\W_])+")
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that powers of it modulo 2⁶⁴ never vanish

Grams = npt.NDArray[np.uint64]


class Found(NamedTuple):
    """A row of a source as a problem, or why it is none; `where` names the source and the row."""

    split: Split | None
    where: str
    row: Problem | Dropped


def load_problems(
    settings: ProblemSettings, seed: int, taken: Collection[Problem] = (), *, at_most: bool = False
) -> Iterator[Problem | Dropped]:
    """As many problems of each split as the settings ask for, and what had to be dropped.

    A split comes from the source's own of that name, else from what is left of its train split or
    of its only one. Which rows are taken is decided by the hash of their content, not by their
    order. A question that was there before or is among those `taken` is dropped (`duplicate`):
    splits never share one, nor one that differs in case and white space alone; so are the rows that
    `read_problems` cannot read, and of the chosen ones those that no answer can be compared with
    (`unreadable_gold`): the next one comes instead. A question that repeats half or more of one of
    another split, or of one that is `taken` (`dto.tasks.load`), says so in its metadata
    (`near_duplicate`), or is dropped where the settings want that; test problems are chosen first,
    then those of dev. Generated chains are not compared: all are alike, and none is in two splits.
    Raises DtoError as `read_problems` does, and for too few problems, unless they are asked for as
    `at_most` so many.
    """
    if settings.source == "chains":
        from dto.nano import chain_problems

        asked = {row.question for row in taken}
        for split in dict.fromkeys(_SPLIT_NAMES.values()):
            wanted: int = getattr(settings, split)
            chains = chain_problems(split, wanted + len(asked), seed)
            yield from islice((row for row in chains if row.question not in asked), wanted)
        return
    pools: dict[Split | None, list[Problem]] = {}
    most = settings.train + settings.dev + settings.test  # of one pool: the first by their ids
    seen = {same_as(row.question) for row in taken}
    for source_split, where, found in read_problems(settings):
        if isinstance(found, Dropped):
            yield found
        elif (key := same_as(found.question)) in seen:
            yield Dropped(found.id, "duplicate", where)
        else:
            seen.add(key)
            pool = pools.setdefault(source_split, [])
            pool.append(found)
            if len(pool) > most + 2 * _SLACK:
                pool[:] = nsmallest(most + _SLACK, pool, key=_by_id)
    yield from _divide(pools, settings, taken, at_most)


def read_problems(settings: ProblemSettings) -> Iterator[Found]:
    """Every row of the sources that the settings name: test, dev, train, then those of no split.

    A row without gold answer is dropped (`no_gold_answer`), so is one without question
    (`no_question`), one whose fields are not what the task has there (`missing_field`,
    `wrong_type`, `bad_options`), and a line that is no JSON object (`unreadable_row`). Raises
    DtoError for a source that is not there or cannot be read, and where the first row lacks a
    field or holds something else in it: then the settings are wrong, not the row.
    """
    if settings.source == "chains":
        raise DtoError("chains are generated: there are no rows to read, name another source")
    parts = _parts(settings.source, settings)
    if settings.test_source:
        others = _parts(settings.test_source, settings)
        tests = [part for part in others if part.split == "test"] or others
        parts = [part for part in parts if part.split != "test"]
        parts += [part._replace(split="test") for part in tests]
    for split, place, task, plain, rows in sorted(parts, key=lambda part: _ORDER.index(part.split)):
        first = True
        for number, row in enumerate(rows, start=1):
            where = f"{place}, row {number}"
            if isinstance(row, Dropped):
                yield Found(split, row.detail, row)
                continue
            try:
                problem = (plain if plain and _is_plain(row, task) else task).read(row)
            except FieldError as error:
                if first and error.reason != "bad_options":
                    key = "question" if error.field == task.question else "answer"
                    raise DtoError(f"{where} {error}: set problems.{key}_field") from None
                row_id = Problem.make_id(task.name, where, str(error))
                yield Found(split, where, Dropped(row_id, error.reason, f"{where} {error}"))
                continue
            first = False
            if problem.question and problem.answer:
                yield Found(split, where, problem)
            else:
                reason = "no_gold_answer" if problem.question else "no_question"
                yield Found(split, where, Dropped(problem.id, reason, where))


class _Part(NamedTuple):
    """Rows of one split that are not read yet, with the task that reads them.

    `place` is what people know them by; `plain` reads the rows of a local file that has a task's
    questions under `problem` and `answer`.
    """

    split: Split | None
    place: str
    task: Task
    plain: Task | None
    rows: Rows


def _parts(source: str, settings: ProblemSettings) -> list[_Part]:
    task = _task_of(source, settings)
    fields_are_set = settings.question_field or settings.answer_field
    plain = (
        replace(task, question="problem", answer="answer", gold=text)
        if source not in TASKS and task.rule == "math" and not fields_are_set
        else None
    )
    parts, names = [], []
    for subset in task.subsets:
        place = Source.parse(task.hub, subset=subset, revision=task.revision)
        for name, rows in read_source(place).items():
            names.append(str(name))
            within = ", ".join(part for part in (subset, name) if part)
            where = f"{task.hub} ({within})" if within else task.hub
            if name is None or not task.splits:
                parts.append(_Part(_SPLIT_NAMES.get(name or ""), where, task, plain, rows))
            elif name in task.splits:
                parts.append(_Part(task.splits[name], where, task, plain, rows))
    if not parts:
        wanted, there = ", ".join(task.splits), ", ".join(dict.fromkeys(names))
        raise DtoError(f"{task.hub} has no split {wanted}, as {task.name} wants; there are {there}")
    return parts


def _task_of(source: str, settings: ProblemSettings) -> Task:
    """The task that a source is, or is read as, with what the settings say of it."""
    named, own = TASKS.get(source), source == settings.source
    if named is not None and not own:
        return named
    task = named or TASKS.get(settings.task or "") or Task(Path(source).stem, source)
    if named is None:
        task = replace(task, hub=source, subsets=(None,), revision=None)
    if own:
        subsets = task.subsets if settings.subset is None else (settings.subset,)
        revision = settings.revision or task.revision
        task = replace(task, subsets=subsets, revision=revision)
    return replace(
        task,
        name=settings.task or task.name,
        question=settings.question_field or task.question,
        answer=settings.answer_field or task.answer,
        rule=settings.rule or task.rule,
        prompt=settings.prompt or task.prompt,
    )


def prompt_of(settings: ProblemSettings) -> str:
    """The name of the prompt that asks the questions of `settings.source`."""
    task = _task_of(settings.source, settings)
    return task.prompt or PROMPTS[task.rule]


def _is_plain(row: Row, task: Task) -> bool:
    own, plain = {task.question, task.answer}, {"problem", "answer"}
    return plain <= row.keys() and not own <= row.keys()


def _by_id(problem: Problem) -> str:
    return problem.id


def _divide(
    pools: Mapping[Split | None, list[Problem]],
    settings: ProblemSettings,
    taken: Collection[Problem],
    at_most: bool,
) -> Iterator[Problem | Dropped]:
    others = Index()
    for row in taken:
        others.add(row.id, row.question)
    left = {name: sorted(pool, key=_by_id) for name, pool in pools.items()}
    split: Split
    for split in dict.fromkeys(_SPLIT_NAMES.values()):
        wanted: int = getattr(settings, split)
        name = next((each for each in (split, "train", None) if left.get(each)), split)
        rows, left[name] = left.get(name, []), []
        chosen: list[Problem] = []
        while rows and len(chosen) < wanted:
            missing = wanted - len(chosen)
            block, rows = rows[:missing], rows[missing:]
            faults = unreadable_golds(block)
            yield from faults.values()
            for row in block:
                if row.id in faults:
                    continue
                row = replace(row, split=split)
                hit = others.find(row.question)
                if hit is not None and hit.share >= NEAR:
                    copied = f"{hit.share:.0%} of {hit.where}"
                    if settings.near_duplicates == "drop":
                        yield Dropped(row.id, NEAR_DUPLICATE, copied)
                        continue
                    row = replace(row, metadata={**row.metadata, NEAR_DUPLICATE: copied})
                chosen.append(row)
        left[name] = rows
        if len(chosen) < wanted and not at_most:
            raise DtoError(
                f"problems: {settings.source} has {len(chosen):,} usable rows left for {split}, "
                f"the recipe asks for {wanted:,}: lower problems.{split} or name another source"
            )
        yield from chosen
        for row in chosen:
            others.add(row.id, row.question)


def read_source(source: Source) -> dict[str | None, Rows]:
    """The rows of a .jsonl or .parquet file (under None), or of a dataset by split.

    A dataset is one of the Hub, or a folder: a copy of one of the Hub's (data files, with or
    without a card) or what `Dataset.save_to_disk` wrote. A line of a .jsonl file that holds no JSON
    object comes as a row that is dropped. Raises DtoError for what is not there or cannot be read.
    """
    name, path = source.name, Path(source.name)
    if source.kind == "file" and path.suffix == ".jsonl":
        return {None: _json_lines(path)}
    if source.kind == "file" and path.suffix == ".parquet":
        return {None: _parquet(path)}
    if source.kind == "file":
        raise DtoError(f"source {name}: expected .jsonl, .parquet, a folder or a Hub dataset")
    if source.kind == "folder" and not path.is_dir():
        raise DtoError(f"source {name} does not exist: check the path")
    import datasets

    saved = path.is_dir() and any((path / name).is_file() for name in _SAVED)
    try:
        loaded = (
            datasets.load_from_disk(name)
            if saved
            else datasets.load_dataset(name, source.subset, revision=source.revision)
        )
    except Exception as error:  # datasets raises whatever its file systems and parsers do
        lines = str(error).strip().splitlines() or [type(error).__name__]
        several = lines[0].startswith("Config name is missing") and lines[1:]
        first = " ".join(lines[:2]) if several else lines[0]
        meant = nearest(name, TASKS)
        hint = f"; no task has that name{meant}, `dto tasks list` shows them" if meant else ""
        raise DtoError(f"dataset {name!r} cannot be loaded: {first}{hint}") from error
    if isinstance(loaded, datasets.Dataset):
        return {None: loaded}
    return {str(split): rows for split, rows in loaded.items()}


def _json_lines(path: Path) -> Iterator[Row | Dropped]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    yield _json_object(line)
                except ValueError as error:
                    detail = f"{where} {error}"
                    yield Dropped(f"line/{number:08d}", "unreadable_row", detail)
    except FileNotFoundError:
        raise DtoError(f"file {path} does not exist: check the path") from None
    except OSError as error:
        raise DtoError(f"file {path} cannot be read: {error}") from None


def _json_object(line: bytes) -> Row:
    """Raises ValueError, saying what the line is instead."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if b"\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be read: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"holds {type(row).__name__}, no object")
    return row


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DtoError(f"file {path} does not exist: check the path")
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise DtoError(f"file {path} cannot be read: {error}") from None


class Hit(NamedTuple):
    """The row that shares most n-grams with a question, and the first of those.

    `share` is that of the shorter of the two, so that a question that is part of another has 1.
    """

    where: str
    share: float
    phrase: str


def normalised(text: str) -> str:
    """Equal for texts that differ in case, white space and compatibility characters alone."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def same_as(text: str) -> str:
    """A key that questions share which are equal when normalised."""
    return content_id(normalised(text))


def words(text: str) -> list[str]:
    """Runs of letters and digits, and Chinese characters one by one; signs and marks are gaps."""
    return _WORD.findall(normalised(text))


def grams(text: str, n: int = WORDS) -> Grams:
    """One hash of 64 bits for each n-gram, in order; for a shorter text one of all of it."""
    found = words(text)
    if len(found) < n:
        return np.array([_code(normalised(text))], dtype=np.uint64)
    codes = np.array([_code(word) for word in found], dtype=np.uint64)
    powers = np.array([pow(_FACTOR, place + 1, 2**64) for place in range(n)], dtype=np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(codes, n)
    return np.asarray((windows * powers).sum(axis=1, dtype=np.uint64))


@lru_cache(2**16)  # most words are met again and again
def _code(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class Index:
    """The n-grams of a set of questions, 12 bytes each."""

    def __init__(self, n: int = WORDS) -> None:
        self.n = n
        self._where: list[str] = []
        self._sizes: list[int] = []
        self._added: list[Grams] = []
        self._grams: Grams = np.empty(0, dtype=np.uint64)
        self._rows: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)

    def add(self, where: str, text: str) -> None:
        """Take a question in; `where` is what a hit calls it."""
        own = grams(text, self.n)
        self._where.append(where)
        self._sizes.append(len(own))
        self._added.append(np.unique(own))  # a phrase may come twice in one

    def find(self, text: str) -> Hit | None:
        """What a question shares with those in the index."""
        if self._added:
            self._sort()
        if not len(self._grams):
            return None
        own = grams(text, self.n)
        starts = np.searchsorted(self._grams, own, "left")
        ends = np.searchsorted(self._grams, own, "right")
        at = np.flatnonzero(ends > starts)
        if not len(at):
            return None
        holders = [self._rows[starts[each] : ends[each]] for each in at]
        shared = np.bincount(np.concatenate(holders))
        sizes = np.minimum(len(own), np.asarray(self._sizes[: len(shared)]))
        row = int(np.argmax(shared / np.maximum(1, sizes)))
        first = next(int(each) for each, held in zip(at, holders, strict=True) if row in held)
        share = min(1.0, int(shared[row]) / min(len(own), self._sizes[row]))
        phrase = " ".join(words(text)[first : first + self.n])
        return Hit(self._where[row], share, phrase)

    def _sort(self) -> None:
        added = range(len(self._where) - len(self._added), len(self._where))
        rows = np.repeat(np.array(added, dtype=np.int32), [len(each) for each in self._added])
        every = np.concatenate([self._grams, *self._added])
        rows = np.concatenate([self._rows, rows])
        order = np.argsort(every, kind="stable")
        self._grams, self._rows, self._added = every[order], rows[order], []
