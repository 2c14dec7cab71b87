"""Tables: one class with its renderers, and the tables of the figures of arms.

The files `tables.md` and `tables.csv` are laid out as in 2504.15895 (table 1) and 2505.21765
(table 1): one row for each model under each exit; for each task accuracy, tokens and tokens in % of
the base's (the papers' compression rate), in the last columns their mean over tasks.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup

from dto.reporting.evaluation import MAX_FAILED, Figures
from dto.runs.manifest import write_text
from dto.statistics import NOTHING, Estimate, shown


def write_json(path: Path, data: Any) -> None:
    """Write dataclasses, dicts and lists as strict JSON: a figure without value is null."""
    text = json.dumps(without_nan(data), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def without_nan(data: Any) -> Any:
    """The same data as dicts and lists, with None for every float that is not finite."""
    if is_dataclass(data) and not isinstance(data, type):
        data = asdict(data)
    if isinstance(data, Mapping):
        return {key: without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and not isfinite(data) else data


R = TypeVar("R")
Cell = str | int | float | Estimate | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table for terminal, page, Markdown and CSV.

    Cells are values; a number or an estimate is shown by its column's entry of `formats`
    (:func:`dto.statistics.shown`; integers with separators of thousands without one), and None is
    an empty cell. The first `left` columns are flush left, the others flush right. On a page a
    `folded` table is shown on demand under its title, and the last column of a `wide` one holds
    text that wraps.
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
        """A line a row; `columns` has by head the cell of a row and how it is shown."""
        cells = tuple(tuple(cell(row) for cell, _ in columns.values()) for row in rows)
        formats = tuple(spec for _, spec in columns.values())
        return cls(title, tuple(columns), cells, formats=formats, **options)

    def cells(self, empty: str = "") -> list[list[str]]:
        """The rows as text, `empty` where there is nothing."""
        formats = self.formats or ("",) * len(self.head)
        return [
            [_text(cell, spec, empty) for cell, spec in zip(row, formats, strict=True)]
            for row in self.rows
        ]

    def text(self) -> str:
        """For a terminal: columns two spaces apart, a rule below the head."""
        lines = aligned([self.head, *self.cells()], self.left)
        return "\n".join([*filter(None, [self.title]), *lines, *self.notes])

    def html(self) -> Markup:
        """For a page, escaped; a dash where there is nothing."""
        left = [place < self.left for place in range(len(self.head))]
        left[-1] = left[-1] or self.wide
        sides = [Markup(' class="left"' if flush else "") for flush in left]
        head = Markup().join(
            Markup('<th scope="col"{}>{}</th>').format(side, name)
            for side, name in zip(sides, self.head, strict=True)
        )
        lines = [
            Markup('<div class="scroll" tabindex="0" role="region" aria-label="{}">').format(
                self.title or ", ".join(self.head)
            ),
            Markup('<table class="wide">' if self.wide else "<table>"),
            Markup("<thead><tr>{}</tr></thead>").format(head),
            Markup("<tbody>"),
        ]
        if self.title and not self.folded:
            lines.insert(2, Markup("<caption>{}</caption>").format(self.title))
        for first, *others in self.cells(empty="–"):
            cells = [Markup('<th scope="row" class="left">{}</th>').format(first)]
            cells += [
                Markup("<td{}>{}</td>").format(side, cell)
                for side, cell in zip(sides[1:], others, strict=True)
            ]
            lines.append(Markup("<tr>{}</tr>").format(Markup().join(cells)))
        lines += [Markup("</tbody>"), Markup("</table>"), Markup("</div>")]
        lines += [Markup('<p class="note">{}</p>').format(note) for note in self.notes]
        if self.folded:
            opened = Markup("<details>\n<summary>{}</summary>").format(self.title)
            lines = [opened, *lines, Markup("</details>")]
        return Markup("\n").join(lines)

    def markdown(self) -> str:
        """For GitHub and the Hub."""
        lines = [self.head, ["---"] * len(self.head), *self.cells()]
        table = "\n".join(
            f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines
        )
        parts = [f"## {self.title}"] if self.title else []
        return "\n\n".join([*parts, table, *self.notes])

    def csv(self) -> str:
        """The values as they are, empty where there is none; an estimate has three columns."""
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
    """An estimate, or the name of a column of estimates, as value and ends of the interval."""
    if isinstance(cell, Estimate):
        return [_value(cell.value), _value(cell.low), _value(cell.high)]
    return [cell, f"{cell}_low", f"{cell}_high"] if isinstance(cell, str) else ["", "", ""]


def aligned(cells: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns two spaces apart, the first `left` of them flush left; a rule below the head."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return [lines[0], "─" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]


def short(model: str) -> str:
    """The end of a long name."""
    return model if len(model) <= 16 else f"…{model[-15:]}"


def counted(counts: Mapping[str, int], between: str = ", ") -> str:
    """`3 no_exit, 2 failed`."""
    return between.join(f"{count:,} {name}" for name, count in counts.items())


def _more(name: str) -> Callable[[Figures], Cell]:
    return lambda row: row.more.get(name)


CELLS: Mapping[str, tuple[Callable[[Figures], Cell], str]] = {
    "task": (lambda row: row.task, ""),
    "bin": (lambda row: row.bin, ""),
    "k": (lambda row: str(row.k), ""),
    "model": (lambda row: row.model, ""),
    "short model": (lambda row: short(row.model), ""),
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
    "completed alone": (lambda row: row.more["completed"].value, "%"),
    "pass": (_more("pass_at_samples"), "%"),
    "tokens": (lambda row: row.tokens, ",.1f"),
    "tokens alone": (lambda row: row.tokens.value, ",.1f"),
    "tokens short": (lambda row: _short_ends(row.tokens), ""),
    "ratio": (lambda row: row.ratio, "%"),
    "ratio alone": (lambda row: None if row.ratio is None else row.ratio.value, "%"),
    "trial": (_more("trial_tokens"), ",.1f"),
    "efficiency": (lambda row: row.more["efficiency"].value, ",.2f"),
    "FLOPs": (_more("attention_flops"), ".1e"),
    "p50": (_more("seconds_p50"), ",.2f"),
    "p95": (_more("seconds_p95"), ",.2f"),
    "truncated": (lambda row: row.truncated, ""),
    "truncated share": (
        lambda row: row.truncated / row.responses if row.responses else NOTHING.value, "%",
    ),
    "failed": (lambda row: row.failed, ""),
}  # fmt: skip
"""By name, what a table of arms may show."""


def arms_table(
    rows: Iterable[Figures], columns: Mapping[str, str], title: str = "", **options: Any
) -> Table:
    """A line an arm; `columns` has by head the name of a cell (CELLS)."""
    return Table.of(title, rows, {head: CELLS[name] for head, name in columns.items()}, **options)


def _short_ends(tokens: Estimate) -> str:
    """A digit for the value, none for the ends: a terminal has 100 columns."""
    value, ends = shown(tokens.value), format(tokens, ",.0f").partition(" ")[2]
    return f"{value} {ends}" if ends else value


def evaluation_tables(rows: Sequence[Figures], title: str) -> list[Table]:
    """For a terminal: accuracy and gain of each model under each exit; tokens, FLOPs, seconds.

    `gain` is over the base; `compl.` is the accuracy over completed responses.
    """
    notes: tuple[str, ...] = ()
    if any(row.verdict == "too many failed" for row in rows):
        notes = (f"More than {MAX_FAILED:.0%} of the responses failed: nothing is claimed there.",)
    arm = {"model": "short model", "exit": "exit"}
    return [
        arms_table(
            rows,
            arm | {"accuracy % (95 %)": "accuracy", "gain (95 %)": "gain",
                   "compl.": "completed alone", "pass@n": "pass", "trunc": "truncated",
                   "failed": "failed"},
            title,
            left=2,
        ),
        arms_table(
            rows,
            arm | {"tokens": "tokens alone", "% of base (95 %)": "ratio", "trial": "trial",
                   "effic.": "efficiency", "FLOPs": "FLOPs", "s p50": "p50", "s p95": "p95"},
            left=2,
            notes=notes,
        ),
    ]  # fmt: skip


def average_table(rows: Sequence[Figures]) -> Table:
    """For a terminal: the means over tasks."""
    return arms_table(
        rows,
        {"model": "short model", "exit": "exit", "accuracy % (95 %)": "accuracy",
         "gain (95 %)": "gain", "tokens": "tokens alone", "% of base (95 %)": "ratio"},
        f"mean over {rows[0].more['tasks']} tasks",
        left=2,
    )  # fmt: skip


def difficulty_table(rows: Sequence[Figures]) -> Table:
    """For a terminal: gain and tokens by the base's pass rate."""
    return arms_table(
        rows,
        {"base right": "bin", "model": "short model", "exit": "exit", "n": "problems",
         "acc. %": "accuracy alone", "gain (95 %)": "gain", "tokens": "tokens alone",
         "% of base": "ratio alone"},
        "by difficulty: the base's pass rate on one half of the samples, figures from the other",
        left=3,
    )  # fmt: skip


