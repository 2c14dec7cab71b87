"""Tell how the rows of a source are read, and stop where the user has to decide."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from dto.errors import DtoError
from dto.extension import nearest
from dto.records import Dropped
from dto.tags import ThinkTags
from dto.tasks.files import Rows
from dto.tasks.rows import ReadRow, Undecided, read_row, read_sides
from dto.tasks.shapes import SIDES, Columns, find, first_step, is_path
from dto.tasks.task import FieldError, Row

logger = logging.getLogger("dto")

WINDOW = 2000
"""Rows that are looked at before any is imported."""
_SHOWN = 20  # columns in a message


def is_preference(row: Row, columns: Columns) -> bool:
    """Whether a row has two responses to choose between, unless `columns` names the response."""
    return "response" not in columns and all(find(row, side) is not None for side in SIDES)


def survey(rows: Rows, source: str, columns: Columns, tags: ThinkTags) -> bool:
    """Look at the first rows of a source; return whether they are preferences.

    Raises DtoError if several columns of a row can be the same field and differ, if no row has a
    column that `columns` names, and if some rows are preferences and others responses, or
    preferences whose thinking or verdicts `columns` names. A column that is null in the first rows
    of more is logged.
    """
    counts: Counter[bool] = Counter()
    unread: Counter[bool] = Counter()
    names: dict[str, None] = {}
    unseen = dict(columns)
    number = 0
    for number, row in enumerate(islice(rows, WINDOW), start=1):
        if isinstance(row, Dropped):
            continue
        names |= dict.fromkeys(map(str, row))
        unseen = {field: path for field, path in unseen.items() if find(row, path) is None}
        paired = is_preference(row, columns)
        try:
            (read_sides if paired else read_row)(row, tags, columns)
            counts[paired] += 1
        except Undecided as undecided:
            raise DtoError(f"{source}, row {number}: {undecided}") from None
        except FieldError:
            unread[paired] += 1
    for field, path in unseen.items() if names else ():
        if number < WINDOW or not (is_path(path) and first_step(names, path) in names):
            raise no_value(field, path, names)
        logger.info("--map %s=%s: no value in the first %s rows", field, path, f"{WINDOW:,}")
    if counts[True] and counts[False]:
        raise DtoError(
            f"{source}: of the first rows, {counts[True]:,} are preferences (chosen, rejected) and "
            f"{counts[False]:,} are responses: put them into two files, or import the chosen sides "
            "as responses with --map response=chosen"
        )
    paired = counts[True] > 0 or (not counts and unread[True] > unread[False])
    unused = [field for field in columns if paired and field in ("thinking", "correct")]
    if unused:
        raise DtoError(
            f"--map {unused[0]}={columns[unused[0]]}: {source} holds preferences (chosen, "
            f"rejected), which have no column of {unused[0]}: leave it out, or import the chosen "
            "sides as responses with --map response=chosen"
        )
    return paired


def no_value(field: str, path: str, names: Iterable[str]) -> DtoError:
    """The error for a path of `sample.map` where no row has a value."""
    names = list(names)
    wrong = "" if is_path(path) else ", which is no path such as a.b[0] or a[].b"
    return DtoError(
        f"--map {field}={path}{wrong}: no row has a value there{nearest(path, names)}; the "
        f"columns are {', '.join(names[:_SHOWN])}"
    )


class Readings:
    """Counts rows by the way in which they were read."""

    def __init__(self) -> None:
        self._rows: Counter[tuple[tuple[str, str], ...]] = Counter()
        self._responses: dict[str, Counter[int]] = {}
        self._unread: dict[str, dict[str, None]] = {}

    def add(self, row: Row, read: ReadRow) -> None:
        """Count a row."""
        shape = read.fields["shape"]
        self._rows[tuple(read.fields.items())] += 1
        self._responses.setdefault(shape, Counter())[len(read.texts)] += 1
        used = set(_columns(row, read.fields))
        unread = self._unread.setdefault(shape, {})
        if len(unread) < _SHOWN:
            unread |= {str(name): None for name in row if row[name] and str(name) not in used}

    def lines(self) -> Iterator[str]:
        """One line for each shape, and one for each of its fields."""
        shapes = Counter[str]()
        for fields, count in self._rows.items():
            shapes[dict(fields)["shape"]] += count
        for shape, total in shapes.most_common():
            yield f"shape: {shape} ({_rows(total)})"
            ways = {fields: n for fields, n in self._rows.items() if ("shape", shape) in fields}
            for field in ("question", "response", "thinking", "answer", "correct", "finish"):
                counts: Counter[str] = Counter()
                for fields, count in ways.items():
                    if path := dict(fields).get(field):
                        counts[path] += count
                if field in ("correct", "finish") and not counts:
                    continue
                yield f"  {field}: {_sources(counts, total)}{self._each(shape, field)}"
            if self._unread[shape]:
                yield f"  not read: {', '.join(self._unread[shape])}"

    def _each(self, shape: str, field: str) -> str:
        counts = self._responses[shape]
        if field != "response" or max(counts) == 1 or shape == "preferences":
            return ""
        least, most = min(counts), max(counts)
        return f" ({least} each)" if least == most else f" ({least} to {most} each)"


def _columns(row: Row, fields: Mapping[str, str]) -> Iterator[str]:
    """The columns that the fields of a row were read from."""
    for field, place in fields.items():
        path, _, _ = place.partition(" (")
        paths = [place] if place in row else re.split(r" \+ | and ", path)
        yield from (first_step(row, each) for each in paths if field != "shape")


def _sources(counts: Counter[str], total: int) -> str:
    without = total - counts.total()
    if len(counts) == 1 and not without:
        return next(iter(counts))
    parts = [f"{path} ({_rows(count)})" for path, count in counts.most_common()]
    return ", ".join([*parts, f"none ({_rows(without)})"] if parts and without else parts) or "none"


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"
