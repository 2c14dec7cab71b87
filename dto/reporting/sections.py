"""What the page of a run says, section by section; a section without its tables says why.

Everything is taken from the report's figures, so that page, tables and `report.json` agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dto.calibration.reliability import Reliability
from dto.recipe import Recipe
from dto.reporting import figures
from dto.reporting.accounts import cost_section, funnel_section, names_table, reproduce_section
from dto.reporting.comparison import MAX_FAILED, Comparison, ReportRow
from dto.reporting.difficulty import ALL_TASKS
from dto.reporting.macro import AverageRow, is_base
from dto.reporting.page import Headline, LeftOut, Section, drawn, render_page
from dto.reporting.picture import front
from dto.reporting.reproduce import public_names
from dto.reporting.table import Table, interval, number, percent, points
from dto.reporting.together import batch_section

if TYPE_CHECKING:
    from dto.reporting.report import Report

R = TypeVar("R")


def run_page(run: Path, recipe: Recipe, report: Report) -> str:
    """The HTML of a run's report."""
    report = _public(report)
    together = batch_section(report)
    sections = [
        _front(report, recipe),
        _difficulty(report),
        *([together] if together is not None else []),
        _positions(report),
        _calibration(report),
        cost_section(report),
        funnel_section(report, recipe),
        reproduce_section(run, recipe),
    ]
    model = f"{public_names([recipe.model.name])[recipe.model.name]} on {recipe.model.engine}"
    asked = report.title.removeprefix(report.name).removeprefix(": ")
    subtitle = f"{model}, {asked or 'nothing evaluated'}, seed {recipe.seed}"
    return render_page(report.name, subtitle, _headlines(report), sections)


def _public(report: Report) -> Report:
    """The same report; models that are folders go by their last part."""
    names = public_names([row.model for row in report.rows])

    def renamed(rows: Sequence[R]) -> tuple[R, ...]:
        return tuple(
            replace(row, model=names.get(row.model, row.model))  # type: ignore[type-var,attr-defined]
            for row in rows
        )

    return replace(
        report,
        rows=renamed(report.rows),
        comparisons=renamed(report.comparisons),
        averages=renamed(report.averages),
        difficulty=renamed(report.difficulty),
        positions=renamed(report.positions),
        trials=renamed(report.trials),
    )


def _headlines(report: Report) -> list[Headline]:
    """The trained model, the fewest tokens that no loss is shown of, and when it has paid."""
    compared: Sequence[Comparison | AverageRow] = report.comparisons
    if report.averages:
        compared = [row for row in report.averages if not is_base(row, report.plain)]
    failed = {(each.model, each.exit) for each in report.comparisons
              if each.verdict == "too many failed"}  # fmt: skip
    sound = [each for each in compared if (each.model, each.exit) not in failed]
    trained = [each for each in sound if each.model == "trained" and each.exit == report.plain]
    others = [each for each in sound if each not in trained and each.gain_high >= 0]
    fewest = min(others, key=lambda each: each.tokens_ratio, default=None)
    found = []
    for each in [*trained, *([fewest] if fewest else [])]:
        change = f"{abs(100 * (1 - each.tokens_ratio)):.0f} %"
        ratio = interval(each.tokens_ratio, each.tokens_ratio_low, each.tokens_ratio_high)
        mood = "good" if each.gain_low > 0 else "bad" if each.gain_high < 0 else "open"
        shown = {"good": "a gain", "bad": "a loss", "open": "no difference shown"}[mood]
        name = each.model if each.exit == report.plain else f"{each.model}, {each.exit}"
        found.append(
            Headline(
                f"{name}: the fewest where no loss is shown" if each is fewest else name,
                f"{change} {'fewer' if each.tokens_ratio <= 1 else 'more'} tokens",
                f"accuracy {points(each.gain, each.gain_low, each.gain_high)} points: {shown}",
                f"{ratio} % of the base's tokens",
                mood,
            )
        )
    if (even := report.break_even) is not None:
        paid = "never" if even.questions is None else f"after {even.questions:,} questions"
        spent = f"{even.tokens_spent / 1e6:,.2f} million tokens went into optimizing and training"
        if even.questions_low is not None:
            last = "never" if even.questions_high is None else f"{even.questions_high:,}"
            spent = f"95 %: {even.questions_low:,}…{last}; {spent}"
        if even.model_flops_spent is not None:
            after = even.questions_by_model_flops
            spent += "; in model FLOPs, with all that was read: "
            spent += "never" if after is None else f"after {after:,} questions"
        found.append(Headline("optimizing and training have paid for themselves", paid, "", spent))
    return found


