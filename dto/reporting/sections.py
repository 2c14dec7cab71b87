"""What the page of a run says, section by section; a section without its tables says why.

Everything is taken from the report's figures, so that page, tables and `report.json` agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from matplotlib import rc_context
from matplotlib.figure import Figure as Drawing

from dto.recipe import Recipe
from dto.reporting import figures
from dto.reporting.comparison import MAX_FAILED, Comparison, ReportRow
from dto.reporting.difficulty import ALL_TASKS
from dto.reporting.macro import AverageRow
from dto.reporting.page import Figure, Headline, LeftOut, Section, Table, render_page
from dto.reporting.picture import front
from dto.reporting.provenance import reproduce_section
from dto.reporting.reproduce import public_names
from dto.reporting.table import interval, number, percent, points

if TYPE_CHECKING:
    from dto.stages.report import Report

R = TypeVar("R")
MEBIBYTE = 2**20

DROPPED = {
    "duplicate": "the question stands there twice",
    "empty_response": "one side of the pair holds no tokens",
    "empty_thinking": "the response did not think",
    "error": "the row raised an error",
    "failed": "the engine or the grader failed",
    "identical": "optimizing changed nothing, so both sides are the same",
    "no_correct_finalization": "no conclusion at the exit was right",
    "no_exit": "no boundary passed the threshold",
    "no_pair": "no two samples make a pair",
    "no_room": "the context leaves no room for a conclusion",
    "not_shorter": "the chosen side is not shorter, and both are right",
    "over_limit": "the problem has enough pairs",
    "prompt_too_long": "the prompt fills the context",
    "too_long": "longer than the recipe's limit",
    "unreadable_gold": "the gold answer cannot be read",
    "unreadable_row": "the row of the source cannot be read",
}


def run_page(run: Path, recipe: Recipe, report: Report) -> str:
    """The HTML of a run's report."""
    report = _public(report)
    sections = [
        _front(report),
        _difficulty(report),
        _positions(report),
        _calibration(report),
        _cost(report),
        _funnel(report),
        reproduce_section(run, recipe),
    ]
    model = f"{public_names([recipe.model.name])[recipe.model.name]} on {recipe.model.engine}"
    title, _, asked = report.title.partition(": ")
    subtitle = f"{model}, {asked or 'nothing evaluated'}, seed {recipe.seed}"
    return render_page(title, subtitle, _headlines(report), sections)


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


def _drawn(name: str, says: str, make: Callable[..., Drawing], *arguments: Any) -> Figure:
    with rc_context({"text.parse_math": False}):
        return Figure(figures.svg(make(*arguments), name), says)


def _headlines(report: Report) -> list[Headline]:
    """What the trained model and the cheapest harmless exit come to, and when it has paid."""
    compared: Sequence[Comparison | AverageRow] = report.comparisons
    if report.averages:
        compared = [row for row in report.averages if (row.gain_low, row.gain_high) != (0, 0)]
    failed = {(each.model, each.exit) for each in report.comparisons
              if each.verdict == "too many failed"}  # fmt: skip
    sound = [each for each in compared if (each.model, each.exit) not in failed]
    trained = [each for each in sound if each.model == "trained" and each.exit == report.plain]
    exits = [each for each in sound if each.exit != report.plain and each.gain_high >= 0]
    cheapest = min(exits, key=lambda each: each.tokens_ratio, default=None)
    found = []
    for each in [*trained, *([cheapest] if cheapest else [])]:
        name = f"{each.model}, {each.exit}" if each.exit != report.plain else each.model
        fewer = f"{100 * (1 - each.tokens_ratio):.0f} % fewer tokens"
        if each.tokens_ratio >= 1:
            fewer = f"{100 * (each.tokens_ratio - 1):.0f} % more tokens"
        gain = points(each.gain, each.gain_low, each.gain_high)
        mood = "good" if each.gain_low > 0 else "bad" if each.gain_high < 0 else "open"
        proven = {"good": "a gain", "bad": "a loss", "open": "no difference shown"}[mood]
        ratio = interval(each.tokens_ratio, each.tokens_ratio_low, each.tokens_ratio_high)
        found.append(Headline(fewer, name, f"{ratio} % of the base's", ""))
        found.append(Headline(f"{gain.split(' ')[0]} points", f"accuracy: {name}",
                              f"{gain.partition(' ')[2]} {proven}", mood))  # fmt: skip
    if (even := report.break_even) is not None:
        paid = "never" if even.questions is None else f"{even.questions:,} questions"
        spent = f"{even.tokens_spent / 1e6:,.2f} M tokens went into it"
        found.append(Headline(paid, "until the saving has paid for it", spent, ""))
    return found


