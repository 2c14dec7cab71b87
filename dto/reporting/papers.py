"""The tables of a report as files, laid out as in 2504.15895 (table 1) and 2505.21765 (table 1).

One row for each model under each exit; for each task accuracy, tokens and tokens in % of the
base's (the papers' compression rate), in the last columns their mean over tasks.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from math import isfinite, isnan, nan
from pathlib import Path
from typing import Any

from dto.reporting.comparison import Comparison, ReportRow
from dto.reporting.difficulty import DifficultyRow
from dto.reporting.macro import AverageRow
from dto.reporting.table import interval, number, percent, points
from dto.runs.manifest import write_text

AVERAGE = "average"


def write_tables(
    directory: Path,
    title: str,
    rows: Sequence[ReportRow],
    comparisons: Sequence[Comparison],
    means: Sequence[AverageRow],
    difficulty: Sequence[DifficultyRow],
) -> None:
    """Write `tables.md`, `tables.csv` (the papers' layout) and `difficulty.csv`.

    The CSV files hold shares and tokens as they are, empty where there is no figure.
    """
    tasks = list(dict.fromkeys(row.task for row in rows))
    blocks = {(row.model, row.exit): _cells(row, tasks, rows, comparisons, means) for row in rows}
    parts = [
        f"# {title}",
        "Acc: accuracy %. Tok: tokens a response, trials included. CR: tokens in % of the base's.",
        _papers(blocks, tasks, bool(means)),
        "## Accuracy over all and over completed responses",
        "Truncated responses count as not correct on the left and are left out on the right; which "
        "responses end is each row's own doing, so the right one compares nothing.",
        _completed(rows, comparisons),
    ]
    if difficulty:
        parts += [
            "## By difficulty",
            "Problems by the base's pass rate on one half of the samples; figures from the other.",
            _difficulty(difficulty),
        ]
    write_text(directory / "tables.md", "\n\n".join(parts) + "\n")
    columns = [*tasks, AVERAGE] if means else tasks
    names = ("accuracy", "accuracy_low", "accuracy_high", "tokens", "tokens_ratio")
    head = ["model", "exit", *(f"{task} {name}" for task in columns for name in names)]
    lines = [
        [*arm, *(value for task in columns for value in cells[task])]
        for arm, cells in blocks.items()
    ]
    write_text(directory / "tables.csv", _csv(head, lines))
    head = [field.name for field in fields(DifficultyRow)]
    write_text(directory / "difficulty.csv", _csv(head, (asdict(r).values() for r in difficulty)))


def _cells(
    arm: ReportRow,
    tasks: Sequence[str],
    rows: Sequence[ReportRow],
    comparisons: Sequence[Comparison],
    means: Sequence[AverageRow],
) -> dict[str, tuple[float, ...]]:
    """By task, and for the average: accuracy with its interval, tokens, share of the base's."""
    own = (arm.model, arm.exit)
    found = {row.task: row for row in rows if (row.model, row.exit) == own}
    ratios = {
        each.task: each.tokens_ratio for each in comparisons if (each.model, each.exit) == own
    }
    cells: dict[str, tuple[float, ...]] = {}
    for task in tasks:
        row = found.get(task)
        # What has efficiency 1 and is compared with nothing is the base.
        ratio = ratios.get(task, 1.0 if row is not None and row.efficiency == 1 else nan)
        cells[task] = (nan,) * 5 if row is None else (
            row.accuracy, row.accuracy_low, row.accuracy_high, row.tokens_mean, ratio
        )  # fmt: skip
    mean = next((each for each in means if (each.model, each.exit) == own), None)
    cells[AVERAGE] = (nan,) * 5 if mean is None else (
        mean.accuracy, mean.accuracy_low, mean.accuracy_high, mean.tokens_mean, mean.tokens_ratio
    )  # fmt: skip
    return cells


def _papers(
    blocks: dict[tuple[str, str], dict[str, tuple[float, ...]]], tasks: Sequence[str], mean: bool
) -> str:
    columns = [*tasks, AVERAGE] if mean else tasks
    head = ["model", "exit"]
    for task in columns:
        head += [f"{task} Acc", "Tok", "CR"]
    lines = []
    for (model, exit), cells in blocks.items():
        line = [model, exit]
        for task in columns:
            accuracy, _, _, tokens, ratio = cells[task]
            line += [percent(accuracy), number(tokens, 0), percent(ratio)]
        lines.append(line)
    return _markdown(head, lines)


def _completed(rows: Sequence[ReportRow], comparisons: Sequence[Comparison]) -> str:
    against = {(each.task, each.model, each.exit): each for each in comparisons}
    head = ["task", "model", "exit", "all (95 %)", "gain (95 %)", "completed (95 %)", "truncated %"]
    lines = []
    for row in rows:
        other = against.get((row.task, row.model, row.exit))
        done = row.accuracy_completed, row.accuracy_completed_low, row.accuracy_completed_high
        gain = "" if other is None else points(other.gain, other.gain_low, other.gain_high)
        if other is not None and other.verdict == "too many failed":
            gain = other.verdict
        lines.append(
            [
                row.task, row.model, row.exit,
                interval(row.accuracy, row.accuracy_low, row.accuracy_high), gain, interval(*done),
                percent(row.truncated / row.responses if row.responses else nan),
            ]
        )  # fmt: skip
    return _markdown(head, lines)


def _difficulty(rows: Sequence[DifficultyRow]) -> str:
    head = ["task", "base right", "model", "exit", "problems", "Acc (95 %)", "gain (95 %)", "CR"]
    lines = [
        [
            row.task, row.bin, row.model, row.exit, f"{row.problems:,}",
            interval(row.accuracy, row.accuracy_low, row.accuracy_high),
            "" if isnan(row.gain) else points(row.gain, row.gain_low, row.gain_high),
            percent(row.tokens_ratio),
        ]
        for row in rows
    ]  # fmt: skip
    return _markdown(head, lines)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    shown = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in shown)


def _csv(head: Sequence[str], lines: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for line in lines:
        writer.writerow("" if isinstance(v, float) and not isfinite(v) else v for v in line)
    return text.getvalue()
