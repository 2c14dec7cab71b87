"""Accuracy against tokens, with intervals both ways: the picture of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from dto.reporting.comparison import ReportRow

COLOURS = ("#4c566a", "#c2410c", "#0f766e", "#6d28d9", "#a16207", "#1d4ed8")
INK = "#333333"
GRID = "#e5e5e5"
MARKERS = "oDs^vPX<>"
TEXT: dict[Any, Any] = {"text.parse_math": False}
"""Names are shown as they are: a dollar sign in one begins no formula."""
ACROSS = 2
"""Panels beside one another."""


def draw(rows: Sequence[ReportRow], directory: Path, title: str) -> list[Path]:
    """Write `report.png` and `report.svg`; the same rows give the same bytes."""
    return save(lambda: front(rows, title), directory, "report")


def save(make: Callable[[], Figure], directory: Path, name: str) -> list[Path]:
    """Write the figure of `make` as PNG and SVG; the same figure gives the same bytes."""
    paths = [directory / f"{name}.png", directory / f"{name}.svg"]
    with rc_context(TEXT | {"svg.hashsalt": "dto"}):
        figure = make()
        figure.savefig(paths[0], metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def front(rows: Sequence[ReportRow], title: str = "") -> Figure:
    """One panel a task, one colour a model, one marker an exit.

    A line joins the points that no other has both more accuracy and fewer tokens than. Rows without
    a figure are left out.
    """
    shown = [row for row in rows if row.responses]
    models = list(dict.fromkeys(row.model for row in shown))
    exits = list(dict.fromkeys(row.exit for row in shown))
    tasks = list(dict.fromkeys(row.task for row in shown)) or [""]
    down = ceil(len(tasks) / ACROSS)
    size = (8.6, 4.8) if len(tasks) == 1 else (11.0, 4.4 * down)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    for place, task in enumerate(tasks):
        axes = figure.add_subplot(down, min(len(tasks), ACROSS), place + 1)
        _panel(axes, [row for row in shown if row.task == task], models, exits)
        axes.set_title(title if len(tasks) == 1 else task, loc="left", fontsize=10, color=INK)
    if len(tasks) > 1 and title:
        figure.suptitle(title, fontsize=10, color=INK)
    if shown:
        # An arm may lack a task: the legend is that of all panels.
        marks = {label: mark for axes in figure.axes for label, mark in legend_marks(axes).items()}
        figure.legend(
            list(marks.values()),
            list(marks),
            loc="outside right upper",
            frameon=False,
            fontsize=8.5,
            labelcolor="linecolor",
        )
    return figure


def legend_marks(axes: Axes) -> dict[str, Any]:
    """By label, what a legend shows of points with error bars: the point alone can be told."""
    handles, labels = axes.get_legend_handles_labels()
    return {
        label: handle.lines[0] if isinstance(handle, ErrorbarContainer) else handle
        for handle, label in zip(handles, labels, strict=True)
    }


def _panel(
    axes: Axes, shown: Sequence[ReportRow], models: Sequence[str], exits: Sequence[str]
) -> None:
    for row in shown:
        low, high = row.accuracy - row.accuracy_low, row.accuracy_high - row.accuracy
        left, right = row.tokens_mean - row.tokens_low, row.tokens_high - row.tokens_mean
        axes.errorbar(
            row.tokens_mean,
            100 * row.accuracy,
            xerr=[[max(0.0, left)], [max(0.0, right)]],
            yerr=[[100 * max(0.0, low)], [100 * max(0.0, high)]],
            fmt=MARKERS[exits.index(row.exit) % len(MARKERS)],
            markersize=7 if row.exit == "none" else 5,
            label=f"{row.model}, {row.exit}" if row.exit != "none" else row.model,
            color=COLOURS[models.index(row.model) % len(COLOURS)],
            elinewidth=1.1,
            capsize=2.5,
        )
    best = not_beaten(shown)
    axes.plot(
        [row.tokens_mean for row in best],
        [100 * row.accuracy for row in best],
        color=INK,
        linewidth=0.8,
        linestyle=(0, (2, 3)),
        zorder=1,
    )
    if shown:
        # In this order the maximum with nan, the interval of a single problem, is the mean.
        axes.set_xlim(0, 1.18 * max(max(row.tokens_mean, row.tokens_high) for row in shown))
    axes.set_xlabel("tokens per question (thinking, answer, trials)", color=INK)
    axes.set_ylabel("accuracy, %", color=INK)
    plain(axes)


def not_beaten(rows: Sequence[ReportRow]) -> list[ReportRow]:
    """By tokens: those that no other row has more accuracy than for as few tokens."""
    best: list[ReportRow] = []
    for row in sorted(rows, key=lambda row: (row.tokens_mean, -row.accuracy)):
        if not best or row.accuracy > best[-1].accuracy:
            best.append(row)
    return best


def plain(axes: Axes) -> None:
    """Axes as all pictures have them."""
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    for spine in axes.spines.values():
        spine.set_color(INK)