def _front(report: Report, recipe: Recipe) -> Section:
    against = {(each.task, each.model, each.exit): each for each in report.comparisons}
    tables = [
        Table(
            f"task {task}" if len(report.tasks) > 1 else "",
            ("model", "exit", "accuracy %", "gain, points", "tokens", "% of base", "trial tokens",
             "trun\u00adcated", "failed"),
            tuple(
                _front_row(row, against.get((task, row.model, row.exit)))
                for row in report.rows
                if row.task == task
            ),
            left=2,
        )
        for task in report.tasks
    ]  # fmt: skip
    if report.averages:
        tables.append(_mean_table(report.averages, report.plain))
    tables.append(names_table(recipe))
    says = "; ".join(
        f"{row.model}, {row.exit}{f' on {row.task}' if len(report.tasks) > 1 else ''}: "
        f"{percent(row.accuracy)} % at {number(row.tokens_mean, 0)} tokens"
        for row in report.rows
    )
    notes = ["In brackets are 95 % intervals, each for itself: the more there are, the more of "
             "them miss. Tokens are the mean of all that a question takes: thinking, answer and "
             "trial answers. Gains and % of base are against the base without an exit, paired by "
             "problem. Truncated responses ran out of tokens and count as not correct, failed "
             "ones have no grade and leave the denominator."]  # fmt: skip
    if any(each.verdict == "too many failed" for each in report.comparisons):
        notes.append(
            f"Where more than {100 * MAX_FAILED:.0f} % of the responses failed nothing is claimed."
        )
    return Section(
        "front",
        "Accuracy and tokens",
        (
            "Up and to the left is better. The dotted line joins the points that no other beats in "
            "both; bars are 95 % intervals. Whether two differ is told by the paired gains below.",
        ),
        drawn("front", f"Accuracy against tokens. {says}", front, report.rows),
        tuple(tables),
        notes=tuple(notes),
    )


def _front_row(row: ReportRow, other: Comparison | None) -> tuple[str, ...]:
    gain = ratio = "–"
    if other is not None:
        ratio = interval(other.tokens_ratio, other.tokens_ratio_low, other.tokens_ratio_high)
        gain = points(other.gain, other.gain_low, other.gain_high)
        if other.verdict == "too many failed":
            gain = other.verdict
    tokens = (
        f"{number(row.tokens_mean, 1)} ({number(row.tokens_low, 1)}–{number(row.tokens_high, 1)})"
    )
    return (
        row.model, row.exit, interval(row.accuracy, row.accuracy_low, row.accuracy_high), gain,
        tokens, ratio, number(row.trial_tokens_mean, 1), f"{row.truncated:,}", f"{row.failed:,}",
    )  # fmt: skip


def _mean_table(rows: Sequence[AverageRow], plain: str) -> Table:
    return Table(
        f"mean over {rows[0].tasks} tasks, each counting once",
        ("model", "exit", "accuracy %", "gain, points", "tokens", "% of base"),
        tuple(
            (
                row.model, row.exit,
                interval(row.accuracy, row.accuracy_low, row.accuracy_high),
                "–" if is_base(row, plain) else points(row.gain, row.gain_low, row.gain_high),
                number(row.tokens_mean, 1),
                "–" if is_base(row, plain) else interval(
                    row.tokens_ratio, row.tokens_ratio_low, row.tokens_ratio_high),
            )
            for row in rows
        ),
        left=2,
    )  # fmt: skip


