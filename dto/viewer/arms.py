"""The rows of an evaluation by question, read in one pass over its table.

The table is sorted by model and exit, and within these by question. Each model and exit (an arm) is
read on its own, so that only a few rows of each are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from dto import tables
from dto.records import EvaluationRow, Span

WINDOW = 32
"""Rows of an arm that are in memory at a time."""


def question_of(row: EvaluationRow) -> tuple[str, str]:
    """Return the key of a question's rows, in the order of their ids: problem and sample."""
    return row.problem_id, f"{row.sample:03d}"


def arms_of(path: Path, method: str, problem: str) -> Iterator[Iterator[EvaluationRow]]:
    """Yield the rows of each model and exit in a table, which is sorted by them.

    Only problems whose ids start with `problem`. `method` replaces the model's name.
    """
    import pyarrow.parquet as pq

    names = pq.read_table(path, columns=["model", "exit"])
    end = 0
    for _, rows in groupby(zip(*(column.to_pylist() for column in names), strict=True)):
        start, end = end, end + len(list(rows))
        yield _arm(path, Span(start, end), method, problem)


def _arm(path: Path, place: Span, method: str, problem: str) -> Iterator[EvaluationRow]:
    """Yield the rows at a place of an evaluation's table, without token ids."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        present = set(file.schema_arrow.names) - {"token_ids"}
        names = [name for name in tables.schema(EvaluationRow).names if name in present]
        end = 0
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            end += group.num_rows
            row = end - group.num_rows
            if end <= place.start or row >= place.end or not _may_have(group, problem):
                continue
            for batch in file.iter_batches(WINDOW, row_groups=[number], columns=names):
                wanted = batch[max(0, place.start - row) : max(0, place.end - row)]
                row += batch.num_rows
                for values in wanted.to_pylist():
                    values |= {"model": method} if method else {}
                    if values["problem_id"].startswith(problem):
                        yield tables.decode(EvaluationRow, values)


def _may_have(group: Any, problem: str) -> bool:
    """Return whether a row group can have a problem whose id starts like this."""
    for place in range(group.num_columns):
        column = group.column(place)
        if column.path_in_schema == "problem_id" and column.is_stats_set:
            least, most = column.statistics.min, column.statistics.max
            return bool(least[: len(problem)] <= problem <= most[: len(problem)])
    return True
