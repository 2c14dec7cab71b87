"""Batch prompts and their labels in a report's text, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path

from matplotlib.figure import Figure

from dto.drqa.probe import BOUND, Probe
from dto.reporting.batch import BatchReport, BatchRow, Labels
from dto.reporting.difficulty import DifficultyRow
from dto.reporting.picture import COLOURS, INK, MARKERS, plain, save
from dto.reporting.table import aligned, interval, number, percent, points


def batch_lines(found: BatchReport) -> list[str]:
    """Accuracy and tokens against k, by difficulty, then the labels."""
    lines: list[str] = []
    if found.rows:
        lines += ["questions in one prompt (k) against each asked alone", *_k_lines(found.rows)]
        faults = [f"k = {row.k}: " + _counted(row.faults) for row in found.rows if row.faults]
        lines += [f"answers that cannot be told, {each}" for each in faults]
    if found.difficulty:
        lines += ["", "by difficulty: the pass rate of one half of the samples asked alone"]
        lines += _difficulty_lines(found.difficulty)
    for k, reasons in found.dropped.items():
        lines.append(f"no chain, k = {k}: {_counted(reasons)}")
    if found.labels is not None:
        lines += ["", *_label_lines(found.labels)] if lines else _label_lines(found.labels)
    return lines


def _k_lines(rows: Sequence[BatchRow]) -> list[str]:
    cells: list[tuple[str, ...]] = [
        ("k", "n", "accuracy % (95 %)", "gain (95 %)", "tokens (95 %)", "% of k=1 (95 %)", "trunc",
         "fail")
    ]  # fmt: skip
    for row in rows:
        tokens = number(row.tokens, 1)
        if not isnan(row.tokens_low):
            tokens += f" ({number(row.tokens_low, 0)}–{number(row.tokens_high, 0)})"
        alone = isnan(row.ratio)
        cells.append(
            (
                str(row.k), f"{row.answers:,}",
                interval(row.accuracy, row.accuracy_low, row.accuracy_high),
                "" if alone else points(row.gain, row.gain_low, row.gain_high), tokens,
                "" if alone else interval(row.ratio, row.ratio_low, row.ratio_high),
                f"{row.truncated:,}", f"{row.failed:,}",
            )
        )  # fmt: skip
    return aligned(cells, left=1)


def _difficulty_lines(rows: Sequence[DifficultyRow]) -> list[str]:
    cells = [("right alone", "k", "n", "acc. %", "gain (95 %)", "tokens", "% of k = 1 (95 %)")]
    for row in rows:
        alone = isnan(row.gain)
        cells.append(
            (
                row.bin, row.exit.removeprefix("k = "), f"{row.problems:,}", percent(row.accuracy),
                "" if alone else points(row.gain, row.gain_low, row.gain_high),
                number(row.tokens_mean, 1),
                "" if alone
                else interval(row.tokens_ratio, row.tokens_ratio_low, row.tokens_ratio_high),
            )
        )  # fmt: skip
    return aligned(cells, left=2)


def _label_lines(labels: Labels) -> list[str]:
    lines = [f"labels, {split}: {_counted(counts)}" for split, counts in labels.counts.items()]
    lines.append(f"right letters: {_counted(labels.letters)}")
    lines.append(
        f"AUC of concise against verbose chains by format, without length: {_auc(labels.format)}"
        + (f"; above {BOUND}: the format may tell the origin" if labels.format.tells else "")
    )
    lines.append(f"… of all right batch chains against vanilla ones: {_auc(labels.format_right)}")
    base = labels.length_accuracy
    lines.append(
        f"by length alone: AUC {_auc(labels.length)}, right verdict of three "
        f"{interval(base.value, base.low, base.high)} %"
    )
    return lines


def _auc(probe: Probe) -> str:
    if isnan(probe.auc):
        return "–"
    counts = f"{probe.positive:,} + {probe.negative:,} chains"
    return f"{probe.auc:.3f} ({probe.low:.3f}–{probe.high:.3f}; {counts})"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def draw_batch(found: BatchReport, directory: Path, title: str) -> list[Path]:
    """Write `batch.png` and `batch.svg`; nothing without figures."""
    if not found.rows:
        return []
    return save(lambda: batch_figure(found, title), directory, "batch")


def batch_figure(found: BatchReport, title: str = "") -> Figure:
    """Tokens and accuracy against k.

    The line of all questions has its intervals; those of each difficulty are thin.
    """
    figure = Figure(figsize=(9.6, 4.2), dpi=150, layout="constrained")
    tokens, accuracy = figure.subplots(1, 2)
    rows = found.rows
    ks = [row.k for row in rows]
    figures = (
        (tokens, 1.0, [(row.tokens, row.tokens_low, row.tokens_high) for row in rows]),
        (accuracy, 100.0, [(row.accuracy, row.accuracy_low, row.accuracy_high) for row in rows]),
    )
    for axes, scale, by_k in figures:
        axes.errorbar(
            ks,
            [scale * value for value, _, _ in by_k],
            yerr=[
                [scale * max(0.0, value - low) for value, low, _ in by_k],
                [scale * max(0.0, high - value) for value, _, high in by_k],
            ],
            fmt="o-", color=INK, capsize=3, linewidth=1.8, label="all questions",
        )  # fmt: skip
    bins = list(dict.fromkeys(row.bin for row in found.difficulty))
    for place, bin in enumerate(bins):
        part = [row for row in found.difficulty if row.bin == bin]
        own_ks = [int(row.exit.removeprefix("k = ")) for row in part]
        style = {"color": COLOURS[(place + 1) % len(COLOURS)], "linewidth": 0.9, "markersize": 4}
        label = f"right alone: {bin}"
        marker = f"{MARKERS[(place + 1) % len(MARKERS)]}-"
        tokens.plot(own_ks, [row.tokens_mean for row in part], marker, label=label, **style)
        shares = [100 * row.accuracy for row in part]
        accuracy.plot(own_ks, shares, marker, label=label, **style)
    for axes, what in ((tokens, "tokens per question"), (accuracy, "accuracy, %")):
        axes.set_xticks(ks)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("questions in one prompt", color=INK)
        axes.set_ylabel(what, color=INK)
        plain(axes)
    if title:
        figure.suptitle(title, fontsize=10, color=INK)
    handles, names = tokens.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=8.5,
                  labelcolor=INK)  # fmt: skip
    return figure
