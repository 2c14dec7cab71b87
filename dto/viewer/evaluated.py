"""The answers of an evaluation, or of a comparison's methods, question by question.

Tables have them by model and exit: each such arm is a stream of its own, and the streams are
merged, a row group of each in memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any

from dto import tables
from dto.records import EvaluationRow
from dto.runs.journal import read_entries


def question(row: EvaluationRow) -> tuple[str, int]:
    """What rows are put together by: problem and sample."""
    return row.problem_id, row.sample


def compared(run: Path) -> list[tuple[str, Path]]:
    """The tables of a comparison's methods with their names (`dto.compare.compare`)."""
    found = sorted(run.glob("compare/*/evaluate/rows.parquet"))
    return [(path.parents[1].name, path) for path in found]


def unfinished(run: Path, methods: Iterable[str]) -> list[str]:
    """The folders of a comparison's methods that have no answers yet, the base model's first."""
    from dto.compare.methods import BASE, label

    names = [BASE, *map(label, methods)]
    done = {name for name, _ in compared(run)}
    return [f"compare/{name}" for name in names if name not in done]


def find_compared(run: Path, problem_id: str) -> list[EvaluationRow]:
    """All answers of a comparison to one problem; the method stands for the model."""
    return [
        replace(row, model=label)
        for label, path in compared(run)
        for row in tables.find(path, EvaluationRow, "problem_id", problem_id)
    ]


def by_question(named: Iterable[tuple[str, Path]]) -> Iterator[EvaluationRow]:
    """The rows of tables by problem and sample; a table's name, if any, stands for the model."""
    import polars as pl

    streams: list[Iterator[EvaluationRow]] = []
    for label, path in named:
        frame = pl.scan_parquet(path)
        arms = frame.select(pl.struct("model", "exit").rle().alias("arm")).collect()
        ends = [0, *accumulate(arms["arm"].struct.field("len").to_list())]
        streams += [_slices(frame, label, start, end) for start, end in pairwise(ends)]
    yield from heapq.merge(*streams, key=question)


def under_way(journal: Path) -> Iterator[EvaluationRow]:
    """The rows that a journal has so far, by problem and sample."""
    entries = read_entries(journal, EvaluationRow, lambda key: key.split("/")[::-1])
    for _, same in groupby(entries, key=lambda entry: entry.key.rpartition("/")[2]):
        yield from sorted((row for each in same for row in each.rows), key=question)


def _slices(frame: Any, label: str, start: int, end: int) -> Iterator[EvaluationRow]:
    build = tables.adapter(EvaluationRow).validate_python
    for place in range(start, end, tables.ROW_GROUP):
        block = frame.slice(place, min(tables.ROW_GROUP, end - place)).collect()
        for row in block.iter_rows(named=True):
            yield build(row | {"model": label or row["model"]})
