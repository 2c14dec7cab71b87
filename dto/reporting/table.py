"""A report as text for a terminal of 100 columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan
from textwrap import wrap
from typing import Any

from markupsafe import Markup

from dto.reporting.comparison import MAX_FAILED, Comparison, ReportRow
from dto.reporting.cost import BreakEven, StageCost
from dto.reporting.difficulty import DifficultyRow
from dto.reporting.macro import AverageRow
from dto.statistics import Estimate, shown

MEBIBYTE = 2**20
Cell = str | int | float | Estimate | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table for terminal, page, Markdown and CSV.

    Cells are values; a number or an estimate is shown by its column's entry of `formats`
    (:func:`dto.statistics.shown`; integers with separators of thousands without one), and None is
    an empty cell. The first `left` columns are flush left, the others flush right. On a page a
    `folded` table is shown on demand under its title, and the last column of a `wide` one holds
    text that wraps.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    left: int = 1
    folded: bool = False
    wide: bool = False

    def cells(self, empty: str = "") -> list[list[str]]:
        """The rows as text, `empty` where there is nothing."""
        formats = self.formats or ("",) * len(self.head)
        return [
            [_text(cell, spec, empty) for cell, spec in zip(row, formats, strict=True)]
            for row in self.rows
        ]

    def text(self) -> str:
        """For a terminal: columns two spaces apart, a rule below the head."""
        lines = aligned([self.head, *self.cells()], self.left)
        return "\n".join([*filter(None, [self.title]), *lines, *self.notes])

    def html(self) -> Markup:
        """For a page, escaped; a dash where there is nothing."""
        left = [place < self.left for place in range(len(self.head))]
        left[-1] = left[-1] or self.wide
        sides = [Markup(' class="left"' if flush else "") for flush in left]
        head = Markup().join(
            Markup('<th scope="col"{}>{}</th>').format(side, name)
            for side, name in zip(sides, self.head, strict=True)
        )
        lines = [
            Markup('<div class="scroll" tabindex="0" role="region" aria-label="{}">').format(
                self.title or ", ".join(self.head)
            ),
            Markup('<table class="wide">' if self.wide else "<table>"),
            Markup("<thead><tr>{}</tr></thead>").format(head),
            Markup("<tbody>"),
        ]
        if self.title and not self.folded:
            lines.insert(2, Markup("<caption>{}</caption>").format(self.title))
        for first, *others in self.cells(empty="–"):
            cells = [Markup('<th scope="row" class="left">{}</th>').format(first)]
            cells += [
                Markup("<td{}>{}</td>").format(side, cell)
                for side, cell in zip(sides[1:], others, strict=True)
            ]
            lines.append(Markup("<tr>{}</tr>").format(Markup().join(cells)))
        lines += [Markup("</tbody>"), Markup("</table>"), Markup("</div>")]
        lines += [Markup('<p class="note">{}</p>').format(note) for note in self.notes]
        if self.folded:
            opened = Markup("<details>\n<summary>{}</summary>").format(self.title)
            lines = [opened, *lines, Markup("</details>")]
        return Markup("\n").join(lines)

    def markdown(self) -> str:
        """For GitHub and the Hub."""
        lines = [self.head, ["---"] * len(self.head), *self.cells()]
        table = "\n".join(
            f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines
        )
        parts = [f"## {self.title}"] if self.title else []
        return "\n\n".join([*parts, table, *self.notes])

    def csv(self) -> str:
        """The values as they are, empty where there is none; an estimate has three columns."""
        wide = [
            any(isinstance(row[place], Estimate) for row in self.rows)
            for place in range(len(self.head))
        ]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for line in (self.head, *self.rows):
            writer.writerow(
                value
                for cell, three in zip(line, wide, strict=True)
                for value in (_values(cell) if three else [_value(cell)])
            )
        return text.getvalue()


def _text(cell: Cell, spec: str, empty: str) -> str:
    if cell is None or isinstance(cell, str):
        return empty if cell is None else cell
    if isinstance(cell, Estimate):
        return format(cell, spec)
    return format(cell, ",") if isinstance(cell, int) and not spec else shown(cell, spec)


def _value(cell: Cell) -> Any:
    return "" if cell is None or (isinstance(cell, float) and not isfinite(cell)) else cell


def _values(cell: Cell) -> list[Any]:
    """An estimate, or the name of a column of estimates, as value and ends of the interval."""
    if isinstance(cell, Estimate):
        return [_value(cell.value), _value(cell.low), _value(cell.high)]
    return [cell, f"{cell}_low", f"{cell}_high"] if isinstance(cell, str) else ["", "", ""]


def evaluation_lines(rows: Sequence[ReportRow], comparisons: Sequence[Comparison]) -> list[str]:
    """Accuracy and gain of each model under each exit, then tokens, FLOPs and seconds.

    `gain` is over the base; `compl.` is the accuracy over completed responses.
    """
    against = {(each.model, each.exit): each for each in comparisons}
    accuracy: list[tuple[str, ...]] = [
        ("model", "exit", "accuracy % (95 %)", "gain (95 %)", "compl.", "pass@n", "trunc", "failed")
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
        name = (short(row.model), row.exit)
        other = against.get((row.model, row.exit))
        accuracy.append(
            (
                *name, interval(row.accuracy, row.accuracy_low, row.accuracy_high),
                gained(other), percent(row.accuracy_completed), percent(row.pass_at_samples),
                f"{row.truncated}", f"{row.failed}",
            )
        )  # fmt: skip
        ratio = "" if other is None else interval(
            other.tokens_ratio, other.tokens_ratio_low, other.tokens_ratio_high
        )  # fmt: skip
        cost.append(
            (
                *name, number(row.tokens_mean, 1), ratio, number(row.trial_tokens_mean, 1),
                number(row.efficiency, 2), _power(row.attention_flops_mean),
                number(row.seconds_p50, 2), number(row.seconds_p95, 2),
            )
        )  # fmt: skip
    lines = [*aligned(accuracy, left=2), "", *aligned(cost, left=2)]
    if any(each.verdict == "too many failed" for each in comparisons):
        lines.append(
            f"More than {MAX_FAILED:.0%} of the responses failed: nothing is claimed there."
        )
    return lines


def gained(comparison: Comparison | None) -> str:
    """What a comparison with the base gained, in points; empty for the base itself."""
    if comparison is None:
        return ""
    if comparison.verdict == "too many failed":
        return comparison.verdict
    return points(comparison.gain, comparison.gain_low, comparison.gain_high)


def points(gain: float, low: float, high: float) -> str:
    """A difference of shares in percentage points, with its interval."""
    if isnan(gain):
        return "–"
    return f"{100 * gain:+.1f} ({100 * low:+.1f}…{100 * high:+.1f})"


def average_lines(rows: Sequence[AverageRow]) -> list[str]:
    """The means over tasks."""
    cells = [("model", "exit", "accuracy % (95 %)", "gain (95 %)", "tokens", "% of base (95 %)")]
    for row in rows:
        ratio = (row.tokens_ratio, row.tokens_ratio_low, row.tokens_ratio_high)
        gain = (row.gain, row.gain_low, row.gain_high)
        base = ratio == (1, 1, 1) and gain == (0, 0, 0)
        cells.append(
            (
                short(row.model), row.exit,
                interval(row.accuracy, row.accuracy_low, row.accuracy_high),
                "" if base else points(*gain), number(row.tokens_mean, 1),
                "" if base else interval(*ratio),
            )
        )  # fmt: skip
    return [f"mean over {rows[0].tasks} tasks", *aligned(cells, left=2)] if rows else []


def difficulty_lines(rows: Sequence[DifficultyRow]) -> list[str]:
    """Gain and tokens by the base's pass rate."""
    cells = [
        (
            "base right",
            "model",
            "exit",
            "n",
            "acc. %",
            "gain (95 %)",
            "tokens",
            "% of base",
        )
    ]
    for row in rows:
        base = isnan(row.gain)
        cells.append(
            (
                row.bin, short(row.model), row.exit, f"{row.problems:,}", percent(row.accuracy),
                "" if base else points(row.gain, row.gain_low, row.gain_high),
                number(row.tokens_mean, 1), "" if base else percent(row.tokens_ratio),
            )
        )  # fmt: skip
    if not rows:
        return []
    head = "by difficulty: the base's pass rate on one half of the samples, figures from the other"
    return [head, *aligned(cells, left=3)]


