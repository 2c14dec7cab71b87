"""Sum up a run: accuracy against tokens with intervals, what it cost, when it has paid.

Everything is read from the run's tables and manifests; nothing is computed by a model. A report is
a list of sections: the page shows all of them, the terminal their tables and facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan, nan
from pathlib import Path
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
from dto.reporting.page import LeftOut, Section, drawn
from dto.reporting.positions import (
    ExitPositions,
    TrialReliability,
    exit_positions,
    trial_reliability,
)
from dto.reporting.table import Cell, Table, arms_table
from dto.runs.reader import RunReader
from dto.statistics import Estimate


@dataclass(frozen=True, slots=True)
class Report:
    """What a run amounts to; `str()` gives the tables and facts for the terminal."""

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
    plain: str  # the exit that all is compared under
    batch: BatchReport | None = None

    @property
    def name(self) -> str:
        """The recipe's."""
        return self.recipe.name

    @property
    def tasks(self) -> list[str]:
        """The tasks that were evaluated, in the recipe's order."""
        return list(dict.fromkeys(row.task for row in self.rows))

    @property
    def title(self) -> str:
        """The run's name, its test problems and samples."""
        if not self.rows:
            return self.name
        problems = {row.task: row.problems for row in self.rows[::-1]}
        of_tasks = f" of {len(problems)} tasks" if len(problems) > 1 else ""
        samples = self.rows[0].more["samples"]
        times = f"{samples} sample{'' if samples == 1 else 's'}"
        return f"{self.name}: {sum(problems.values()):,} test problems{of_tasks} × {times}"

    def public(self) -> Report:
        """The same report; models that are folders go by their last part."""
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
        """The content of `report.json`; figures without a value are nan."""
        data = {"name": self.name} | asdict(self)
        del data["recipe"]
        stages = {cost["stage"]: cost for cost in data.pop("costs")}
        data["cost"] = {"stages": stages, "break_even": data.pop("break_even")}
        data["exit_positions"] = data.pop("positions")
        return data

    def sections(self) -> list[Section | LeftOut]:
        """What the page shows and the terminal prints, in this order."""
        together = batch_section(self.batch, self.training)
        return [
            _front(self),
            _difficulty(self),
            *([together] if together is not None else []),
            _positions(self),
            _calibration(self),
            cost_section(self.costs, self.break_even),
            funnel_section(self.funnel, self.training, self.recipe),
        ]

    def __str__(self) -> str:
        parts = [part for part in self.public().sections() if isinstance(part, Section)]
        return "\n\n".join([self.title, *map(str, parts)])


def measure(path: Path) -> Report:
    """The figures of a run's report; writes nothing.

    Raises DtoError when the run has not been evaluated.
    """
    run = RunReader(path)
    recipe = run.recipe
    evaluated = _evaluated(run)
    plain = next((exit.name for exit in recipe.evaluate.exits if exit.policy == "none"), "")
    bases = {arm.task: arm for arm in evaluated if (arm.model, arm.exit) == ("base", plain)}
    rows = tuple(evaluate(arm, bases.get(arm.task)) for arm in evaluated)
    costs = tuple(stage_costs(run))
    even = None
    failed = any(row.verdict == "too many failed" and row.arm == ("trained", plain) for row in rows)
    saved, flops = (_saved(evaluated, plain, name) for name in ("tokens", "model_flops"))
    if not failed and not isnan(saved.value):
        even = break_even(costs, saved, flops)
    return Report(
        recipe=recipe,
        rows=rows,
        averages=averages(rows),
        difficulty=tuple(difficulty(evaluated, ("base", plain))),
        costs=costs,
        break_even=even,
        funnel=funnel(run),
        training=training(run),
        positions=exit_positions(run),
        trials=trial_reliability(run),
        plain=plain,
        batch=batch_report(run),
    )


def _saved(arms: Sequence[Arm], plain: str, column: str) -> Estimate:
    """What of a column the trained model saves a question, by problem: the mean over tasks."""
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


def _evaluated(run: RunReader) -> list[Arm]:
    """The evaluation table by task, model and exit, in the recipe's order."""
    recipe, path = run.recipe, run.table("evaluate")
    if not path.is_file():
        raise DtoError(f"report needs {path}: start `dto evaluate {run.path}` first")
    there = pl.read_parquet_schema(path)
    rows = pl.read_parquet(path, columns=[name for name in COLUMNS if name in there])
    if "model_flops" not in there:  # of an earlier version
        rows = rows.with_columns(model_flops=pl.lit(nan))
    timings = path.with_name("timings.parquet")
    if timings.is_file():
        rows = rows.join(pl.read_parquet(timings), on="id", how="left")
    else:
        rows = rows.with_columns(seconds=pl.lit(None, pl.Float64))
    models = {name: place for place, name in enumerate(recipe.evaluate.models)}
    exits = {exit.name: place for place, exit in enumerate(recipe.evaluate.exits)}
    asked = pl.DataFrame(schema={"problem_id": pl.String, "task": pl.String})
    if run.table(run.test_stage).is_file():
        problems = run.frame(run.test_stage).filter(split="test")
        asked = problems.select(problem_id="id", task="task").collect()
    expected = {
        str(task): count * recipe.evaluate.samples
        for task, count in asked["task"].value_counts().iter_rows()
    }
    rows = rows.join(asked, on="problem_id", how="left", maintain_order="left")
    rows = rows.with_columns(pl.col("task").fill_null(""))
    # A Hub id stands in the recipe, its last part in the tables; a task may have a name of its own.
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


