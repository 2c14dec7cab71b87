"""A trajectory's thinking at a glance: its segments in proportion, and p at each boundary."""

from __future__ import annotations

from collections import Counter
from math import isfinite

from dto.records import ExitEstimate
from dto.viewer.figures import interval
from dto.viewer.nodes import Element, data, el
from dto.viewer.views import TrajectoryView

KINDS = (
    "opening", "understanding", "plan", "derivation", "hypothesis", "verification", "alternative",
    "summary", "conclusion", "loop",
)  # fmt: skip
DENSE = 120  # segments from which on gaps between them would be all that is seen


def kind_class(kind: str) -> str:
    """The class that colours a kind of segment."""
    return f"k-{kind}" if kind in KINDS else "k-other"


def overview(view: TrajectoryView) -> Element | None:
    """The thinking at a glance: segments in proportion, and p with its interval above them."""
    if not view.segments:
        return None
    whole = max(1, view.segments[-1].tokens.end - view.segments[0].tokens.start)
    first = view.segments[0].tokens.start
    estimates = {row.boundary: row for row in view.estimates}
    removed = left_out(view)
    ribbon, points = [], []
    for segment in view.segments:
        gone = ".gone" if segment.index in removed else ""
        ribbon.append(
            el(
                f"i.{kind_class(segment.kind)}{gone}",
                title=f"{segment.index} {segment.kind}, {segment.tokens.length:,} tokens",
                style=f"--w:{segment.tokens.length / whole * 100:.3f}",
                data_go=segment.index,
            )
        )
        if (row := estimates.get(segment.index)) is not None:
            x = (segment.tokens.end - first) / whole * 100
            taken = view.optimized is not None and view.optimized.exit == segment.index
            points.append(
                el(
                    "i.taken" if taken else "i",
                    title=f"after {segment.index}: p {probability(row)}",
                    style=f"--x:{x:.3f};{p_style(row)}",
                    data_go=segment.index,
                )
            )
    line = None
    if points and isfinite(view.threshold):
        label = el("span", f"threshold {view.threshold:g}")
        line = el("b", label, style=f"--p:{view.threshold * 100:.1f}")
    counts = Counter(segment.kind for segment in view.segments)
    known = [kind for kind in KINDS if kind in counts]
    legend = [
        el(f"span.kind.{kind_class(kind)}", data(kind), f" {counts[kind]}")
        for kind in (*known, *sorted(set(counts) - set(known)))
    ]
    if points:
        legend.append(el("span.key.dot", "chance p of a right answer at a boundary, 95 % interval"))
    if any("taken" in point.tag for point in points):
        legend.append(el("span.key.dot.taken", "exit"))
    if removed:
        legend.append(el("span.key.gone", "removed"))
    scale = [el("span.scale.high", "1"), el("span.scale.low", "p 0")]
    name = "Exit probability at each boundary, over segments in proportion to their tokens"
    dense = ".dense" if len(view.segments) > DENSE else ""
    return el(  # said in words below: a screen reader passes over the drawing
        "figure.map",
        el("div.points", scale, line, points, aria_hidden="true") if points else None,
        el(f"div.ribbon{dense}", ribbon, aria_hidden="true"),
        el("figcaption", legend),
        aria_label=name,
    )


def left_out(view: TrajectoryView) -> set[int]:
    """The segments that the optimized version does not have."""
    if view.optimized is None:
        return set()
    return {segment.index for segment in view.segments} - set(view.optimized.kept)


def p_style(row: ExitEstimate) -> str:
    """Where p and its interval stand on a scale, for the style sheet."""
    p = row.p if isfinite(row.p) else 0.5
    return f"--p:{p * 100:.1f};--l:{row.p_low * 100:.1f};--h:{row.p_high * 100:.1f}"


def probability(row: ExitEstimate) -> str:
    """P with its interval."""
    return interval(row.p, row.p_low, row.p_high)