def cost_lines(costs: Sequence[StageCost], even: BreakEven | None) -> list[str]:
    """Tokens, FLOPs, seconds and memory of each stage, and the break-even number of questions."""
    cells = [("stage", "tokens", "read", "cached", "trained", "attention FLOPs", "model FLOPs",
              "seconds", "MiB")]  # fmt: skip
    for cost in costs:
        cells.append(
            (
                cost.stage, f"{cost.tokens:,}", f"{cost.prompt_tokens:,}",
                f"{cost.cached_tokens:,}", f"{cost.trained_tokens:,}",
                _power(cost.attention_flops), _power(cost.model_flops),
                "–" if cost.seconds is None else f"{cost.seconds:,.1f}",
                "–" if cost.peak_memory is None else f"{cost.peak_memory / MEBIBYTE:,.0f}",
            )
        )  # fmt: skip
    lines = aligned(cells, left=1)
    for cost in costs:
        if cost.money is not None:
            lines.append(
                f"The {cost.stage}'s tokens cost {cost.money:,.4g} at the recipe's prices."
            )
    if even is not None:
        lines += [*paid_for(even), *wrap(" ".join(paid_in_flops(even)), 100)]
    return lines


def paid_for(even: BreakEven) -> list[str]:
    """What was spent and what a question saves; after how many of them that is paid for."""
    ends = (even.tokens_saved_low, even.tokens_saved_high)
    saved = _with_ends(even.tokens_saved_per_question, *ends)
    spent = (
        f"Spent on optimizing and training: {even.tokens_spent:,} tokens, generated or trained on."
    )
    if even.questions is None:
        if even.tokens_saved_per_question < 0:
            more = _with_ends(-even.tokens_saved_per_question, -ends[1], -ends[0])
            took = f"takes {more} tokens more"
        else:
            took = f"saves {saved} tokens"
        best = "it never pays"
        if even.questions_low is not None:
            best = f"that never pays, at the interval's better end after {even.questions_low:,}"
        return [spent, f"The trained model {took} a question: {best}."]
    after = f"{even.questions:,}"
    if even.questions_low is not None:
        last = "never" if even.questions_high is None else f"{even.questions_high:,}"
        after += f" ({even.questions_low:,}…{last})"
    return [
        spent,
        f"Saved by the trained model: {saved} a question.",
        f"Paid for after {after} questions.",
    ]