def _front(report: Report) -> Section:
    several = len(report.tasks) > 1
    arm = {"model": "model", "exit": "exit"}
    columns = arm | {
        "accuracy %": "accuracy", "gain, points": "gain", "tokens": "tokens", "% of base": "ratio",
        "out of tokens": "truncated", "failed": "failed",
    }  # fmt: skip
    more = arm | {
        "of completed %": "completed", "pass@n %": "pass", "efficiency": "efficiency",
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
        title = f"mean over {len(report.tasks)} tasks, each counting once"
        tables.append(arms_table(report.averages, columns, title, left=2))
    if several:
        more = {"task": "task"} | more
    title = "Accuracy over completed responses, pass@n, efficiency, trials, seconds"
    tables.append(arms_table(report.rows, more, title, left=3 if several else 2, folded=True))
    facts = []
    if any(row.verdict == "too many failed" for row in report.rows):
        facts.append(
            f"Where more than {MAX_FAILED:.0%} of the responses failed nothing is claimed."
        )
    return Section(
        "front",
        "Accuracy and tokens",
        (
            "Up and to the left is better. The dotted line joins the points that no other beats in "
            "both; bars are 95 % intervals. Whether two differ is told by the paired gains below.",
        ),
        drawn("front", "Accuracy against tokens; the table below has the figures.",
              pictures.front, report.rows),
        tuple(tables),
        tuple(facts),
        ("In brackets are 95 % intervals, each for itself: the more there are, the more of "
         "them miss. Tokens are the mean of all that a question takes: thinking, answer and "
         "trial answers. Gains and % of base are against the base without an exit, paired by "
         "problem. Responses that ran out of tokens count as not correct, failed "
         "ones have no grade and leave the denominator. Which responses are completed is each "
         "arm's own doing, so that the accuracy over these compares nothing.",),
    )  # fmt: skip


def _difficulty(report: Report) -> Section | LeftOut:
    title = "Tokens saved by difficulty"
    if not any(row.ratio is not None for row in report.difficulty):
        return LeftOut(
            title, "it needs a base model without an exit and two samples of each problem."
        )
    columns = {
        "base right": "bin", "model": "model", "exit": "exit", "problems": "problems",
        "acc. %": "accuracy alone", "gain, points": "gain", "tokens": "tokens alone",
        "% of base": "ratio alone",
    }  # fmt: skip
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
              "below has the figures.", pictures.difficulty, report.difficulty),
        (arms_table(report.difficulty, columns, left=3),),
    )  # fmt: skip


def _positions(report: Report) -> Section | LeftOut:
    title = "Where the exits lie"
    if not report.positions:
        return LeftOut(title, "the run has no optimized trajectories, and no exit left early.")
    table = Table.of(
        "",
        report.positions,
        {
            "of": (lambda part: part.model or "optimized", ""),
            "outcome or exit": (lambda part: part.group, ""),
            "exits": (lambda part: part.exits, ""),
            "without": (lambda part: part.without if part.model else None, ""),
            "median position %": (lambda part: part.median, "%"),
        },
        left=2,
    )
    if optimized := [part for part in report.positions if not part.model]:
        # What has no optimized version belongs to no outcome: all of them count the same.
        without: tuple[Cell, ...] = ("optimized", "without", None, optimized[0].without, None)
        place = len(optimized)
        table = replace(table, rows=(*table.rows[:place], without, *table.rows[place:]))
    models = list(dict.fromkeys(row.model for row in report.rows))
    return Section(
        "exits",
        title,
        (
            "Optimized trajectories: how much of the thinking stands before the boundary that they "
            "were cut at, by what became of them; without are all that have no optimized version.",
            "Early exits: thinking until the policy left, as a share of what the same model thinks "
            "on the same question and sample when nothing stops it; those without did not leave.",
        ),
        drawn("exits", "Histograms of exit positions; the table below has their medians.",
              pictures.positions, report.positions, models),
        (table,),
    )  # fmt: skip


def _calibration(report: Report) -> Section | LeftOut:
    title = "Can the confidence be trusted?"
    if not report.trials:
        return LeftOut(title, "no exit of this evaluation asked for trial answers.")
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
        ("Trial answers by their confidence, in ten bins, and how many of them are right; larger "
         "points are more trials. On the diagonal a confidence of 0.9 means right nine times in "
         "ten; bars are 95 % intervals. The expected calibration error (ECE) is the mean distance "
         "from the diagonal: 0 is best.",),
        drawn("calibration", "Reliability diagrams; the table below has the errors.",
              pictures.calibration, report.trials),
        (table,),
        notes=("A path that is left makes no further trials, so that doubtful ones are more than "
               "their share; an exit in shadow mode makes all of them.",),
    )  # fmt: skip
