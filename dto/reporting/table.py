"""A report as text for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from dto.reporting.comparison import MAX_FAILED, Comparison, ReportRow
from dto.reporting.cost import BreakEven, StageCost

MEBIBYTE = 2**20


def evaluation_lines(rows: Sequence[ReportRow], comparisons: Sequence[Comparison]) -> list[str]:
    """Accuracy and gain of each model under each exit, then tokens, FLOPs and seconds."""
    against = {(each.model, each.exit): each for each in comparisons}
    accuracy: list[tuple[str, ...]] = [
        ("model", "exit", "accuracy % (95 %)", "gain over base (95 %)", "pass@n", "trunc", "failed")
    ]
    cost: list[tuple[str, ...]] = [
        (
            "model",
            "exit",
            "tokens",
            "% of base (95 %)",
            "trial",
            "effic.",
            "FLOPs",
            "s p50",
            "s p95",
        )
    ]
    for row in rows:
        name = (_short(row.model), row.exit)
        other = against.get((row.model, row.exit))
        accuracy.append(
            (
                *name, _with_interval(row.accuracy, row.accuracy_low, row.accuracy_high),
                _gain(other), _percent(row.pass_at_samples), f"{row.truncated}", f"{row.failed}",
            )
        )  # fmt: skip
        ratio = "" if other is None else _with_interval(
            other.tokens_ratio, other.tokens_ratio_low, other.tokens_ratio_high
        )  # fmt: skip
        cost.append(
            (
                *name, _number(row.tokens_mean, 1), ratio, _number(row.trial_tokens_mean, 1),
                _number(row.efficiency, 2), _power(row.attention_flops_mean),
                _number(row.seconds_p50, 2), _number(row.seconds_p95, 2),
            )
        )  # fmt: skip
    lines = [*aligned(accuracy, left=2), "", *aligned(cost, left=2)]
    if any(each.verdict == "too many failed" for each in comparisons):
        lines.append(
            f"More than {MAX_FAILED:.0%} of the responses failed: nothing is claimed there."
        )
    return lines


def _gain(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    if comparison.verdict == "too many failed":
        return comparison.verdict
    points = (comparison.gain, comparison.gain_low, comparison.gain_high)
    return "{:+.1f} ({:+.1f}…{:+.1f})".format(*(100 * point for point in points))


def cost_lines(costs: Sequence[StageCost], even: BreakEven | None) -> list[str]:
    """Tokens, FLOPs, seconds and memory of each stage, and the break-even number of questions."""
    cells = [("stage", "tokens", "read", "cached", "trained", "attention FLOPs", "seconds", "MiB")]
    for cost in costs:
        cells.append(
            (
                cost.stage, f"{cost.tokens:,}", f"{cost.prompt_tokens:,}",
                f"{cost.cached_tokens:,}", f"{cost.trained_tokens:,}",
                _power(cost.attention_flops),
                "–" if cost.seconds is None else f"{cost.seconds:,.1f}",
                "–" if cost.peak_memory is None else f"{cost.peak_memory / MEBIBYTE:,.0f}",
            )
        )  # fmt: skip
    lines = aligned(cells, left=1)
    if even is not None:
        line = f"Spent on optimization: {even.tokens_spent:,} tokens. "
        if even.questions is None:
            line += "The trained model saves none: it never pays."
        else:
            line += (
                f"Saved per question: {even.tokens_saved_per_question:,.1f}. "
                f"Paid for after {even.questions:,} questions"
            )
            if even.questions_by_flops is not None:
                line += f" ({even.questions_by_flops:,} by attention FLOPs)"
            line += "."
        lines.append(line)
    return lines


def funnel_lines(funnel: Mapping[str, Any], training: Mapping[str, Any] | None) -> list[str]:
    """How many rows went which way, and how training went."""
    lines = []
    for key in ("trajectories", "boundaries", "optimized", "pairs"):
        if counts := funnel[key]:
            parts = ", ".join(f"{count:,} {name}" for name, count in counts.items())
            lines.append(f"{key:<12} {sum(counts.values()):>7,}   {parts}")
    for stage, reasons in funnel["dropped"].items():
        parts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        lines.append(f"{'dropped':<12} {sum(reasons.values()):>7,}   at {stage}: {parts}")
    if training is not None:
        base, kept = training["base"], training["kept"]
        lines.append(
            f"{'training':<12} {training['steps']:>7,}   steps; dev accuracy "
            f"{_percent(base['accuracy'])} → {_percent(kept['accuracy'])} %, tokens "
            f"{_number(base['tokens_mean'], 0)} → {_number(kept['tokens_mean'], 0)}"
            f" at step {kept['step']}" + ("; collapsed" if training["collapsed"] else "")
        )
    return lines


def aligned(cells: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns two spaces apart, the first `left` of them flush left; a rule below the head."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return [lines[0], "─" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]


def _short(model: str) -> str:
    return model if len(model) <= 16 else f"…{model[-15:]}"


def _with_interval(share: float, low: float, high: float) -> str:
    return f"{_percent(share)} ({_percent(low)}–{_percent(high)})"


def _power(value: float | None) -> str:
    return "–" if value is None or isnan(value) else f"{value:.1e}"


def _percent(share: float | None) -> str:
    return "–" if share is None or isnan(share) else f"{100 * share:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or isnan(value) else f"{value:,.{digits}f}"