def _difficulty(report: Report) -> Section | LeftOut:
    title = "Tokens saved by difficulty"
    whole = [r for r in report.difficulty if len(report.tasks) == 1 or r.task == ALL_TASKS]
    if not any(not isnan(row.tokens_ratio) for row in whole):
        return LeftOut(
            title, "it needs a base model without an exit and two samples of each problem."
        )
    table = Table(
        "The same figures as a table",
        ("base right on", "model", "exit", "problems", "accuracy %", "gain, points", "tokens",
         "% of base"),
        tuple(
            (
                row.bin, row.model, row.exit, f"{row.problems:,}", percent(row.accuracy),
                points(row.gain, row.gain_low, row.gain_high), number(row.tokens_mean, 1),
                interval(row.tokens_ratio, row.tokens_ratio_low, row.tokens_ratio_high)
                if not isnan(row.tokens_ratio) else "–",
            )
            for row in whole
        ),
        left=3,
        folded=True,
    )  # fmt: skip
    return Section(
        "difficulty",
        title,
        (
            "How hard a problem is: on which share of its samples the base model is right. One "
            "half of the samples sets that rate, the figures come from the other half, so that "
            "problems with bad luck do not pass for hard ones. A problem whose halves disagree "
            "stands in two bins.",
        ),
        drawn("difficulty", "Tokens saved and points gained, by the base's pass rate; the table "
               "below has the figures.", figures.difficulty, whole),
        (table,),
    )  # fmt: skip


def _positions(report: Report) -> Section | LeftOut:
    title = "Where the exits lie"
    if not report.positions:
        return LeftOut(title, "the run has no optimized trajectories, and no exit left early.")
    rows = tuple(
        (
            "optimized" if each.stage == "optimize" else each.model, each.group.replace("_", " "),
            f"{each.exits:,}", "–" if each.stage == "optimize" else f"{each.without:,}",
            percent(each.median),
        )
        for each in report.positions
    )  # fmt: skip
    notes = []
    text = []
    if any(each.stage == "optimize" for each in report.positions):
        text.append("Optimized trajectories: how much of the thinking stands before the boundary "
                    "that they were cut at, by what became of them.")  # fmt: skip
        without = next(each.without for each in report.positions if each.stage == "optimize")
        notes.append(f"{without:,} further trajectories have no optimized version.")
    if any(each.stage == "evaluate" for each in report.positions):
        text.append(
            "Early exits: thinking until the policy left, as a share of what the same model thinks "
            "on the same question and sample when nothing stops it."
        )
    return Section(
        "exits",
        title,
        tuple(text),
        drawn("exits", "Histograms of exit positions; the table below has their medians.",
               figures.positions, report.positions,
               list(dict.fromkeys(row.model for row in report.rows))),
        (Table("", ("of", "outcome or exit", "exits", "did not leave", "median position %"), rows,
               left=2),),
        notes=tuple(notes),
    )  # fmt: skip


def _calibration(report: Report) -> Section | LeftOut:
    title = "Can the confidence be trusted?"
    if not report.trials:
        return LeftOut(title, "no exit of this evaluation asked for trial answers.")
    rows = tuple(
        (
            each.model, each.exit, f"{each.reliability.trials:,}", _sure(each.reliability),
            percent(each.reliability.accuracy), number(each.reliability.ece, 3),
        )
        for each in report.trials
    )  # fmt: skip
    notes = []
    if not all(each.shadow for each in report.trials):
        notes.append("A path that is left makes no further trials, so that doubtful ones are more "
                     "than their share; an exit in shadow mode makes all of them.")  # fmt: skip
    return Section(
        "calibration",
        title,
        ("Trial answers by their confidence, in ten bins, and how many of them are right; larger "
         "points are more trials. On the diagonal a confidence of 0.9 means right nine times in "
         "ten; bars are 95 % intervals. The expected calibration error (ECE) is the mean distance "
         "from the diagonal: 0 is best.",),
        drawn("calibration", "Reliability diagrams; the table below has the errors.",
               figures.calibration, report.trials),
        (Table("",
            ("model", "exit", "trials", "mean confidence %", "right %", "ECE"), rows, left=2),),
        notes=tuple(notes),
    )  # fmt: skip


def _sure(held: Reliability) -> str:
    return percent(sum(bin.trials * bin.confidence for bin in held.bins) / held.trials)
