"""Summarize a run: accuracy against tokens with intervals, cost and break-even.

All figures come from the tables and manifests of the run; no model is called. A report is a list of
sections: the page shows all of each, the terminal its tables and facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan, nan
from pathlib import Path
from shlex import quote
from typing import Any

import polars as pl

from dto import statistics
from dto.errors import DtoError
from dto.recipe import Recipe
from dto.redact import public_names
from dto.reporting import pictures
from dto.reporting.batch import BatchReport, batch_report, batch_section
from dto.reporting.cost import BreakEven, StageCost, break_even, cost_section, stage_costs
from dto.reporting.evaluation import (
    COLUMNS,
    MAX_FAILED,
    Arm,
    Figures,
    average,
    averages,
    difficulty,
    evaluate,
)
from dto.reporting.funnel import funnel, funnel_section, training
from dto.reporting.page import OmittedSection, Section, make_figure
from dto.reporting.positions import (
    ExitPositions,
    TrialReliability,
    exit_positions,
    trial_reliability,
)
from dto.reporting.table import Cell, Table, arms_table
from dto.reporting.training import TrainingCurve, curve_section, training_curve
from dto.runs.reader import RunReader
from dto.statistics import Estimate


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of a run; `str()` gives the tables and facts for the terminal."""

    recipe: Recipe
    rows: tuple[Figures, ...]
    averages: tuple[Figures, ...]
    difficulty: tuple[Figures, ...]
    costs: tuple[StageCost, ...]
    break_even: BreakEven | None
    funnel: Mapping[str, Any]
    training: Mapping[str, Any] | None
    positions: tuple[ExitPositions, ...]
    trials: tuple[TrialReliability, ...]
    plain: str  # name of the reference exit, whose policy is none
    batch: BatchReport | None = None
    curve: TrainingCurve | None = None

    @property
    def name(self) -> str:
        """The name of the recipe."""
        return self.recipe.name

    @property
    def tasks(self) -> list[str]:
        """The evaluated tasks, in the order of the recipe."""
        return list(dict.fromkeys(row.task for row in self.rows))

    @property
    def title(self) -> str:
        """Name of the run, number of test problems and samples."""
        if not self.rows:
            return self.name
        problems = {row.task: row.problems for row in self.rows[::-1]}
        of_tasks = f" of {len(problems)} tasks" if len(problems) > 1 else ""
        samples = self.rows[0].more["samples"]
        times = f"{samples} sample{'' if samples == 1 else 's'}"
        return f"{self.name}: {sum(problems.values()):,} test problems{of_tasks} × {times}"

    def public(self) -> Report:
        """Return the report with local model paths shortened to their last part."""
        names = public_names([row.model for row in self.rows])
        parts = ("rows", "averages", "difficulty", "positions", "trials")
        renamed: dict[str, Any] = {
            part: tuple(
                replace(row, model=names.get(row.model, row.model)) for row in getattr(self, part)
            )
            for part in parts
        }
        return replace(self, **renamed)

    def as_json(self) -> dict[str, Any]:
        """Return the content of `report.json`; unknown figures are nan, null in the file."""
        data = {"name": self.name} | asdict(self)
        del data["recipe"]
        stages = {cost["stage"]: cost for cost in data.pop("costs")}
        data["cost"] = {"stages": stages, "break_even": data.pop("break_even")}
        data["exit_positions"] = data.pop("positions")
        data["training_curve"] = data.pop("curve")
        return data

    def sections(self) -> list[Section | OmittedSection]:
        """Build the sections in the order of the page."""
        batch = batch_section(self.batch, self.training)
        return [
            front_section(self),
            _difficulty(self),
            *([batch] if batch is not None else []),
            _positions(self),
            _calibration(self),
            curve_section(self.curve, self.training),
            cost_section(self.costs, self.break_even, self.recipe.train.method != "none"),
            funnel_section(self.funnel, self.recipe),
        ]

    def __str__(self) -> str:
        sections = [part for part in self.public().sections() if isinstance(part, Section)]
        return "\n\n".join([self.title, *map(str, sections)])


