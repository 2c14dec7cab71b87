"""How figures are written: the same in the page, in notebooks and in terminals."""

from __future__ import annotations

from math import isfinite

from dto.records import OptimizedTrajectory
from dto.statistics import clopper_pearson

GRADE_SIGNS = {"correct": "✓", "wrong": "✗", "truncated": "…", "failed": "!"}
_SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def decimal(value: float) -> str:
    """Two decimals; a dash for no value."""
    return f"{value:.2f}" if isfinite(value) else "–"


def interval(value: float, low: float, high: float) -> str:
    """`0.94 (0.71–1.00)`."""
    return f"{decimal(value)} ({low:.2f}–{high:.2f})"


def verified(version: OptimizedTrajectory) -> str:
    """The success rate after a prune with its 95 % interval (Clopper-Pearson), and what it is of.

    Empty where it is not known.
    """
    trials = version.verified_rollouts
    if not trials or not isfinite(version.verified_p):
        return ""
    low, high = clopper_pearson(round(version.verified_p * trials), trials)
    return f"{interval(version.verified_p, low, high)}, {trials} fresh rollouts"


def saved(before: float, after: float) -> str:
    """What became of a length: `−78 %`; empty where it is not known."""
    if not (isfinite(before) and isfinite(after)) or before <= 0:
        return ""
    percent = round((after / before - 1) * 100)
    return f"{'+' if percent > 0 else '−' if percent else '±'}{abs(percent)} %"


def change(before: int, after: int) -> str:
    """`356 → 80 (−78 %)`."""
    return f"{before:,} → {after:,} ({saved(before, after) or '–'})"


def scaled(value: float) -> str:
    """Three digits and a unit: `124 M`; a dash for no value."""
    if not isfinite(value):
        return "–"
    for scale, unit in _SCALES:
        if abs(value) >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g}"


def flops_change(before: float, after: float) -> str:
    """`124 M → 12.1 M (−90 %)`; a dash where the model's shape is not known."""
    if not (isfinite(before) and isfinite(after)):
        return "–"
    return f"{scaled(before)} → {scaled(after)} ({saved(before, after) or '–'})"
