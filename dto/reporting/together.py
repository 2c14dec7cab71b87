"""What the page of a run says of batch prompts (2508.17803): the figure, labels, judging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING, Any

from dto.drqa.probe import BOUND, told
from dto.reporting.batch import BatchReport, BatchRow, Labels
from dto.reporting.batch_view import batch_figure
from dto.reporting.page import Section, drawn
from dto.reporting.table import Table, interval, number, percent, points

if TYPE_CHECKING:
    from dto.reporting.report import Report


def batch_section(report: Report) -> Section | None:
    """Questions asked together, labels and judging; None for a run that has none of these."""
    found, judging = report.batch, (report.training or {}).get("judging")
    if found is None and not judging:
        return None
    text, tables, notes = [], [], []
    if found is not None and found.rows:
        text.append("k questions stand in one prompt; k = 1 is each asked alone. Tokens of a "
                    "response count in equal parts for its questions; gains and shares are "
                    "against the same questions asked alone. Coloured lines are questions by how "
                    "often they are right alone, on the other half of the samples.")  # fmt: skip
        tables.append(_by_k(found.rows))
    if found is not None and found.labels is not None:
        tables.append(_counts(found.labels))
        notes += _told_by(found.labels)
    if judging:
        tables.append(_judging(judging))
    if groups := (report.training or {}).get("groups"):
        share = groups["flat"] / groups["groups"] if groups["groups"] else float("nan")
        notes.append(f"Of {groups['groups']:,} groups of responses {percent(share)} % had no "
                     "advantage: all of their rewards were equal.")  # fmt: skip
    if found is not None and found.dropped:
        tables.append(_dropped(found))
    figure = None
    if found is not None and found.rows:
        says = "; ".join(
            f"k = {row.k}: {number(row.tokens, 0)} tokens, {percent(row.accuracy)} % right"
            for row in found.rows
        )
        figure = drawn("batch", f"Questions in one prompt. {says}", batch_figure, found)
    title = "Questions asked together" if figure else "Chains that are judged"
    return Section("batch", title, tuple(text), figure, tuple(tables), notes=tuple(notes))


def _by_k(rows: Sequence[BatchRow]) -> Table:
    return Table(
        "", ("k", "answers", "accuracy %", "gain, points", "tokens", "% of k = 1", "truncated",
         "failed"),
        tuple(
            (
                str(row.k), f"{row.answers:,}",
                interval(row.accuracy, row.accuracy_low, row.accuracy_high),
                "–" if isnan(row.gain) else points(row.gain, row.gain_low, row.gain_high),
                _tokens(row),
                "–" if isnan(row.ratio) else interval(row.ratio, row.ratio_low, row.ratio_high),
                f"{row.truncated:,}", f"{row.failed:,}",
            )
            for row in rows
        ),
    )  # fmt: skip


def _tokens(row: BatchRow) -> str:
    ends = "" if isnan(row.tokens_low) else (
        f" ({number(row.tokens_low, 1)}–{number(row.tokens_high, 1)})"
    )  # fmt: skip
    return number(row.tokens, 1) + ends


def _counts(labels: Labels) -> Table:
    verdicts = list(dict.fromkeys(name for counts in labels.counts.values() for name in counts))
    return Table(
        "", ("labelled chains", *verdicts),
        tuple(
            ({"dev": "held out"}.get(split, split),
             *(f"{counts.get(name, 0):,}" for name in verdicts))
            for split, counts in labels.counts.items()
        ),
    )  # fmt: skip


def _told_by(labels: Labels) -> list[str]:
    base = labels.length_accuracy
    above = f" Above {BOUND} the format may tell the origin." if labels.format.tells else ""
    return [
        f"AUC of concise against verbose chains, by their format without length: "
        f"{told(labels.format)}, {labels.format.positive:,} + {labels.format.negative:,} chains; "
        f"of all right batch chains against vanilla ones: {told(labels.format_right)}.{above} "
        "AUC is the chance that a classifier puts a chain of the first kind above one of the "
        "other: 0.5 tells nothing.",
        f"A judge that sees the length alone: AUC {told(labels.length)}, the right verdict of "
        f"three on {interval(base.value, base.low, base.high)} %.",
    ]


def _judging(judging: Mapping[str, Any]) -> Table:
    names = sorted({name for each in judging.values() for name in each["recall"]})
    return Table(
        "", ("judging held-out chains", "step", "right %", *(f"{name} %" for name in names),
         "without a letter", "judgements", "tokens"),
        tuple(
            (
                when, f"{each['step']:,}", interval(each["accuracy"], each["low"], each["high"]),
                *(percent(each["recall"].get(name)) for name in names),
                f"{each['unreadable']:,}", f"{each['responses']:,}",
                number(each["tokens_mean"], 1),
            )
            for when, each in (("before", judging["before"]), ("of what is kept", judging["kept"]))
        ),
    )  # fmt: skip


def _dropped(found: BatchReport) -> Table:
    return Table(
        "Questions without a chain", ("k", "no chain", "why"),
        tuple(
            (k, f"{sum(reasons.values()):,}",
             "; ".join(f"{count:,} {reason}" for reason, count in reasons.items()))
            for k, reasons in found.dropped.items()
        ),
        folded=True,
        wide=True,
    )  # fmt: skip
