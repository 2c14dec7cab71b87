"""Pictures of a report, as files and in its page.

In the page they are SVG whose colours are CSS variables, `var(--ink)` and `var(--c0)`, so that they
follow its light or dark colours. Text is drawn as outlines, which look the same on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from math import ceil
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from dto.reporting.evaluation import PASS_RATES, Figures, minus
from dto.reporting.positions import BINS, ExitPositions, Reliability, TrialReliability
from dto.statistics import NOTHING, Estimate

COLOURS = ("#4c566a", "#c2410c", "#0f766e", "#6d28d9", "#a16207", "#1d4ed8")
INK = "#333333"
GRID = "#e5e5e5"
MARKERS = "oDs^vPX<>"
TEXT: dict[Any, Any] = {"text.parse_math": False}
"""A dollar sign in a name starts no formula."""
ACROSS = 2
"""Panels side by side."""


def save(make: Callable[[], Figure], *paths: Path) -> None:
    """Write the figure of `make` to PNG and SVG files; the same figure gives the same bytes."""
    with rc_context(TEXT | {"svg.hashsalt": "dto"}):
        figure = fixed(make())
        for path in paths:
            unnamed = "Date" if path.suffix == ".svg" else "Software"
            figure.savefig(path, metadata={unnamed: None})


def fixed(figure: Figure) -> Figure:
    """Compute the figure's layout once: matplotlib repeats it, which is slow, for each file."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
    return figure


class AccuracyAndTokens(Protocol):
    """A row with accuracy (a share) and tokens."""

    @property
    def accuracy(self) -> Estimate: ...  # noqa: D102
    @property
    def tokens(self) -> Estimate: ...  # noqa: D102


R = TypeVar("R", bound=AccuracyAndTokens)


class PointStyle(NamedTuple):
    """Label, colour and marker of a point."""

    label: str
    color: str
    marker: str


def front(rows: Sequence[Figures], title: str = "") -> Figure:
    """Plot accuracy against tokens: a panel per task, a colour per model, a marker per exit."""
    graded = [row for row in rows if row.responses]
    tasks = list(dict.fromkeys(row.task for row in graded)) or [""]
    down = ceil(len(tasks) / ACROSS)
    size = (8.6, 4.8) if len(tasks) == 1 else (11.0, 4.4 * down)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    for place, task in enumerate(tasks):
        axes = figure.add_subplot(down, min(len(tasks), ACROSS), place + 1)
        scatter(axes, [row for row in graded if row.task == task], _styles(graded))
        axes.set_title(title if len(tasks) == 1 else task, loc="left", fontsize=10, color=INK)
    if len(tasks) > 1 and title:
        figure.suptitle(title, fontsize=10, color=INK)
    if graded:
        legend(figure, "outside right upper")
    return figure


def _styles(rows: Sequence[Figures]) -> Callable[[Figures], PointStyle]:
    models = list(dict.fromkeys(row.model for row in rows))
    exits = list(dict.fromkeys(row.exit for row in rows))
    return lambda row: PointStyle(
        row.model if row.exit == "none" else f"{row.model}, {row.exit}",
        COLOURS[models.index(row.model) % len(COLOURS)],
        MARKERS[exits.index(row.exit) % len(MARKERS)],
    )


def scatter(axes: Axes, rows: Sequence[R], style: Callable[[R], PointStyle]) -> None:
    """Plot accuracy against tokens (thinking, answer and trials) with intervals of both.

    A dotted line joins the Pareto front. A point that a later one would cover is a ring around it.
    """
    places = [(row.tokens.value, row.accuracy.value) for row in rows]
    for number, row in enumerate(rows):
        label, color, marker = style(row)
        covered = places[number] in places[number + 1 :]
        face = {"markersize": 11, "markerfacecolor": "none"} if covered else {"markersize": 6}
        error_bars(axes, [row.tokens], [row.accuracy], scale=100, fmt=marker, **face,
                   label=label, color=color, elinewidth=1.1, capsize=2.5)  # fmt: skip
    best = pareto_front(rows)
    axes.plot(
        [row.tokens.value for row in best],
        [100 * row.accuracy.value for row in best],
        color=INK,
        linewidth=0.8,
        linestyle=(0, (2, 3)),
        zorder=1,
    )
    if rows:
        # The interval of a single problem is nan: in this order max() returns the mean.
        axes.set_xlim(0, 1.18 * max(max(row.tokens.value, row.tokens.high) for row in rows))
    axes.set_xlabel("tokens per question", color=INK)
    axes.set_ylabel("accuracy, %", color=INK)
    style_axes(axes)