def _front(report: Report) -> Section:
    against = {(each.task, each.model, each.exit): each for each in report.comparisons}
    tables = [
        Table(
            ("model", "exit", "accuracy % (95 %)", "gain, points (95 %)", "tokens (95 %)",
             "% of base (95 %)", "of them trials", "truncated", "failed"),
            tuple(
                _front_row(row, against.get((task, row.model, row.exit)))
                for row in report.rows
                if row.task == task
            ),
            left=2,
            caption=f"task {task}" if len(report.tasks) > 1 else "",
        )
        for task in report.tasks
    ]  # fmt: skip
    if report.averages:
        tables.append(_mean_table(report.averages))
    says = "; ".join(
        f"{row.model}, {row.exit}{f' on {row.task}' if len(report.tasks) > 1 else ''}: "
        f"{percent(row.accuracy)} % at {number(row.tokens_mean, 0)} tokens"
        for row in report.rows
    )
    notes = ["Tokens are all that a question takes: thinking, answer and trial answers. Gains are "
             "paired by problem and sample. Truncated responses count as not correct, failed ones "
             "leave the denominator."]  # fmt: skip
    if any(each.verdict == "too many failed" for each in report.comparisons):
        notes.append(f"Where more than {MAX_FAILED:.0%} of the responses failed nothing is claimed.")
    return Section(
        "front",
        "Accuracy and tokens",
        ("Up and to the left is better. The dotted line joins what no other point beats in both.",),
        _drawn("front", f"Accuracy against tokens. {says}", front, report.rows),
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
    tokens = f"{number(row.tokens_mean, 1)} ({number(row.tokens_low, 1)}–{number(row.tokens_high, 1)})"
    return (
        row.model, row.exit, interval(row.accuracy, row.accuracy_low, row.accuracy_high), gain,
        tokens, ratio, number(row.trial_tokens_mean, 1), f"{row.truncated:,}", f"{row.failed:,}",
    )  # fmt: skip


def _mean_table(rows: Sequence[AverageRow]) -> Table:
    return Table(
        ("model", "exit", "accuracy % (95 %)", "gain, points (95 %)", "tokens", "% of base (95 %)"),
        tuple(
            (
                row.model, row.exit,
                interval(row.accuracy, row.accuracy_low, row.accuracy_high),
                points(row.gain, row.gain_low, row.gain_high), number(row.tokens_mean, 1),
                interval(row.tokens_ratio, row.tokens_ratio_low, row.tokens_ratio_high),
            )
            for row in rows
        ),
        left=2,
        caption=f"mean over {rows[0].tasks} tasks, each counting once",
    )  # fmt: skip


def _difficulty(report: Report) -> Section | LeftOut:
    title = "Saved by difficulty"
    whole = [r for r in report.difficulty if len(report.tasks) == 1 or r.task == ALL_TASKS]
    if not any(not isnan(row.tokens_ratio) for row in whole):
        return LeftOut(title, "It needs a base model without an exit and two samples of each problem.")
    table = Table(
        ("base right on", "model", "exit", "problems", "accuracy %", "gain, points (95 %)",
         "tokens", "% of base (95 %)"),
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
        caption="The same figures as a table",
        folded=True,
    )  # fmt: skip
    return Section(
        "difficulty",
        title,
        (
            "How hard a problem is: on which share of its samples the base model is right. One half "
            "of the samples sets that rate, the figures come from the other half, so that problems "
            "with bad luck do not pass for hard ones.",
        ),
        _drawn("difficulty", "Tokens saved and points gained, by the base's pass rate; the table "
               "below has the figures.", figures.difficulty, whole),
        (table,),
    )  # fmt: skip


def _positions(report: Report) -> Section | LeftOut:
    title = "Where the exits lie"
    if not report.positions:
        return LeftOut(title, "The run has no optimized trajectories, and no exit left early.")
    rows = tuple(
        (
            "optimized" if each.stage == "optimize" else each.model, each.group.replace("_", " "),
            f"{each.exits:,}", f"{each.without:,}", percent(each.median),
        )
        for each in report.positions
    )  # fmt: skip
    notes = []
    text = []
    if any(each.stage == "optimize" for each in report.positions):
        text.append("Optimized trajectories: how much of the thinking stands before the boundary "
                    "that they were cut at, by what became of them.")  # fmt: skip
        notes.append("Not leaving: of optimized trajectories those without an optimized version.")
    if any(each.stage == "evaluate" for each in report.positions):
        text.append("Early exits: thinking until the policy left, by what the same model thinks on "
                    "the same question and sample when nothing stops it.")  # fmt: skip
    return Section(
        "exits",
        title,
        tuple(text),
        _drawn("exits", "Histograms of exit positions; the table below has their medians.",
               figures.positions, report.positions),
        (Table(("", "", "exits", "not leaving", "median position %"), rows, left=2),),
        notes=tuple(notes),
    )  # fmt: skip


def _calibration(report: Report) -> Section | LeftOut:
    title = "Can the confidence be trusted?"
    if not report.trials:
        return LeftOut(title, "No exit of this evaluation asked for trial answers.")
    rows = tuple(
        (
            each.model, each.exit, f"{each.reliability.trials:,}",
            percent(each.reliability.accuracy), number(each.reliability.ece, 3),
        )
        for each in report.trials
    )  # fmt: skip
    notes = []
    if not all(each.shadow for each in report.trials):
        notes.append("A path that is left makes no further trials: without `shadow: true` doubtful "
                     "trials are more than their share.")  # fmt: skip
    return Section(
        "calibration",
        title,
        ("Trial answers by their confidence, in ten bins, and how many of them are right. On the "
         "diagonal a confidence of 0.9 means right nine times in ten.",),
        _drawn("calibration", "Reliability diagrams; the table below has the errors.",
               figures.calibration, report.trials),
        (Table(("model", "exit", "trials", "right %", "calibration error"), rows, left=2),),
        notes=tuple(notes),
    )  # fmt: skip


def _cost(report: Report) -> Section | LeftOut:
    title = "What it cost"
    if not report.costs:
        return LeftOut(title, "No stage of the run has a manifest.")
    rows = tuple(
        (
            each.stage, f"{each.tokens:,}", f"{each.prompt_tokens:,}", f"{each.cached_tokens:,}",
            f"{each.wasted_tokens:,}", f"{each.trained_tokens:,}",
            "–" if each.attention_flops is None else f"{each.attention_flops:.1e}",
            number(each.seconds, 1),
            "–" if each.peak_memory is None else f"{each.peak_memory / MEBIBYTE:,.0f}",
            number(each.money, 4),
        )
        for each in report.costs
    )  # fmt: skip
    head = ("stage", "generated", "read", "from cache", "thrown away", "trained on",
            "attention FLOPs", "seconds", "MiB", "money")  # fmt: skip
    if all(each.money is None for each in report.costs):
        head, rows = head[:-1], tuple(row[:-1] for row in rows)
    text = ["Every token counts, those of rollouts, of trials and of requests that were thrown "
            "away too."]  # fmt: skip
    even = report.break_even
    if even is not None and even.questions is None:
        text.append(f"{even.tokens_spent:,} tokens went into optimizing and training, and the "
                    "trained model saves none: it never pays.")  # fmt: skip
    elif even is not None:
        by_flops = ""
        if even.questions_by_flops is not None:
            by_flops = f", by attention FLOPs after {even.questions_by_flops:,}"
        text.append(
            f"{even.tokens_spent:,} tokens went into optimizing and training. The trained model "
            f"saves {even.tokens_saved_per_question:,.1f} a question, so that they are paid for "
            f"after {even.questions:,} questions{by_flops}."
        )
    means: Mapping[tuple[str, str], ReportRow | AverageRow]
    means = {(row.model, row.exit): row for row in report.averages or report.rows}
    base = means.get(("base", report.plain))
    tokens = base.tokens_mean if base is not None else float("nan")
    return Section(
        "cost",
        title,
        tuple(text),
        _drawn("cost", "Tokens of each stage, and tokens spent in all against questions answered.",
               figures.cost, report.costs, even, tokens),
        (Table(head, rows),),
        notes=("Seconds and memory are those of the machine that it ran on; `evaluate` is "
               "measurement, and no part of what has to be paid for.",),
    )  # fmt: skip


def _funnel(report: Report) -> Section:
    funnel, training = report.funnel, report.training
    kept = Table(
        ("stage", "rows", "dropped", "why"),
        tuple(
            (
                stage,
                f"{funnel['rows'][stage]:,}" if stage in funnel["rows"] else "–",
                f"{sum(reasons.values()):,}" if reasons else "0",
                "; ".join(
                    f"{count:,} {reason}" + (f" ({DROPPED[reason]})" if reason in DROPPED else "")
                    for reason, count in reasons.items()
                ),
            )
            for stage in dict.fromkeys((*funnel["rows"], *funnel["dropped"]))
            for reasons in [funnel["dropped"].get(stage, {})]
        ),
        wide=True,
    )
    kinds = tuple(
        (
            key,
            f"{sum(counts.values()):,}",
            ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items()),
        )
        for key in ("trajectories", "boundaries", "verdicts", "prunes", "optimized", "pairs")
        if (counts := funnel.get(key))
    )
    tables = [kept]
    if kinds:
        tables.append(Table(("rows", "all", "of them"), kinds, wide=True))
    notes = []
    if training is not None:
        base, best = training["base"], training["kept"]
        notes.append(
            f"Training took {training['steps']:,} steps. On dev problems accuracy went from "
            f"{percent(base['accuracy'])} to {percent(best['accuracy'])} %, tokens from "
            f"{number(base['tokens_mean'], 0)} to {number(best['tokens_mean'], 0)}, at step "
            f"{best['step']:,}, which was kept." + " It collapsed." * bool(training["collapsed"])
        )
    if found := funnel.get("agreement"):
        notes.append(
            f"The llm judge and the counterfactual one agree on "
            f"{interval(found['rate'], found['rate_low'], found['rate_high'])} % of "
            f"{found['patterns']:,} patterns; Cohen's kappa {number(found['kappa'], 2)} "
            f"({number(found['kappa_low'], 2)}…{number(found['kappa_high'], 2)})."
        )
    return Section(
        "funnel",
        "What became of the rows",
        ("Nothing is dropped in silence: each row that ended on its way has a reason, and stands "
         "with it in the stage's dropped.jsonl.",),
        tables=tuple(tables),
        notes=tuple(notes),
    )  # fmt: skip