def measure(path: Path) -> Report:
    """Compute the report of a run without writing files.

    Raises DtoError when the run has not been evaluated.
    """
    run = RunReader(path)
    recipe = run.recipe
    arms = _arms(run)
    plain = next((exit.name for exit in recipe.evaluate.exits if exit.policy == "none"), "")
    bases = {arm.task: arm for arm in arms if (arm.model, arm.exit) == ("base", plain)}
    rows = tuple(evaluate(arm, bases.get(arm.task)) for arm in arms)
    costs = tuple(stage_costs(run))
    even = None
    failed = any(row.verdict == "too many failed" and row.arm == ("trained", plain) for row in rows)
    saved, flops = (_saved(arms, plain, name) for name in ("tokens", "model_flops"))
    if recipe.train.method != "none" and not failed and not isnan(saved.value):
        even = break_even(costs, saved, flops)
    return Report(
        recipe=recipe,
        rows=rows,
        averages=averages(rows),
        difficulty=tuple(difficulty(arms, ("base", plain))),
        costs=costs,
        break_even=even,
        funnel=funnel(run),
        training=training(run),
        positions=exit_positions(run),
        trials=trial_reliability(run),
        plain=plain,
        batch=batch_report(run),
        curve=training_curve(run),
    )


def _saved(arms: Sequence[Arm], plain: str, column: str) -> Estimate:
    """Compute the saving per question of the trained model in a column, averaged over tasks."""
    by_name = {(arm.task, arm.model): arm for arm in arms if arm.exit == plain}
    return average(
        [
            statistics.paired_difference(
                base.column(column), base.problems, trained.column(column), trained.problems
            )
            for (task, model), base in by_name.items()
            if model == "base" and (trained := by_name.get((task, "trained"))) is not None
        ]
    )


def _arms(run: RunReader) -> list[Arm]:
    """Split the evaluation table by task, model and exit, in the order of the recipe."""
    recipe, path = run.recipe, run.table("evaluate")
    if not path.is_file():
        raise DtoError(f"the report needs {path}: run `dto evaluate {quote(str(run.path))}` first")
    schema = pl.read_parquet_schema(path)
    rows = pl.read_parquet(path, columns=[name for name in COLUMNS if name in schema])
    if "model_flops" not in schema:  # the table of an earlier version
        rows = rows.with_columns(model_flops=pl.lit(nan))
    timings = path.with_name("timings.parquet")
    if timings.is_file():
        rows = rows.join(pl.read_parquet(timings), on="id", how="left")
    else:
        rows = rows.with_columns(seconds=pl.lit(None, pl.Float64))
    models = {name: place for place, name in enumerate(recipe.evaluate.models)}
    exits = {exit.name: place for place, exit in enumerate(recipe.evaluate.exits)}
    task_of = pl.DataFrame(schema={"problem_id": pl.String, "task": pl.String})
    if run.table(run.test_stage).is_file():
        problems = run.frame(run.test_stage).filter(split="test")
        task_of = problems.select(problem_id="id", task="task").collect()
    expected = {
        str(task): count * recipe.evaluate.samples
        for task, count in task_of["task"].value_counts().iter_rows()
    }
    rows = rows.join(task_of, on="problem_id", how="left", maintain_order="left")
    rows = rows.with_columns(pl.col("task").fill_null(""))
    # The recipe has the Hub id, the tables its last part or the task's own name.
    tasks = {Path(task).stem: place for place, task in enumerate(recipe.evaluate.tasks)}
    arms = [
        Arm(str(model), str(exit), part, expected.get(str(task), 0), str(task))
        for (task, model, exit), part in rows.group_by("task", "model", "exit", maintain_order=True)
    ]
    return sorted(
        arms,
        key=lambda arm: (
            tasks.get(arm.task, len(tasks)),
            arm.task,
            models.get(arm.model, len(models)),
            exits.get(arm.exit, len(exits)),
        ),
    )


def front_section(report: Report) -> Section:
    """Build the section with accuracy and tokens of every arm."""
    several = len(report.tasks) > 1
    arm = {"model": "model", "exit": "exit"}
    columns = arm | {
        "accuracy %": "accuracy", "gain, points": "gain", "tokens": "tokens", "% of base": "ratio",
        "truncated": "truncated", "failed": "failed",
    }  # fmt: skip
    more = arm | {
        "completed, accuracy %": "completed", "pass@n %": "pass", "efficiency": "efficiency",
        "trial tokens": "trial", "attention FLOPs": "FLOPs", "seconds, p50": "p50", "p95": "p95",
    }  # fmt: skip
    tables = [
        arms_table(
            [row for row in report.rows if row.task == task],
            columns,
            f"task {task}" if several else "",
            left=2,
        )
        for task in report.tasks
    ]
    if report.averages:
        title = f"mean over {len(report.tasks)} tasks, equally weighted"
        tables.append(arms_table(report.averages, columns, title, left=2))
    if several:
        more = {"task": "task"} | more
    title = "More figures: completed responses, pass@n, efficiency, trials, FLOPs, seconds"
    tables.append(arms_table(report.rows, more, title, left=3 if several else 2, folded=True))
    facts = []
    if any(row.verdict == "too many failed" for row in report.rows):
        facts.append(f"An arm with more than {MAX_FAILED:.0%} failed responses is not compared.")
    return Section(
        "front",
        "Accuracy and tokens",
        (
            "Up and to the left is better. Bars are 95 % intervals. The dotted line joins the "
            "points that no other point beats in both. Whether an arm differs from the base is "
            "shown by the paired gains below, not by the overlap of bars.",
        ),
        make_figure("front", "Accuracy against tokens; the table below has the figures.",
                    pictures.front, report.rows),
        tuple(tables),
        tuple(facts),
        ("Brackets hold 95 % intervals. They are not adjusted for multiple comparisons. Tokens "
         "are the mean per question over thinking, answer and trial answers. Gain and % of base "
         "compare with the base without an exit, paired by problem. Truncated responses ran out "
         "of tokens and count as not correct. Failed responses have no grade and leave the "
         "denominator. Each arm completes other responses, so accuracy over completed responses "
         "does not compare arms.",),
    )  # fmt: skip


