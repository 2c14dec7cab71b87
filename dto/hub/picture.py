"""How long responses are before and after: the picture of a dataset card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dto.reporting.picture import COLOURS, INK

BINS = 40


def draw_lengths(lengths: Mapping[str, Sequence[int]], path: Path) -> None:
    """Write histograms of token counts, one outline for each kind; same counts, same bytes."""
    shown = {name: values for name, values in lengths.items() if len(values)}
    longest = max((max(values) for values in shown.values()), default=1)
    figure = Figure(figsize=(8.6, 3.8), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for place, (name, values) in enumerate(shown.items()):
        axes.hist(
            values,
            bins=BINS,
            range=(0, longest),
            histtype="step",
            linewidth=1.6,
            color=COLOURS[place % len(COLOURS)],
            label=f"{name} ({len(values):,})",
        )
    if shown:
        axes.legend(frameon=False, fontsize=8.5, labelcolor="linecolor")
    axes.set_xlabel("tokens of the response", color=INK)
    axes.set_ylabel("rows", color=INK)
    axes.set_axisbelow(True)
    axes.grid(color="#e5e5e5", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    figure.savefig(path, metadata={"Software": None})
