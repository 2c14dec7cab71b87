"""The pictures of a report, as files and in its page.

In the page they are SVG that takes its colours from there: it is light or dark, so a colour is a
name, `var(--ink)`, `var(--c0)`. Text is drawn as outlines, which look the same on every machine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from io import StringIO
from math import ceil, isnan
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from dto.reporting.cost import BreakEven, StageCost
from dto.reporting.evaluation import PASS_RATES, Figures
from dto.reporting.positions import BINS, ExitPositions, Reliability, TrialReliability
from dto.statistics import NOTHING, Estimate

COLOURS = ("#4c566a", "#c2410c", "#0f766e", "#6d28d9", "#a16207", "#1d4ed8")
INK = "#333333"
GRID = "#e5e5e5"
MARKERS = "oDs^vPX<>"
TEXT: dict[Any, Any] = {"text.parse_math": False}
"""Names are shown as they are: a dollar sign in one begins no formula."""
ACROSS = 2
"""Panels beside one another."""


def draw(rows: Sequence[Figures], directory: Path, title: str) -> list[Path]:
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


def front(rows: Sequence[Figures], title: str = "") -> Figure:
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
        legend(figure, "outside right upper")
    return figure


def legend(
    figure: Figure, place: Literal["outside right upper", "outside upper left"], columns: int = 1
) -> None:
    """One legend for all panels: an arm may lack a task."""
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
    """By label, what a legend shows of points with error bars: the point alone can be told."""
    handles, labels = axes.get_legend_handles_labels()
    return {
        label: handle.lines[0] if isinstance(handle, ErrorbarContainer) else handle
        for handle, label in zip(handles, labels, strict=True)
    }


def _panel(
    axes: Axes, shown: Sequence[Figures], models: Sequence[str], exits: Sequence[str]
) -> None:
    for row in shown:
        error_bars(
            axes,
            [row.tokens],
            [row.accuracy],
            scale=100,
            fmt=MARKERS[exits.index(row.exit) % len(MARKERS)],
            markersize=7 if row.exit == "none" else 5,
            label=_label(row.model, row.exit),
            color=COLOURS[models.index(row.model) % len(COLOURS)],
            elinewidth=1.1,
            capsize=2.5,
        )
    best = not_beaten(shown)
    axes.plot(
        [row.tokens.value for row in best],
        [100 * row.accuracy.value for row in best],
        color=INK,
        linewidth=0.8,
        linestyle=(0, (2, 3)),
        zorder=1,
    )
    if shown:
        # In this order the maximum with nan, the interval of a single problem, is the mean.
        axes.set_xlim(0, 1.18 * max(max(row.tokens.value, row.tokens.high) for row in shown))
    axes.set_xlabel("tokens per question (thinking, answer, trials)", color=INK)
    axes.set_ylabel("accuracy, %", color=INK)
    plain(axes)


def not_beaten(rows: Sequence[Figures]) -> list[Figures]:
    """By tokens: those that no other row has more accuracy than for as few tokens."""
    best: list[Figures] = []
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
    """Points with the intervals of y, and of x where that is an estimate too; y times `scale`.

    A figure whose interval is not known has no bar.
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
    # In this order the maximum with nan is 0; without it rounding may give a negative length.
    return [
        [scale * max(0.0, point.value - point.low) for point in points],
        [scale * max(0.0, point.high - point.value) for point in points],
    ]


def plain(axes: Axes) -> None:
    """Axes as all pictures have them."""
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    for spine in axes.spines.values():
        spine.set_color(INK)


DASHES = ("-", "--", ":", "-.")
WIDTH = 9.0  # inches


