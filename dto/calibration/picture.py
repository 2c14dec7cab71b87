"""Accuracy against tokens of all exits, and the reliability of a confidence, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dto.calibration.sweep import Point
from dto.recipe import ExitSettings
from dto.reporting.pictures import COLOURS, INK
from dto.reporting.positions import Reliability


def draw(
    path: Path,
    title: str,
    points: Sequence[Point],
    picked: ExitSettings | None,
    reliable: Reliability | None,
) -> None:
    """Write a PNG; `points` begin with `none`. The same figures give the same bytes.

    Exits that differ only in threshold (or in the number of equal answers) share one line.
    """
    figure = Figure(figsize=(12.0, 6.4), dpi=150, layout="constrained")
    curve, diagram = figure.subplots(1, 2, width_ratios=[1.7, 1.0])
    _curve(curve, points, picked)
    _reliability(diagram, reliable)
    for axes in (curve, diagram):
        axes.grid(color="#e5e5e5", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
    figure.legend(loc="outside lower left", frameon=False, fontsize=7.5, ncols=4)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
    figure.savefig(path, metadata={"Software": None})


def _curve(axes: Axes, points: Sequence[Point], picked: ExitSettings | None) -> None:
    families: dict[str, list[Point]] = {}
    for point in points[1:]:
        families.setdefault(_family(point.exit), []).append(point)
    for index, (family, members) in enumerate(families.items()):
        members.sort(key=lambda point: point.tokens)
        axes.plot(
            [point.tokens for point in members],
            [100 * point.accuracy for point in members],
            color=COLOURS[index % len(COLOURS)],
            linestyle=("-", "--", ":", "-.")[index // len(COLOURS) % 4],
            marker=".",
            markersize=4,
            linewidth=0.9,
            label=family,
        )
    marked = [(points[0], "none", "s")]
    marked += [(each, f"picked: {each.exit.name}", "*") for each in points if each.exit == picked]
    for point, label, marker in marked:
        low, high = point.accuracy - point.accuracy_low, point.accuracy_high - point.accuracy
        axes.errorbar(
            point.tokens,
            100 * point.accuracy,
            yerr=[[100 * low], [100 * high]],
            fmt=marker,
            markersize=12 if marker == "*" else 6,
            color=INK,
            elinewidth=1.0,
            capsize=2.5,
            label=label,
        )
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens per question (thinking, answer, trials)", color=INK)
    axes.set_ylabel("accuracy, %", color=INK)


def _family(exit: ExitSettings) -> str:
    if exit.policy == "static":
        return "static"
    knob = f" {exit.confidence}" if exit.policy == "deer" else ""
    extra = f" from {exit.min_thinking}" * (exit.min_thinking > 0)
    extra += f" cooldown {exit.cooldown}" * (exit.cooldown > 0)
    return f"{exit.policy} {exit.monitor} {exit.inducer}{knob}{extra}"


def _reliability(axes: Axes, reliable: Reliability | None) -> None:
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence of a trial answer", color=INK)
    axes.set_ylabel("share that is right", color=INK)
    if reliable is None or not reliable.trials:
        axes.set_title("no trials", loc="left", fontsize=9, color=INK)
        return
    bins = reliable.bins
    axes.errorbar(
        [each.confidence for each in bins],
        [each.accuracy for each in bins],
        yerr=[
            [each.accuracy - each.accuracy_low for each in bins],
            [each.accuracy_high - each.accuracy for each in bins],
        ],
        fmt="o-",
        markersize=4,
        linewidth=1.0,
        capsize=2.5,
        color=COLOURS[1],
    )
    axes.set_title(
        f"{reliable.monitor} {reliable.inducer} {reliable.confidence}: ECE {reliable.ece:.3f}, "
        f"{reliable.trials:,} trials",
        loc="left",
        fontsize=9,
        color=INK,
    )
