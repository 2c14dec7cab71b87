"""Where questions come from: generated chains, a file, or a dataset on the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
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
Row = Mapping[str, Any]
Rows = Iterable[Row]


def load_problems(settings: ProblemSettings, seed: int) -> Iterator[Problem | Dropped]:
    """As many problems of each split as the settings ask for, and what had to be dropped.

    A split comes from the source's own of that name, else from what is left of its train split or
    of its only one. Which rows are taken is decided by the hash of their content, not by their
    order. A question without gold answer is dropped (`no_gold_answer`), and so is one that was
    there before (`duplicate`): splits never share one. Raises DtoError for a missing file, a
    missing field, a value that is no text, and too few problems.
    """
    if settings.source == "chains":
        from dto.nano.corpus import chain_problems

        for split in dict.fromkeys(_SPLIT_NAMES.values()):
            yield from chain_problems(split, getattr(settings, split), seed)
        return
    sources = {
        name: (settings.source, rows)
        for name, rows in read_source(settings.source, settings.subset, settings.revision).items()
    }
    if settings.test_source:
        rows = [row for part in read_source(settings.test_source).values() for row in part]
        sources["test"] = (settings.test_source, rows)
    pools: dict[Split | None, list[Problem]] = {}
    seen: set[str] = set()
    order = [*_SPLIT_NAMES, None]
    for name in sorted(sources, key=lambda name: order.index(name) if name in order else -1):
        source, rows_of = sources[name]
        pool = pools.setdefault(_SPLIT_NAMES.get(name or ""), [])
        for number, row in enumerate(rows_of, start=1):
            found = _problem(row, settings, source, f"{source}, row {number}")
            if isinstance(found, Problem):
                if found.question in seen:
                    found = Dropped(found.id, "duplicate", f"{source}, row {number}")
                else:
                    seen.add(found.question)
                    pool.append(found)
            if isinstance(found, Dropped):
                yield found
    yield from _divide(pools, settings)


def _divide(
    pools: Mapping[Split | None, list[Problem]], settings: ProblemSettings
) -> Iterator[Problem]:
    left = {name: sorted(pool, key=lambda row: row.id) for name, pool in pools.items()}
    split: Split
    for split in dict.fromkeys(_SPLIT_NAMES.values()):
        wanted: int = getattr(settings, split)
        name = next((each for each in (split, "train", None) if left.get(each)), split)
        rows = left.get(name, [])
        if len(rows) < wanted:
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
    """The rows of a .jsonl or .parquet file (under None), or of a Hub dataset by split.

    Raises DtoError for what is not there or cannot be read.
    """
    path = Path(source)
    if path.suffix == ".jsonl":
        return {None: _json_lines(path)}
    if path.suffix == ".parquet":
        return {None: _parquet(path)}
    if path.exists() or source.startswith((".", "/")):
        raise DtoError(f"source {source}: expected a .jsonl or .parquet file or a Hub dataset")
    import datasets

    try:
        loaded = datasets.load_dataset(source, subset, revision=revision)
    except Exception as error:  # datasets raises whatever its file systems and parsers do
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DtoError(f"dataset {source!r} cannot be loaded from the Hub: {first}") from error
    return {str(split): rows for split, rows in loaded.items()}


def _json_lines(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DtoError(f"{path}, line {number} holds {type(row).__name__}, no object")
                yield row
    except FileNotFoundError:
        raise DtoError(f"file {path} does not exist: check the path") from None
    except json.JSONDecodeError as error:
        raise DtoError(f"{path}, line {number} is not JSON: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DtoError(f"file {path} cannot be read: {error}") from None


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
