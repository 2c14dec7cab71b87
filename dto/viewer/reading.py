"""How a stage of a run is read, whether it is finished or under way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dto.records import Dropped, Problem
from dto.runs.journal import read_entries


class ById:
    """Problems by ascending id, one in memory at a time."""

    def __init__(self, problems: Iterator[Problem]) -> None:
        self._rest = problems
        self._head = next(problems, None)

    def __call__(self, problem_id: str) -> Problem | None:
        """The problem, if it is there."""
        while self._head is not None and self._head.id < problem_id:
            self._head = next(self._rest, None)
        return self._head if self._head is not None and self._head.id == problem_id else None


def state(directory: Path) -> str:
    """How far a stage is: `finished` with its table, `under way` with a journal, else empty."""
    if (directory / "rows.parquet").is_file():
        return "finished"
    return "under way" if (directory / "journal").is_file() else ""


def dropped(directory: Path, state: str) -> Iterator[Dropped]:
    """The rows that end at a stage of this state."""
    if state == "under way":
        for entry in read_entries(directory / "journal", None):
            yield from entry.dropped
        return
    path = directory / "dropped.jsonl"
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield Dropped(**json.loads(line))