def legend(
    figure: Figure, place: Literal["outside right upper", "outside upper left"], columns: int = 1
) -> None:
    """Draw one legend for all panels, since an arm can be missing from a panel."""
    marks = {label: mark for axes in figure.axes for label, mark in legend_marks(axes).items()}
    figure.legend(
        list(marks.values()),
        list(marks),
        loc=place,
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor="linecolor",
    )


def legend_marks(axes: Axes) -> dict[str, Any]:
    """Return the legend mark by label; for points with error bars, the point without its bars."""
    handles, labels = axes.get_legend_handles_labels()
    return {
        label: handle.lines[0] if isinstance(handle, ErrorbarContainer) else handle
        for handle, label in zip(handles, labels, strict=True)
    }


def pareto_front(rows: Sequence[R]) -> list[R]:
    """Return the rows, sorted by tokens, that no other row beats in both accuracy and tokens."""
    best: list[R] = []
    for row in sorted(rows, key=lambda row: (row.tokens.value, -row.accuracy.value)):
        if not best or row.accuracy.value > best[-1].accuracy.value:
            best.append(row)
    return best


def error_bars(
    axes: Axes,
    x: Sequence[float | Estimate],
    y: Sequence[Estimate],
    scale: float = 1,
    **style: Any,
) -> None:
    """Plot points with the intervals of y, and of x if x is an estimate; y is scaled by `scale`.

    An estimate without an interval has no bar.
    """
    across = [point for point in x if isinstance(point, Estimate)]
    axes.errorbar(
        [point.value if isinstance(point, Estimate) else point for point in x],
        [scale * point.value for point in y],
        xerr=_bars(across, 1) if across else None,
        yerr=_bars(y, scale),
        **style,
    )


def _bars(points: Sequence[Estimate], scale: float) -> list[list[float]]:
    # max() avoids negative lengths from rounding; in this order max() with nan is 0.
    return [
        [scale * max(0.0, point.value - point.low) for point in points],
        [scale * max(0.0, point.high - point.value) for point in points],
    ]


def style_axes(axes: Axes) -> None:
    """Apply the common style: grid, ink colour, no top and right spine."""
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    for spine in axes.spines.values():
        spine.set_color(INK)


DASHES = ("-", "--", ":", "-.")
WIDTH = 9.0  # inches


def svg(figure: Figure, name: str) -> str:
    """Return the SVG of a figure for a page; `name` makes its ids unique in the page.

    The same figure gives the same text.
    """
    out = StringIO()
    with rc_context({"svg.hashsalt": "dto", "svg.fonttype": "path"}):
        fixed(figure).savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'^<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text)
    text = text.replace("xlink:href", "href")
    names = {INK: "ink", GRID: "grid", **{colour: f"c{n}" for n, colour in enumerate(COLOURS)}}
    for colour, variable in names.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def difficulty(rows: Sequence[Figures]) -> Figure:
    """Plot saved tokens and gained points of every arm but the base, by pass rate of the base."""
    compared = [row for row in rows if row.ratio is not None]
    arms = list(dict.fromkeys(row.arm for row in compared))
    bins = [bin for bin in PASS_RATES if any(row.bin == bin for row in compared)]
    style = _styles(rows)
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    saved, gained = figure.subplots(1, 2)
    for place, arm in enumerate(arms):
        part = [row for row in compared if row.arm == arm]
        label, color, marker = style(part[0])
        shift = 0.6 * ((place + 0.5) / len(arms) - 0.5)
        x = [bins.index(row.bin) + shift for row in part]
        savings = [minus(1.0, row.ratio or NOTHING) for row in part]
        for axes, y in ((saved, savings), (gained, [row.gain or NOTHING for row in part])):
            error_bars(axes, x, y, scale=100, fmt=marker, color=color, markersize=5,
                       elinewidth=1.1, capsize=2, label=label)  # fmt: skip
    saved.set_ylabel("tokens saved, %", color=INK)
    gained.set_ylabel("gain in accuracy, points", color=INK)
    for axes in (saved, gained):
        style_axes(axes)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xticks(range(len(bins)), bins)
        axes.set_xlim(-0.5, len(bins) - 0.5)
        axes.set_xlabel("pass rate of the base on the other half of its samples", color=INK)
    legend(figure, "outside upper left", columns=3)
    return figure


