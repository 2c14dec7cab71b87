"""A comparison as text for a terminal."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

from dto.reporting.table import aligned

if TYPE_CHECKING:
    from dto.baselines.records import Comparison, MethodRow


def lines_of(result: Comparison) -> list[str]:
    """The head, a line a method, and what they have in common."""
    seeds = f", seeds {', '.join(map(str, result.seeds))}" if len(result.seeds) > 1 else ""
    lines = [
        f"{result.name}: {result.problems:,} test problems × {result.samples} samples{seeds}",
        "",
    ]
    own = f"Δ {result.reference}"
    cells: list[tuple[str, ...]] = [
        ("method", "accuracy % (95 %)", f"{own}, points (95 %)", "p", "rank",
         "tokens (95 %)", f"{own} (95 %)", "p", "rank", "picked on dev")
    ]  # fmt: skip
    for row in result.rows:
        reference = row.method == result.reference
        cells.append(
            (
                row.method,
                span(100 * row.accuracy, 100 * row.accuracy_low, 100 * row.accuracy_high),
                "" if reference else change(
                    100 * row.gain, 100 * row.gain_low, 100 * row.gain_high),
                "" if reference else p_value(row.gain_p),
                rank(row.accuracy_rank),
                span(row.tokens, row.tokens_low, row.tokens_high),
                "" if reference else change(
                    row.tokens_change, row.tokens_change_low, row.tokens_change_high),
                "" if reference else p_value(row.tokens_change_p),
                rank(row.tokens_rank),
                picked(row),
            )
        )  # fmt: skip
    lines += aligned(cells, left=1)
    lines += [
        "",
        f"Budget: {result.budget:,} policy tokens for each training, generated for it or trained "
        "on. Means used, and of them generated for its data:",
    ]
    lines += aligned(
        [
            ("method", "policy tokens", "data", "core seconds"),
            *(
                (
                    row.method, f"{row.policy_tokens:,.0f}", f"{row.charged:,}",
                    f"{row.cpu_seconds:,.0f}",
                )
                for row in result.rows
            ),
        ],
        left=1,
    )  # fmt: skip
    lines += _judging(result)
    lines.append("")
    pairs = len(result.rows) * (len(result.rows) - 1) // 2
    lines.append(
        f"p: paired bootstrap over problems, Holm's correction over the {pairs} pairs of methods."
    )
    if all(row.accuracy_rank is None for row in result.rows):
        lines.append(f"{result.problems} problems are too few to rank methods: none is ranked.")
    else:
        lines.append("rank: 1 + the number of methods shown to be better (p < 0.05).")
    return lines


def _judging(result: Comparison) -> list[str]:
    """How well held-out chains are judged, of the methods that are trained on labelled ones."""
    if not result.judging:
        return []
    cells = [("method", "before (95 %)", "after, at each point of its grid")]
    for method, (before, *after) in result.judging.items():
        shown = [span(*(100 * each for each in figures)) for figures in (before, *after)]
        cells.append((method, shown[0], ", ".join(shown[1:])))
    return ["", "Right judgements of held-out chains, %:", *aligned(cells, left=3)]


def picked(row: MethodRow) -> str:
    """What dev chose, for each seed; empty for a method that has no grid."""
    if not row.picked:
        return ""
    return "; ".join(each or "none: base is kept" for each in row.picked)


def span(value: float, low: float, high: float) -> str:
    """A figure with its interval."""
    return f"{value:.1f} ({low:.1f}–{high:.1f})"


def change(value: float, low: float, high: float) -> str:
    """A difference with its interval."""
    return "{:+.1f} ({:+.1f}…{:+.1f})".format(
        *(round(each, 1) + 0.0 for each in (value, low, high))
    )


def p_value(value: float) -> str:
    """A p-value to three digits; empty for none."""
    return "" if isnan(value) else f"{value:.3f}" if value >= 0.001 else "<0.001"


def rank(value: int | None) -> str:
    """A rank; a dash for none."""
    return "–" if value is None else str(value)