def paid_in_flops(even: BreakEven) -> list[str]:
    """What the count of tokens leaves out; then the same in model FLOPs, which have all of it."""
    lines = [
        f"This leaves out the reading of {even.tokens_read:,} tokens of prompts that were not in "
        "the cache, and that training on a token takes two to four times what generating it takes."
    ]
    spent, saved = even.model_flops_spent, even.model_flops_saved_per_question
    if spent is None or saved is None:
        return [
            *lines,
            f"In model FLOPs, which have that, it is not known ({even.model_flops_missing}).",
        ]
    judge = ", without the judge's, whose size is not known," if even.without_judge else ""
    lines.append(f"In model FLOPs, which have that: {_power(spent)} spent{judge}")
    ends = (even.model_flops_saved_low, even.model_flops_saved_high)
    shown = "" if isnan(ends[0]) else f" ({_power(ends[0])}…{_power(ends[1])})"
    lines[-1] += f" and {_power(saved)}{shown} saved a question:"
    after, first = even.questions_by_model_flops, even.questions_by_model_flops_low
    last = even.questions_by_model_flops_high
    if after is None:
        better = (
            "" if first is None else f"; at the interval's better end after {first:,} questions"
        )
        return [*lines, f"it never pays{better}."]
    between = f" ({first:,}…{'never' if last is None else f'{last:,}'})" if first else ""
    return [*lines, f"paid for after {after:,}{between} questions."]


def _with_ends(value: float, low: float, high: float) -> str:
    ends = "" if isnan(low) else f" ({number(low, 1)}…{number(high, 1)})"
    return number(value, 1) + ends