def positions(exits: Sequence[ExitPositions], models: Sequence[str] = ()) -> Figure:
    """Plot exits of optimized trajectories by outcome, and exits of policies by model.

    `models` are in the order of their colours in the other pictures.
    """
    panels = list(dict.fromkeys(part.model for part in exits))
    models = [*models, *(model for model in panels if model and model not in models)]
    across = min(3, max(2, len(panels)))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(WIDTH, 3.5 * down), layout="constrained")
    first: Axes | None = None
    for place, model in enumerate(panels):
        axes = figure.add_subplot(down, across, place + 1, sharey=first if model else None)
        first = axes if model and first is None else first
        group = [part for part in exits if part.model == model]
        for index, part in enumerate(group):
            # Outcomes divide all trajectories; the exits of a policy divide all its responses.
            parts = [part] if model else group
            whole = sum(other.exits for other in parts) + part.without
            colour = models.index(model) if model else 2 + index
            axes.stairs(
                [100 * count / whole for count in part.counts],
                [100 * edge / BINS for edge in range(BINS + 1)],
                color=COLOURS[colour % len(COLOURS)],
                linestyle=DASHES[index % len(DASHES)] if model else "-",
                linewidth=1.4,
                label=f"{part.group if model else part.group.replace('_', ' ')} ({part.exits:,})",
            )
        style_axes(axes)
        axes.margins(x=0, y=0.2 + 0.1 * len(group))  # room for the legend
        axes.set_title(f"early exits: {model}" if model else "optimized trajectories", loc="left",
                       fontsize=10, color=INK)  # fmt: skip
        axes.set_xlabel("thinking before the exit, %", color=INK)
        axes.set_ylabel("of all responses, %" if model else "of all trajectories, %", color=INK)
        axes.legend(loc="upper right", frameon=False, fontsize=8.5, labelcolor="linecolor")
    return figure


def calibration(trials: Sequence[TrialReliability]) -> Figure:
    """Plot confidence against accuracy: a panel per exit, a colour per model."""
    exits = list(dict.fromkeys(part.exit for part in trials))
    models = list(dict.fromkeys(part.model for part in trials))
    across = min(3, max(2, len(exits)))
    down = -(-len(exits) // across)
    figure = Figure(figsize=(WIDTH, 3.8 * down), layout="constrained")
    for place, exit in enumerate(exits):
        axes = figure.add_subplot(down, across, place + 1)
        reliability_diagram(
            axes,
            {part.model: part.reliability for part in trials if part.exit == exit},
            [COLOURS[models.index(part.model) % len(COLOURS)] for part in trials
             if part.exit == exit],
        )  # fmt: skip
        axes.set_title(exit, loc="left", fontsize=10, color=INK)
        axes.set_ylim(-0.03, 1.05 + 0.08 * len(models))
    return figure


def reliability_diagram(
    axes: Axes, reliabilities: Mapping[str, Reliability], colours: Sequence[str] = COLOURS
) -> None:
    """Plot confidence against accuracy, and the diagonal; the keys are legend names.

    The area of a point is proportional to the number of trials in its bin.
    """
    style_axes(axes)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
    for (name, reliable), colour in zip(reliabilities.items(), colours, strict=False):
        bins = reliable.bins
        x = [bin.confidence for bin in bins]
        y = [bin.accuracy for bin in bins]
        error_bars(axes, x, y, fmt="none", elinewidth=0.8, ecolor=colour)
        axes.scatter(
            x,
            [accuracy.value for accuracy in y],
            s=[12 + 220 * bin.trials / reliable.trials for bin in bins],
            color=colour,
            linewidths=0,
            alpha=0.85,
        )
        axes.plot([], [], "o", markersize=5, color=colour, label=f"{name}: ECE {reliable.ece:.3f}")
    axes.set_xlim(-0.03, 1.05)
    axes.set_ylim(-0.03, 1.13)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_xlabel("confidence of a trial answer", color=INK)
    axes.set_ylabel("share of right answers", color=INK)
    axes.legend(loc="upper left", frameon=False, fontsize=8.5, labelcolor="linecolor")
