"""What an evaluation came to, as the table of a card."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from dto.hub.private import Private
from dto.reporting.evaluation import AverageRow, Comparison, is_base
from dto.reporting.report import Report
from dto.reporting.table import gained, interval, number, percent, points


class Result(NamedTuple):
    """One model under one exit on one task, in figures with 95 % intervals.

    `gain`, in points, and `share`, in percent of the base's tokens, are paired with the base by
    problem; empty for the base itself.
    """

    task: str
    model: str
    exit: str
    asked: str
    accuracy: str
    gain: str
    tokens: str
    share: str
    truncated: str
    failed: str


def results(report: Report, private: Private, models: Collection[str] = ()) -> list[Result]:
    """The rows of the table, of these models alone if any are named; with several tasks means too.

    Nothing is claimed of an arm of which too many responses failed.
    """
    against = {(each.task, each.model, each.exit): each for each in report.comparisons}
    found = []
    for row in report.rows:
        compared = against.get((row.task, row.model, row.exit))
        tokens = f"{number(row.tokens_mean, 1)} "
        tokens += f"({number(row.tokens_low, 1)}–{number(row.tokens_high, 1)})"
        found.append(
            Result(
                row.task or report.name, row.model, row.exit, f"{row.problems:,} × {row.samples}",
                interval(row.accuracy, row.accuracy_low, row.accuracy_high),
                gained(compared), tokens, _share(compared), f"{row.truncated:,}", f"{row.failed:,}",
            )
        )  # fmt: skip
    found += _means(report)
    return [
        each._replace(model=private.redact(each.model), task=private.redact(each.task))
        for each in found
        if not models or each.model in models
    ]


def _means(report: Report) -> Iterator[Result]:
    for row in report.averages:
        accuracy = interval(row.accuracy, row.accuracy_low, row.accuracy_high)
        base = is_base(row, report.plain)
        yield Result(
            "mean", row.model, row.exit, f"{row.tasks} tasks", accuracy,
            "" if base else points(row.gain, row.gain_low, row.gain_high),
            number(row.tokens_mean, 1), "" if base else _share(row), "", "",
        )  # fmt: skip


def _share(compared: Comparison | AverageRow | None) -> str:
    if compared is None:
        return ""
    low, high = compared.tokens_ratio_low, compared.tokens_ratio_high
    return f"{percent(compared.tokens_ratio)} ({percent(low)}–{percent(high)})"