def svg(figure: Figure, name: str) -> str:
    """A figure for a page; `name` tells its ids from those of the page's other figures.

    The same figure gives the same text.
    """
    out = StringIO()
    with rc_context({"svg.hashsalt": "dto", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'^<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text)
    text = text.replace("xlink:href", "href")
    names = {INK: "ink", GRID: "grid", **{each: f"c{n}" for n, each in enumerate(COLOURS)}}
    for colour, variable in names.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def difficulty(rows: Sequence[Figures]) -> Figure:
    """Tokens saved, and points gained, by the base's pass rate; the base itself is left out."""
    shown = [(row, row.ratio) for row in rows if row.ratio is not None]
    arms = list(dict.fromkeys(row.arm for row, _ in shown))
    models = list(dict.fromkeys(row.model for row in rows))
    exits = list(dict.fromkeys(row.exit for row in rows))
    bins = [bin for bin in PASS_RATES if any(row.bin == bin for row, _ in shown)]
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    saved, gained = figure.subplots(1, 2)
    for place, arm in enumerate(arms):
        part = [(row, ratio) for row, ratio in shown if row.arm == arm]
        shift = 0.6 * ((place + 0.5) / len(arms) - 0.5)
        x = [bins.index(row.bin) + shift for row, _ in part]
        savings = [
            replace(ratio, value=1 - ratio.value, low=1 - ratio.high, high=1 - ratio.low)
            for _, ratio in part
        ]
        for axes, y in ((saved, savings), (gained, [row.gain or NOTHING for row, _ in part])):
            error_bars(
                axes,
                x,
                y,
                scale=100,
                fmt=MARKERS[exits.index(arm[1]) % len(MARKERS)],
                color=COLOURS[models.index(arm[0]) % len(COLOURS)],
                markersize=5,
                elinewidth=1.1,
                capsize=2,
                label=_label(*arm),
            )
    saved.set_ylabel("tokens saved, %", color=INK)
    gained.set_ylabel("gain in accuracy, points", color=INK)
    for axes in (saved, gained):
        plain(axes)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xticks(range(len(bins)), [_bin([row for row, _ in shown], bin) for bin in bins])
        axes.set_xlim(-0.5, len(bins) - 0.5)
        axes.set_xlabel("the base is right on that share of the other half", color=INK)
    legend(figure, "outside upper left", columns=3)
    return figure


def _bin(rows: Sequence[Figures], bin: str) -> str:
    most = max(row.problems for row in rows if row.bin == bin)
    return f"{bin}\n{most:,} problem{'' if most == 1 else 's'}"


def positions(exits: Sequence[ExitPositions], models: Sequence[str] = ()) -> Figure:
    """Optimized trajectories by outcome, stacked; then exits of policies, a panel a model.

    `models` are in the order of the colours that other pictures give them.
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
        plain(axes)
        shown = [part for part in exits if part.model == model]
        if model:
            _left(axes, shown, COLOURS[models.index(model) % len(COLOURS)])
        else:
            _cut(axes, shown)
        axes.set_title(f"early exits: {model}" if model else "optimized trajectories", loc="left",
                       fontsize=10, color=INK)  # fmt: skip
        axes.set_xlim(0, 100)
        axes.set_ylim(0, _top([part for part in exits if part.model] if model else shown, model))
        axes.set_xlabel("thinking before the exit, %", color=INK)
        axes.set_ylabel("of all responses, %" if model else "of all trajectories, %", color=INK)
        axes.legend(loc="upper right", frameon=False, fontsize=8.5, labelcolor="linecolor")
    return figure


def _top(exits: Sequence[ExitPositions], model: str) -> float:
    """Above the highest bar, with room for a legend: policies share the scale of all models."""
    if model:
        lines = max(Counter(part.model for part in exits).values())
        shares = [max(part.counts) / max(1, part.exits + part.without) for part in exits]
    else:
        lines = len(exits)
        whole = max(1, sum(part.exits for part in exits) + exits[0].without)
        shares = [sum(bar) / whole for bar in zip(*(part.counts for part in exits), strict=True)]
    return (1.1 + 0.11 * lines) * (100 * max(shares) or 1.0)


EDGES = tuple(100 * place / BINS for place in range(BINS + 1))


def _cut(axes: Axes, outcomes: Sequence[ExitPositions]) -> None:
    whole = sum(part.exits for part in outcomes) + outcomes[0].without
    below = [0.0] * BINS
    for part, colour in zip(outcomes, COLOURS[2:], strict=False):
        heights = [100 * count / whole for count in part.counts]
        label = f"{part.group.replace('_', ' ')} ({part.exits:,})"
        axes.bar(EDGES[:-1], heights, width=100 / BINS, bottom=below, align="edge", color=colour,
                 label=label)  # fmt: skip
        below = [low + height for low, height in zip(below, heights, strict=True)]


def _left(axes: Axes, exits: Sequence[ExitPositions], colour: str) -> None:
    for index, part in enumerate(exits):
        heights = [100 * count / (part.exits + part.without) for count in part.counts]
        axes.stairs(heights, EDGES, color=colour, linestyle=DASHES[index % len(DASHES)],
                    linewidth=1.4, label=f"{part.group} ({part.exits:,})")  # fmt: skip


def calibration(trials: Sequence[TrialReliability]) -> Figure:
    """Confidence against the share of right answers: one panel for each exit, a colour a model."""
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
    """Confidence against the share of right answers, with the diagonal, by the name of each.

    The area of a point is the share of the trials in its bin.
    """
    plain(axes)
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
    axes.set_ylabel("share that is right", color=INK)
    axes.legend(loc="upper left", frameon=False, fontsize=8.5, labelcolor="linecolor")


def cost(costs: Sequence[StageCost], even: BreakEven | None, base: float) -> Figure:
    """Tokens of each stage; beside it, if it is known, when they are paid for.

    `base` is what the base model takes for a question.
    """
    shown = [cost for cost in costs if cost.tokens or cost.trained_tokens][::-1]
    known = even is not None and not isnan(base)
    figure = Figure(figsize=(WIDTH, 3.5 if known else 0.8 + 0.38 * len(shown)),
                    layout="constrained")  # fmt: skip
    bars = figure.add_subplot(1, 2, 1) if known else figure.add_subplot()
    names = [cost.stage for cost in shown]
    generated = [cost.tokens / 1e3 for cost in shown]
    trained = [cost.trained_tokens / 1e3 for cost in shown]
    plain(bars)
    bars.barh(names, generated, color=COLOURS[5], label="generated")
    if any(trained):
        bars.barh(names, trained, left=generated, color=COLOURS[4], label="trained on")
        bars.legend(loc="lower right", frameon=False, fontsize=8.5, labelcolor="linecolor")
    bars.set_xlabel("thousand tokens" if any(trained) else "thousand tokens generated", color=INK)
    if known and even is not None:
        _paid(figure.add_subplot(1, 2, 2), even, base)
    return figure


def _paid(lines: Axes, even: BreakEven, base: float) -> None:
    after = base - even.tokens_saved.value
    last = 2.0 * even.questions if even.questions else 2.0 * even.tokens_spent / max(1.0, base)
    plain(lines)
    lines.plot([0, last / 1e3], [0, base * last / 1e6], color=COLOURS[0], label="base")
    ends = [even.tokens_spent / 1e6, (even.tokens_spent + after * last) / 1e6]
    lines.plot([0, last / 1e3], ends, color=COLOURS[1], label="trained, with what it cost")
    if even.questions:
        lines.plot(even.questions / 1e3, base * even.questions / 1e6, "o", color=INK)
        if even.questions_low and even.questions_high:
            lines.axvspan(even.questions_low / 1e3, min(last, even.questions_high) / 1e3,
                          color=GRID, linewidth=0, zorder=0)  # fmt: skip
        lines.annotate(
            f"{even.questions:,} questions",
            (even.questions / 1e3, base * even.questions / 1e6),
            xytext=(8, -14),
            textcoords="offset points",
            fontsize=9,
            color=INK,
        )
    lines.set_xlim(0)
    lines.set_ylim(0)
    lines.set_xlabel("thousand questions answered", color=INK)
    lines.set_ylabel("million tokens generated or trained on", color=INK)
    lines.legend(loc="upper left", frameon=False, fontsize=8.5, labelcolor="linecolor")


def _label(model: str, exit: str) -> str:
    return model if exit == "none" else f"{model}, {exit}"