def funnel_lines(funnel: Mapping[str, Any], training: Mapping[str, Any] | None) -> list[str]:
    """How many rows went which way, and how training went."""
    lines = []
    for key in (
        "trajectories", "ungraded", "boundaries", "verdicts", "prunes", "optimized", "pairs",
    ):  # fmt: skip
        if counts := funnel.get(key):
            parts = ", ".join(f"{count:,} {name}" for name, count in counts.items())
            lines.append(f"{key.replace('_', ' '):<12} {sum(counts.values()):>7,}   {parts}")
    for stage, reasons in funnel["dropped"].items():
        parts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        lines.append(f"{'dropped':<12} {sum(reasons.values()):>7,}   at {stage}: {parts}")
    for stage, reasons in (funnel.get("given_up_at") or {}).items():
        parts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        lines.append(f"{'given up':<12} {sum(reasons.values()):>7,}   at {stage}: {parts}")
    if copies := funnel.get("near_duplicates"):
        lines += wrap(near_copies(copies), 100)
    if training is not None:
        base, kept = training["base"], training["kept"]
        lines.append(
            f"{'training':<12} {training['steps']:>7,}   steps; dev accuracy "
            f"{percent(base['accuracy'])} → {percent(kept['accuracy'])} %, tokens "
            f"{number(base['tokens_mean'], 0)} → {number(kept['tokens_mean'], 0)}"
            f" at step {kept['step']}" + ("; collapsed" if training["collapsed"] else "")
        )
        lines += _judging_lines(training)
    if found := funnel.get("agreement"):
        lines += ["", *_agreement_lines(found)]
    return lines


def near_copies(counts: Mapping[str, int]) -> str:
    """How many problems may have leaked from one split into another."""
    parts = ", ".join(f"{count:,} of {split}" for split, count in counts.items())
    return (
        f"Problems that repeat half or more of a question of another split: {parts}. Their "
        "metadata names it; set problems.near_duplicates to drop to leave them out."
    )


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


def short(model: str) -> str:
    """The end of a long name."""
    return model if len(model) <= 16 else f"…{model[-15:]}"


def interval(share: float, low: float, high: float) -> str:
    """A share in percent, with its interval."""
    return f"{percent(share)} ({percent(low)}–{percent(high)})"


def _power(value: float | None) -> str:
    return "–" if value is None or isnan(value) else f"{value:.1e}"


def percent(share: float | None) -> str:
    """A share in percent; a dash for none."""
    return "–" if share is None or isnan(share) else f"{100 * share:.1f}"


def number(value: float | None, digits: int) -> str:
    """A figure; a dash for none."""
    return "–" if value is None or isnan(value) else f"{value:,.{digits}f}"


def _judging_lines(training: Mapping[str, Any]) -> list[str]:
    """Groups that taught nothing, and how held-out chains were judged before and after."""
    lines = []
    if groups := training.get("groups"):
        share = groups["flat"] / groups["groups"] if groups["groups"] else None
        letters = f", {groups['unreadable']:,} responses without a letter"
        lines.append(
            f"{'groups':<12} {groups['groups']:>7,}   of responses to train on; "
            f"{percent(share)} % without advantage" + (letters if training.get("judging") else "")
        )
    if judging := training.get("judging"):
        before, kept = judging["before"], judging["kept"]
        shown = [interval(each["accuracy"], each["low"], each["high"]) for each in (before, kept)]
        letters = f"{before['unreadable']:,} → {kept['unreadable']:,} without a letter"
        lines.append(
            f"{'judging':<12} {kept['responses']:>7,}   judgements of held-out chains; "
            f"right {' → '.join(shown)} %, {letters}"
        )
        recall = [
            f"{name} {percent(before['recall'].get(name))} → {percent(share)}"
            for name, share in kept["recall"].items()
        ]
        lines.append(f"{'':<12} {'':>7}   right by label: {', '.join(recall)} %")
    return lines


def _agreement_lines(found: Mapping[str, Any]) -> list[str]:
    """The llm judge's verdicts by those of the counterfactual judge on the same patterns."""
    rate = interval(found["rate"], found["rate_low"], found["rate_high"])
    kappa, *ends = (number(found[key], 2) for key in ("kappa", "kappa_low", "kappa_high"))
    table = found["table"]
    columns = sorted({name for counts in table.values() for name in counts})
    cells = [("llm \\ counterfactual", *columns)]
    cells += [(row, *(f"{counts.get(name, 0):,}" for name in columns))
              for row, counts in table.items()]  # fmt: skip
    return [
        f"The judges agree on whether {found['patterns']:,} patterns of {found['trajectories']:,} "
        "trajectories may go:",
        f"rate % {rate}, Cohen's kappa {kappa} ({'…'.join(ends)})",
        *aligned(cells, left=1),
    ]
