"""How long responses are before and after: the picture of a dataset card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dto.reporting.pictures import COLOURS, INK

BINS = 40


def draw_lengths(lengths: Mapping[str, Sequence[int]], path: Path) -> None:
    """Write histograms of token counts below one another, each with its median, on one axis.

    The same counts give the same bytes.
    """
    shown = {name: values for name, values in lengths.items() if values}
    longest = max((max(values) for values in shown.values()), default=1)
    figure = Figure(figsize=(8.6, 0.9 + 1.1 * max(1, len(shown))), dpi=120, layout="constrained")
    panels = figure.subplots(max(1, len(shown)), 1, sharex=True, squeeze=False)[:, 0]
    for place, (axes, (name, values)) in enumerate(zip(panels, shown.items(), strict=False)):
        colour, middle = COLOURS[place % len(COLOURS)], median(values)
        axes.hist(values, bins=BINS, range=(0, longest), color=colour, alpha=0.75)
        axes.axvline(middle, color=INK, linewidth=1.0, linestyle="--")
        axes.set_title(
            f"{name}: {len(values):,} rows, median {middle:,.0f}",
            loc="left", fontsize=9, color=colour, pad=3,
        )  # fmt: skip
        axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        axes.set_axisbelow(True)
        axes.grid(color="#e5e5e5", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=8)
    panels[-1].set_xlabel("tokens of the response", color=INK, fontsize=9)
    figure.savefig(path, metadata={"Software": None})
