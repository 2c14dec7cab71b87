"""Accuracy against tokens for every method of a comparison, with intervals both ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from dto.reporting.pictures import COLOURS, INK, MARKERS, legend_marks, plain, save

if TYPE_CHECKING:
    from dto.baselines.records import MethodRow


def draw(rows: Sequence[MethodRow], directory: Path, title: str) -> list[Path]:
    """Write `compare.png` and `compare.svg`; the same rows give the same bytes."""
    return save(lambda: front(rows, title), directory, "compare")


def front(rows: Sequence[MethodRow], title: str = "") -> Figure:
    """A point a method."""
    figure = Figure(figsize=(8.6, 5.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for index, row in enumerate(rows):
        axes.errorbar(
            row.tokens,
            100 * row.accuracy,
            xerr=[[row.tokens - row.tokens_low], [row.tokens_high - row.tokens]],
            yerr=[
                [100 * (row.accuracy - row.accuracy_low)],
                [100 * (row.accuracy_high - row.accuracy)],
            ],
            fmt=MARKERS[index % len(MARKERS)],
            markersize=6,
            label=row.method,
            color=COLOURS[index % len(COLOURS)],
            elinewidth=0.9,
            capsize=2,
        )
    axes.set_xlim(0, 1.12 * max(row.tokens_high for row in rows))
    axes.set_xlabel("tokens per question", color=INK)
    axes.set_ylabel("accuracy, %", color=INK)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    plain(axes)
    marks = legend_marks(axes)
    figure.legend(list(marks.values()), list(marks), loc="outside right upper", frameon=False,
                  fontsize=8.5, labelcolor="linecolor")  # fmt: skip
    return figure