def _difficulty(report: Report) -> Section | OmittedSection:
    title = "Tokens saved by difficulty"
    if not any(row.ratio is not None for row in report.difficulty):
        return OmittedSection(
            title, "needs the base model without an exit and two samples per problem."
        )
    columns = {
        "pass rate": "bin", "model": "model", "exit": "exit", "problems": "problems",
        "acc. %": "accuracy alone", "gain, points": "gain", "tokens": "tokens alone",
        "% of base": "ratio alone",
    }  # fmt: skip
    return Section(
        "difficulty",
        title,
        (
            "Difficulty is the pass rate of the base model. One half of a problem's samples sets "
            "the rate and the other half gives the figures, so that an unlucky sample does not "
            "make a problem look hard. A problem whose halves disagree is in two bins.",
        ),
        make_figure("difficulty", "Tokens saved and points gained, by pass rate of the base; the "
                    "table below has the figures.", pictures.difficulty, report.difficulty),
        (arms_table(report.difficulty, columns, left=3),),
    )  # fmt: skip


def _positions(report: Report) -> Section | OmittedSection:
    title = "Exit positions"
    if not report.positions:
        return OmittedSection(title, "the run has no optimized trajectories and no early exits.")
    table = Table.of(
        "",
        report.positions,
        {
            "responses of": (lambda part: part.model or "optimized", ""),
            "outcome or exit": (lambda part: part.group, ""),
            "exits": (lambda part: part.exits, ""),
            "no exit": (lambda part: part.without if part.model else None, ""),
            "median position %": (lambda part: part.median, "%"),
        },
        left=2,
    )
    if optimized := [part for part in report.positions if not part.model]:
        # Trajectories without an optimized version have no outcome: each row has the same count.
        without: tuple[Cell, ...] = ("optimized", "none", None, optimized[0].without, None)
        place = len(optimized)
        table = replace(table, rows=(*table.rows[:place], without, *table.rows[place:]))
    models = list(dict.fromkeys(row.model for row in report.rows))
    return Section(
        "exits",
        title,
        (
            "Optimized trajectories: share of the original thinking before the exit, by outcome. "
            "Row none counts trajectories without an optimized version.",
            "Early exits: thinking before the exit as a share of the thinking of the same model on "
            "the same question and sample without a policy.",
        ),
        make_figure("exits", "Histograms of exit positions; the table below has their medians.",
                    pictures.positions, report.positions, models),
        (table,),
    )  # fmt: skip


def _calibration(report: Report) -> Section | OmittedSection:
    title = "Calibration of the confidence"
    if not report.trials:
        return OmittedSection(title, "no exit of this evaluation made trial answers.")
    table = Table.of(
        "",
        report.trials,
        {
            "model": (lambda part: part.model, ""),
            "exit": (lambda part: part.exit, ""),
            "trials": (lambda part: part.reliability.trials, ""),
            "right %": (lambda part: part.reliability.accuracy, "%"),
            "ECE": (lambda part: part.reliability.ece, ",.3f"),
        },
        left=2,
    )
    return Section(
        "calibration",
        title,
        ("Accuracy of trial answers in ten bins of confidence. Larger points have more trials; "
         "bars are 95 % intervals. On the diagonal, a confidence of 0.9 is right nine times in "
         "ten. The expected calibration error (ECE) is the mean distance from the diagonal: 0 is "
         "best.",),
        make_figure("calibration", "Reliability diagrams; the table below has the errors.",
                    pictures.calibration, report.trials),
        (table,),
        notes=("A response makes no further trials after its exit, so unsure trials are "
               "overrepresented. An exit in shadow mode makes all trials.",),
    )  # fmt: skip