def write_tables(
    directory: Path,
    title: str,
    rows: Sequence[Figures],
    means: Sequence[Figures],
    difficulty: Sequence[Figures],
) -> None:
    """Write `tables.md`, `tables.csv` (the papers' layout) and `difficulty.csv`.

    The CSV files hold shares and tokens as they are, empty where there is no figure.
    """
    parts = [
        f"# {title}",
        "Acc: accuracy %. Tok: tokens a response, trials included. CR: tokens in % of the base's.",
        _papers(rows, means, ("Acc", "Tok", "CR")).markdown(),
        "## Accuracy over all and over completed responses",
        "Truncated responses count as not correct on the left and are left out on the right; which "
        "responses end is each row's own doing, so the right one compares nothing.",
        arms_table(
            rows,
            {"task": "task", "model": "model", "exit": "exit", "all (95 %)": "accuracy",
             "gain (95 %)": "gain", "completed (95 %)": "completed",
             "truncated %": "truncated share"},
        ).markdown(),
    ]  # fmt: skip
    filled = [replace(row, ratio=row.ratio or NOTHING) for row in difficulty]
    if difficulty:
        columns = {
            "task": "task", "base right": "bin", "model": "model", "exit": "exit",
            "problems": "problems", "Acc (95 %)": "accuracy", "gain (95 %)": "gain",
            "CR": "ratio alone",
        }  # fmt: skip
        parts += [
            "## By difficulty",
            "Problems by the base's pass rate on one half of the samples; figures from the other.",
            arms_table(filled, columns).markdown(),
        ]
    write_text(directory / "tables.md", "\n\n".join(parts) + "\n")
    names = ("accuracy", "tokens", "tokens_ratio")
    write_text(directory / "tables.csv", _papers(rows, means, names).csv())
    columns = {name: name for name in ("task", "bin", "model", "exit", "problems", "responses",
                                       "accuracy", "gain")}  # fmt: skip
    columns |= {"tokens_mean": "tokens alone", "tokens_ratio": "ratio"}
    filled = [replace(row, gain=row.gain or NOTHING) for row in filled]
    write_text(directory / "difficulty.csv", arms_table(filled, columns).csv())


