"""Sum up a run: accuracy against tokens with intervals, what it cost, when it has paid.

Everything is read from the run's tables and manifests; nothing is computed by a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import nan
from pathlib import Path
from typing import Any

import polars as pl

from dto import statistics
from dto.errors import DtoError
from dto.reporting.batch import BatchReport, batch_lines, batch_report
from dto.reporting.cost import BreakEven, StageCost, break_even, cost_text, stage_costs
from dto.reporting.evaluation import (
    ALL_TASKS,
    COLUMNS,
    Arm,
    Figures,
    arms,
    average,
    averages,
    base_arm,
    difficulty,
    evaluate,
)
from dto.reporting.funnel import funnel, funnel_lines, training
from dto.reporting.positions import (
    ExitPositions,
    TrialReliability,
    exit_positions,
    trial_reliability,
)
from dto.reporting.table import average_table, difficulty_table, evaluation_tables
from dto.runs.reader import RunReader
from dto.statistics import Estimate


@dataclass(frozen=True, slots=True)
class Report:
    """What a run amounts to; `str()` gives the table for the terminal."""

    name: str
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

    def as_json(self) -> dict[str, Any]:
        """The content of `report.json`; figures without a value are nan."""
        data = asdict(self)
        costs = {cost["stage"]: cost for cost in data.pop("costs")}
        even = data.pop("break_even")
        data["cost"] = {
            "stages": costs,
            "break_even": even,
            "break_even_questions": even and even["questions"],
        }
        data["exit_positions"] = data.pop("positions")
        return data

    def __str__(self) -> str:
        several = len(self.tasks) > 1
        parts = [self.title, "\n".join(funnel_lines(self.funnel, self.training))]
        for task in self.tasks:
            rows = [row for row in self.rows if row.task == task]
            tables = evaluation_tables(rows, f"task {task}" if several else "")
            parts += [table.text() for table in tables]
        if self.averages:
            parts.append(average_table(self.averages).text())
        whole = [row for row in self.difficulty if not several or row.task == ALL_TASKS]
        if whole:
            parts.append(difficulty_table(whole).text())
        if self.batch is not None:
            parts.append("\n".join(batch_lines(self.batch)))
        parts.append(cost_text(self.costs, self.break_even))
        return "\n\n".join(filter(None, parts))


def measure(path: Path) -> Report:
    """The figures of a run's report; writes nothing.

    Raises DtoError when the run has not been evaluated.
    """
    run = RunReader(path)
    recipe = run.recipe
    evaluated = _evaluated(run)
    plain = next((exit.name for exit in recipe.evaluate.exits if exit.policy == "none"), "")
    bases = {arm.task: base_arm(evaluated, plain, arm.task) for arm in evaluated}
    rows = tuple(evaluate(arm, bases[arm.task]) for arm in evaluated)
    means = averages(rows)
    costs = tuple(stage_costs(run))
    by_arm = {row.arm: row for row in means or rows}
    base, trained = by_arm.get(("base", plain)), by_arm.get(("trained", plain))
    even = None
    failed = any(row.verdict == "too many failed" and row.arm == ("trained", plain) for row in rows)
    if base is not None and trained is not None and not failed:
        saved, flops = (_saved(evaluated, plain, name) for name in ("tokens", "model_flops"))
        even = break_even(costs, base, trained, saved, flops)
    return Report(
        name=recipe.name,
        rows=rows,
        averages=means,
        difficulty=tuple(difficulty(evaluated, [arm for arm in bases.values() if arm is not None])),
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
    if "model_flops" not in there:
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
    return sorted(
        arms(rows, expected),
        key=lambda arm: (
            tasks.get(arm.task, len(tasks)),
            arm.task,
            models.get(arm.model, len(models)),
            exits.get(arm.exit, len(exits)),
        ),
    )
