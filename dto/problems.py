"""Where questions come from: generated chains, a file, or a dataset on the Hub."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from dto.errors import DtoError
from dto.recipe import ProblemSettings
from dto.records import Dropped, Problem, Split

_SPLIT_NAMES: Mapping[str, Split] = {
    "test": "test",
    "dev": "dev",
    "validation": "dev",
    "valid": "dev",
    "train": "train",
}  # in the order in which a question that stands in several is kept
_SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves in a folder
Row = Mapping[str, Any]
Rows = Iterable[Row | Dropped]


def load_problems(
    settings: ProblemSettings, seed: int, taken: Collection[str] = (), *, at_most: bool = False
) -> Iterator[Problem | Dropped]:
    """As many problems of each split as the settings ask for, and what had to be dropped.

    A split comes from the source's own of that name, else from what is left of its train split or
    of its only one. Which rows are taken is decided by the hash of their content, not by their
    order. A question without gold answer is dropped (`no_gold_answer`), so is one that was there
    before or is among those `taken` (`duplicate`): splits never share one, and so is a line that is
    no JSON object (`unreadable_row`). Raises DtoError for a missing file, a missing field, a value
    that is no text, and too few problems, unless they are asked for as `at_most` so many.
    """
    if settings.source == "chains":
        from dto.nano.corpus import chain_problems

        for split in dict.fromkeys(_SPLIT_NAMES.values()):
            wanted: int = getattr(settings, split)
            chains = chain_problems(split, wanted + len(taken), seed)
            yield from islice((row for row in chains if row.question not in taken), wanted)
        return
    sources = {
        name: (settings.source, rows)
        for name, rows in read_source(settings.source, settings.subset, settings.revision).items()
    }
    if settings.test_source:
        rows = [row for part in read_source(settings.test_source).values() for row in part]
        sources["test"] = (settings.test_source, rows)
    pools: dict[Split | None, list[Problem]] = {}
    seen = set(taken)
    order = [*_SPLIT_NAMES, None]
    for name in sorted(sources, key=lambda name: order.index(name) if name in order else -1):
        source, rows_of = sources[name]
        pool = pools.setdefault(_SPLIT_NAMES.get(name or ""), [])
        for number, row in enumerate(rows_of, start=1):
            if isinstance(row, Dropped):
                yield row
                continue
            found = _problem(row, settings, source, f"{source}, row {number}")
            if isinstance(found, Problem):
                if found.question in seen:
                    found = Dropped(found.id, "duplicate", f"{source}, row {number}")
                else:
                    seen.add(found.question)
                    pool.append(found)
            if isinstance(found, Dropped):
                yield found
    yield from _divide(pools, settings, at_most)


def _divide(
    pools: Mapping[Split | None, list[Problem]], settings: ProblemSettings, at_most: bool
) -> Iterator[Problem]:
    left = {name: sorted(pool, key=lambda row: row.id) for name, pool in pools.items()}
    split: Split
    for split in dict.fromkeys(_SPLIT_NAMES.values()):
        wanted: int = getattr(settings, split)
        name = next((each for each in (split, "train", None) if left.get(each)), split)
        rows = left.get(name, [])
        if len(rows) < wanted and not at_most:
            raise DtoError(
                f"problems: {settings.source} has {len(rows):,} usable rows left for {split}, the "
                f"recipe asks for {wanted:,}: lower problems.{split} or name another source"
            )
        yield from (replace(row, split=split) for row in rows[:wanted])
        left[name] = rows[wanted:]


def _problem(row: Row, settings: ProblemSettings, source: str, where: str) -> Problem | Dropped:
    question = text_field(row, settings.question_field, where, "problems.question_field")
    answer = text_field(row, settings.answer_field, where, "problems.answer_field")
    task = settings.task or Path(source).stem
    problem_id = Problem.make_id(task, question, answer)
    if not question or not answer:
        reason = "no_gold_answer" if question else "no_question"
        return Dropped(problem_id, reason, where)
    fields = (settings.question_field, settings.answer_field)
    metadata = {
        key: str(value)
        for key, value in row.items()
        if key not in fields and isinstance(value, str | int | float)
    }
    return Problem(problem_id, task, "train", question, answer, settings.answer_kind, metadata)


def text_field(row: Row, field: str, where: str, setting: str) -> str:
    """The text of a field, stripped; a number as text, nothing as the empty text.

    Raises DtoError, naming the fields there are, when the row has no such field, and when its value
    is neither text nor number.
    """
    if field not in row:
        there = ", ".join(map(str, row))
        raise DtoError(f"{where} has no field {field!r}; there are {there}: set {setting}")
    value = row[field]
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DtoError(
            f"{where}: field {field!r} holds {type(value).__name__}, not text: set {setting}"
        )
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def read_source(
    source: str, subset: str | None = None, revision: str | None = None
) -> dict[str | None, Rows]:
    """The rows of a .jsonl or .parquet file (under None), or of a dataset by split.

    A dataset is one of the Hub, or a folder: a copy of one of the Hub's (data files, with or
    without a card) or what `Dataset.save_to_disk` wrote. A line of a .jsonl file that holds no JSON
    object comes as a row that is dropped. Raises DtoError for what is not there or cannot be read.
    """
    path = Path(source)
    if path.suffix == ".jsonl":
        return {None: _json_lines(path)}
    if path.suffix == ".parquet":
        return {None: _parquet(path)}
    if path.is_file():
        raise DtoError(f"source {source}: expected .jsonl, .parquet, a folder or a Hub dataset")
    if not path.is_dir() and source.startswith((".", "/", "~")):
        raise DtoError(f"source {source} does not exist: check the path")
    import datasets

    saved = path.is_dir() and any((path / name).is_file() for name in _SAVED)
    try:
        loaded = (
            datasets.load_from_disk(source)
            if saved
            else datasets.load_dataset(source, subset, revision=revision)
        )
    except Exception as error:  # datasets raises whatever its file systems and parsers do
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DtoError(f"dataset {source!r} cannot be loaded: {first}") from error
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
        text = line.decode("utf-8-sig")
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg}, column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: {error.reason}") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 10,000 brackets
        raise ValueError(f"cannot be read: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"holds {type(row).__name__}, no object")
    if "\\ud" in text.lower():
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("holds half of a surrogate pair, which is no character") from None
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