def _papers(rows: Sequence[Figures], means: Sequence[Figures], names: Sequence[str]) -> Table:
    """A line an arm, three columns a task: accuracy, tokens, share of the base's tokens.

    The accuracies are whole in the CSV, where names say of which task a column is, and without
    intervals in Markdown.
    """
    tasks = [*dict.fromkeys(row.task for row in rows), *(["average"] if means else [])]
    figures = {(*row.arm, row.task): row for row in rows}
    figures |= {(*row.arm, "average"): row for row in means}
    whole = names[0] != "Acc"
    lines: list[tuple[Cell, ...]] = []
    for arm in dict.fromkeys(row.arm for row in rows):
        line: list[Cell] = [*arm]
        for task in tasks:
            row = figures.get((*arm, task))
            if row is None:
                line += [NOTHING if whole else NOTHING.value, NOTHING.value, NOTHING.value]
                continue
            ratio = NOTHING if row.ratio is None else row.ratio
            line += [
                row.accuracy if whole else row.accuracy.value, row.tokens.value,
                1.0 if row.verdict == "base" else ratio.value,
            ]  # fmt: skip
        lines.append(tuple(line))
    head = [
        f"{task} {name}" if whole or place == 0 else name
        for task in tasks
        for place, name in enumerate(names)
    ]
    formats = ("", "", *("%", ",.0f", "%") * len(tasks))
    return Table("", ("model", "exit", *head), tuple(lines), formats=formats)
