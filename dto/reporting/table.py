"""One table class with renderers for terminal, page, Markdown and CSV; the tables of arms."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from itertools import takewhile
from math import isfinite
from pathlib import Path
from textwrap import wrap
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from dto.reporting.evaluation import Figures
from dto.runs.manifest import write_text
from dto.settings import SamplingSettings
from dto.statistics import NOTHING, Estimate, shown


@cache
def template(name: str) -> Template:
    """Load a template of this package; it escapes all values."""
    environment = Environment(
        loader=PackageLoader("dto.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["made"] = Markup  # escaped where it was made
    return environment.get_template(name)


def write_json(path: Path, data: Any) -> None:
    """Write dataclasses, dicts and lists as strict JSON; nan and infinity become null."""
    text = json.dumps(without_nan(data), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def without_nan(data: Any) -> Any:
    """Convert data to dicts and lists, with None for every float that is not finite."""
    if is_dataclass(data) and not isinstance(data, type):
        data = asdict(data)
    if isinstance(data, Mapping):
        return {key: without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and not isfinite(data) else data


R = TypeVar("R")
Cell = str | int | float | Estimate | None
MAX_NAME = 22
"""Characters of a name on a terminal if several columns name a row."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table for terminal, page, Markdown and CSV.

    Cells are values. The entry of `formats` for a column formats its numbers and estimates
    (:func:`dto.statistics.shown`; without an entry, integers get thousands separators). None is an
    empty cell. The first `left` columns name the row and are aligned left, the others right. A
    `folded` table opens with a click on the page and is not shown on a terminal. The last column
    of a `wide` table holds text that wraps.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    left: int = 1
    folded: bool = False
    wide: bool = False

    @classmethod
    def of(
        cls,
        title: str,
        rows: Iterable[R],
        columns: Mapping[str, tuple[Callable[[R], Cell], str]],
        **options: Any,
    ) -> Table:
        """Build a table with one line per row; `columns` maps a heading to (cell, format)."""
        cells = tuple(tuple(cell(row) for cell, _ in columns.values()) for row in rows)
        formats = tuple(spec for _, spec in columns.values())
        return cls(title, tuple(columns), cells, formats=formats, **options)

    def cells(self, empty: str = "") -> list[list[str]]:
        """Format all cells; an empty cell becomes `empty`."""
        formats = self.formats or ("",) * len(self.head)
        return [
            [_text(cell, spec, empty) for cell, spec in zip(row, formats, strict=True)]
            for row in self.rows
        ]

    def text(self, width: int = 100) -> str:
        """Format for a terminal: columns two spaces apart, a rule below the headings.

        Columns that do not fit into `width` go into further blocks of similar width, each of which
        repeats the first `left` columns. Text in the last column of a `wide` table wraps. If
        several columns name a row, a long name is cut at its start.
        """
        lines = [list(self.head), *self.cells()]
        if self.left > 1:
            lines = [[*map(_end, line[: self.left]), *line[self.left :]] for line in lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        if self.wide:
            room = max(MAX_NAME, width - sum(widths[:-1]) - 2 * (len(widths) - 1))
            lines = [part for line in lines for part in _wrapped(line, room)]
            widths[-1] = min(widths[-1], room)
        blocks = self._blocks(widths, width)
        tried = (self._blocks(widths, narrower) for narrower in range(width - 1, 0, -1))
        blocks = [blocks, *takewhile(lambda even: len(even) == len(blocks), tried)][-1]
        texts = [self._block(lines, widths, block) for block in blocks]
        return "\n".join([*filter(None, [self.title]), "\n\n".join(texts), *self.notes])

    def _blocks(self, widths: list[int], width: int) -> list[list[int]]:
        """Distribute the columns over blocks of at most `width` characters."""
        blocks = [list(range(self.left))]
        for place in range(self.left, len(widths)):
            used = sum(widths[column] + 2 for column in blocks[-1])
            if used + widths[place] > width and len(blocks[-1]) > self.left:
                blocks.append(list(range(self.left)))
            blocks[-1].append(place)
        return blocks

    def _block(self, lines: list[list[str]], widths: list[int], places: list[int]) -> str:
        flush = self._flush()
        cells = [
            [
                line[place].ljust(widths[place])
                if flush[place]
                else line[place].rjust(widths[place])
                for place in places
            ]
            for line in lines
        ]
        head, *rows = ["  ".join(line).rstrip() for line in cells]
        rule = "─" * (sum(widths[place] for place in places) + 2 * (len(places) - 1))
        return "\n".join([head, rule, *rows])

    def _flush(self) -> list[bool]:
        """Return for each column whether it is aligned left."""
        last = len(self.head) - 1
        return [place < self.left or (self.wide and place == last) for place in range(last + 1)]

    def html(self) -> Markup:
        """Format for a page, escaped; an empty cell is a dash."""
        sides = [Markup(' class="left"' if flush else "") for flush in self._flush()]
        lines = [(line[0], line[1:]) for line in self.cells(empty="–")]
        page = template("table.html.jinja")
        return Markup(page.render(table=self, sides=sides, rows=lines).strip())

    def markdown(self) -> str:
        """Format as Markdown for GitHub and the Hub."""
        lines = [self.head, ["---"] * len(self.head), *self.cells()]
        table = "\n".join(
            f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines
        )
        parts = [f"## {self.title}"] if self.title else []
        return "\n\n".join([*parts, table, *self.notes])

    def csv(self) -> str:
        """Format as CSV with unrounded values; an estimate has three columns."""
        wide = [
            any(isinstance(row[place], Estimate) for row in self.rows)
            for place in range(len(self.head))
        ]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for line in (self.head, *self.rows):
            writer.writerow(
                value
                for cell, three in zip(line, wide, strict=True)
                for value in (_values(cell) if three else [_value(cell)])
            )
        return text.getvalue()


def _text(cell: Cell, spec: str, empty: str) -> str:
    if cell is None or isinstance(cell, str):
        return empty if cell is None else cell
    if isinstance(cell, Estimate):
        return format(cell, spec)
    return format(cell, ",") if isinstance(cell, int) and not spec else shown(cell, spec)


def _value(cell: Cell) -> Any:
    return "" if cell is None or (isinstance(cell, float) and not isfinite(cell)) else cell


def _values(cell: Cell) -> list[Any]:
    """Expand an estimate, or the heading of its column, into value, low and high."""
    if isinstance(cell, Estimate):
        return [_value(cell.value), _value(cell.low), _value(cell.high)]
    return [cell, f"{cell}_low", f"{cell}_high"] if isinstance(cell, str) else ["", "", ""]


def _end(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"


def _wrapped(line: list[str], width: int) -> list[list[str]]:
    """Wrap the last cell of a row over several lines."""
    *others, text = line
    first, *more = wrap(text, width) or [""]
    return [[*others, first], *([*("" for _ in others), part] for part in more)]


def join_counts(counts: Mapping[str, int], between: str = ", ") -> str:
    """Format counts as `3 no_exit, 2 failed`."""
    return between.join(f"{count:,} {name}" for name, count in counts.items())


def _more(name: str) -> Callable[[Figures], Cell]:
    return lambda row: row.more.get(name)


CELLS: Mapping[str, tuple[Callable[[Figures], Cell], str]] = {
    "task": (lambda row: row.task, ""),
    "bin": (lambda row: row.bin, ""),
    "k": (lambda row: str(row.k), ""),
    "model": (lambda row: row.model, ""),
    "exit": (lambda row: row.exit, ""),
    "problems": (lambda row: row.problems, ""),
    "responses": (lambda row: row.responses, ""),
    "accuracy": (lambda row: row.accuracy, "%"),
    "accuracy alone": (lambda row: row.accuracy.value, "%"),
    "gain": (
        lambda row: row.verdict if row.verdict == "too many failed" else row.gain, "+%",
    ),
    "verdict": (lambda row: row.verdict, ""),
    "completed": (_more("completed"), "%"),
    "pass": (_more("pass_at_samples"), "%"),
    "tokens": (lambda row: row.tokens, ",.1f"),
    "tokens alone": (lambda row: row.tokens.value, ",.1f"),
    "ratio": (lambda row: row.ratio, "%"),
    "ratio alone": (lambda row: None if row.ratio is None else row.ratio.value, "%"),
    "trial": (_more("trial_tokens"), ",.1f"),
    "efficiency": (lambda row: row.more["efficiency"].value, ",.2f"),
    "FLOPs": (_more("attention_flops"), ".1e"),
    "p50": (_more("seconds_p50"), ",.2f"),
    "p95": (_more("seconds_p95"), ",.2f"),
    "truncated": (lambda row: row.truncated, ""),
    "failed": (lambda row: row.failed, ""),
}  # fmt: skip
"""Columns that a table of arms can have: name to (cell, format)."""


def arms_table(
    rows: Iterable[Figures], columns: Mapping[str, str], title: str = "", **options: Any
) -> Table:
    """Build a table with one line per arm; `columns` maps a heading to a name in CELLS."""
    return Table.of(title, rows, {head: CELLS[name] for head, name in columns.items()}, **options)


def papers_table(rows: Sequence[Figures], means: Sequence[Figures]) -> Table:
    """Build a table with one line per arm and per task accuracy, tokens and share of base tokens.

    This is the layout of 2504.15895 (table 1) and 2505.21765 (table 1); the share is their
    compression rate. The last columns are the means over tasks.
    """
    tasks = [*dict.fromkeys(row.task for row in rows), *(["average"] if means else [])]
    figures = {(*row.arm, row.task): row for row in rows}
    figures |= {(*row.arm, "average"): row for row in means}
    lines = []
    for arm in dict.fromkeys(row.arm for row in rows):
        line: list[Cell] = [*arm]
        for task in tasks:
            row = figures.get((*arm, task))
            if row is None:
                line += [NOTHING, NOTHING.value, NOTHING.value]
                continue
            ratio = 1.0 if row.verdict == "base" else (row.ratio or NOTHING).value
            line += [row.accuracy, row.tokens.value, ratio]
        lines.append(tuple(line))
    head = [f"{task} {name}" for task in tasks for name in ("accuracy", "tokens", "tokens_ratio")]
    formats = ("", "", *("%", ",.0f", "%") * len(tasks))
    return Table("", ("model", "exit", *head), tuple(lines), formats=formats)


def token_filters(sampling: SamplingSettings) -> str:
    """Format the sampling settings that are on beside temperature and top-p: `, top-k 20`."""
    settings = {
        "top-k": sampling.top_k,
        "min-p": sampling.min_p,
        "presence penalty": sampling.presence_penalty,
    }
    return "".join(f", {name} {value:g}" for name, value in settings.items() if value)
