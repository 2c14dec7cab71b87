"""Sum up a run: accuracy against tokens with intervals, what it cost, when it has paid.

Everything is read from the run's tables and manifests; nothing is computed by a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

import polars as pl

from dto import statistics
from dto.errors import DtoError
from dto.recipe import Recipe, load_recipe
from dto.redact import public_names
from dto.reporting import table
from dto.reporting.batch import BatchReport, batch_report
from dto.reporting.batch_view import batch_lines, draw_batch
from dto.reporting.comparison import (
    COLUMNS,
    Arm,
    Comparison,
    ReportRow,
    arms,
    base_arm,
    compare,
    report_row,
)
from dto.reporting.cost import BreakEven, StageCost, break_even, stage_costs
from dto.reporting.difficulty import ALL_TASKS, DifficultyRow, by_difficulty, over_tasks
from dto.reporting.funnel import funnel, training
from dto.reporting.macro import AverageRow, average, averages
from dto.reporting.papers import write_tables
from dto.reporting.picture import draw
from dto.reporting.positions import ExitPositions, exit_positions
from dto.reporting.sections import run_page
from dto.reporting.trials import TrialReliability, trial_reliability
from dto.runs import manifest
from dto.statistics import Estimate


@dataclass(frozen=True, slots=True)
class Report:
    """What a run amounts to; `str()` gives the table for the terminal."""

    name: str
    rows: tuple[ReportRow, ...]
    comparisons: tuple[Comparison, ...]
    averages: tuple[AverageRow, ...]
    difficulty: tuple[DifficultyRow, ...]
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
        """The run's name, and how much was asked."""
        if not self.rows:
            return self.name
        asked = {row.task: row.problems for row in self.rows[::-1]}
        of_tasks = f" of {len(asked)} tasks" if len(asked) > 1 else ""
        samples = self.rows[0].samples
        each = f"{samples} sample{'' if samples == 1 else 's'}"
        return f"{self.name}: {sum(asked.values()):,} test problems{of_tasks} × {each}"

    def as_json(self) -> dict[str, Any]:
        """The content of `report.json`: strict JSON, a figure without value is null."""
        stages = {cost.stage: asdict(cost) for cost in self.costs}
        data = {
            "name": self.name,
            "rows": [asdict(row) for row in self.rows],
            "comparisons": [asdict(each) for each in self.comparisons],
            "averages": [asdict(each) for each in self.averages],
            "difficulty": [asdict(each) for each in self.difficulty],
            "cost": {
                "stages": stages,
                "break_even": None if self.break_even is None else asdict(self.break_even),
                "break_even_questions": self.break_even and self.break_even.questions,
            },
            "funnel": dict(self.funnel),
            "training": self.training,
            "exit_positions": [asdict(each) for each in self.positions],
            "trials": [asdict(each) for each in self.trials],
            "batch": None if self.batch is None else asdict(self.batch),
        }
        cleaned: dict[str, Any] = without_nan(data)
        return cleaned

    def __str__(self) -> str:
        tasks = self.tasks
        parts = [[self.title], table.funnel_lines(self.funnel, self.training)]
        for task in tasks:
            lines = table.evaluation_lines(
                [row for row in self.rows if row.task == task],
                [each for each in self.comparisons if each.task == task],
            )
            parts.append(lines if len(tasks) == 1 else [f"task {task}", *lines])
        parts += [
            table.average_lines(self.averages),
            table.difficulty_lines(
                [row for row in self.difficulty if len(tasks) == 1 or row.task == ALL_TASKS]
            ),
            [] if self.batch is None else batch_lines(self.batch),
            table.cost_lines(self.costs, self.break_even),
        ]
        return "\n\n".join("\n".join(lines) for lines in parts if lines)


def report(run_directory: Path | str) -> Report:
    """Write `report.html`, `report.json`, the picture and the tables below `RUN/report`.

    Everything is compared with the model `base` under the first exit whose policy is none, over
    the same problems and seeds, task by task; with several tasks there is a mean over them. The
    page is one to send around (:mod:`dto.reporting.sections`), the picture is `report.png` and
    `report.svg`, the tables are `tables.md`, `tables.csv`, `difficulty.csv`
    (:mod:`dto.reporting.papers`). Where questions were asked together, `batch.png` and `batch.svg`
    stand beside them. Raises DtoError when the run has not been evaluated.
    """
    run = Path(run_directory)
    recipe = load_recipe(run / "recipe.yaml")
    result = measure(run)
    directory = run / "report"
    directory.mkdir(exist_ok=True)
    text = json.dumps(result.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
    manifest.write_text(directory / "report.json", text + "\n")
    draw_report(result, directory)
    if result.batch is not None:
        draw_batch(result.batch, directory, recipe.name)
    write_tables(
        directory, result.title, result.rows, result.comparisons, result.averages, result.difficulty
    )
    manifest.write_text(directory / "report.html", run_page(run, recipe, result))
    return result


def draw_report(result: Report, directory: Path) -> None:
    """Write `report.png` and `report.svg`: models by names that can be shown to others."""
    names = public_names([row.model for row in result.rows])
    draw([replace(row, model=names[row.model]) for row in result.rows], directory, result.title)


def measure(run: Path) -> Report:
    """What `report` tells, with nothing written."""
    recipe = load_recipe(run / "recipe.yaml")
    found = _evaluated(run, recipe)
    plain = next((exit.name for exit in recipe.evaluate.exits if exit.policy == "none"), "")
    bases = {arm.task: base_arm(found, plain, arm.task) for arm in found}
    rows = tuple(report_row(arm, bases[arm.task]) for arm in found)
    comparisons = tuple(
        compare(arm, base)
        for arm in found
        if (base := bases[arm.task]) is not None and arm is not base
    )
    means = averages(rows, comparisons, plain)
    costs = stage_costs(run)
    by_name: Mapping[tuple[str, str], ReportRow | AverageRow]
    by_name = {(row.model, row.exit): row for row in means or rows}
    failed = any(
        each.verdict == "too many failed" and (each.model, each.exit) == ("trained", plain)
        for each in comparisons
    )
    saved, saved_flops = (_saved(found, plain, name) for name in ("tokens", "model_flops"))
    base_row, trained_row = by_name.get(("base", plain)), by_name.get(("trained", plain))
    return Report(
        name=recipe.name,
        rows=rows,
        comparisons=comparisons,
        averages=means,
        difficulty=tuple(_difficulty(found, bases)),
        costs=tuple(costs),
        break_even=break_even(costs, base_row, trained_row, saved, saved_flops)
        if base_row is not None and trained_row is not None and not failed
        else None,
        funnel=funnel(run),
        training=training(run),
        positions=exit_positions(run, recipe),
        trials=trial_reliability(run, recipe),
        plain=plain,
        batch=batch_report(run, recipe),
    )


def _saved(found: Sequence[Arm], plain: str, what: str) -> Estimate:
    """What of a column the trained model saves a question, by problem: the mean over tasks."""
    arms = {(arm.task, arm.model): arm for arm in found if arm.exit == plain}
    pairs = [
        (base, arms[task, "trained"])
        for (task, model), base in arms.items()
        if model == "base" and (task, "trained") in arms
    ]
    return average(
        [
            statistics.paired_difference(
                base.column(what), base.problems, trained.column(what), trained.problems
            )
            for base, trained in pairs
        ]
    )


def _difficulty(found: Sequence[Arm], bases: Mapping[str, Arm | None]) -> Iterator[DifficultyRow]:
    for task, base in bases.items():
        if base is not None:
            yield from by_difficulty([arm for arm in found if arm.task == task], base)
    yield from over_tasks(found, [base for base in bases.values() if base is not None])


def _evaluated(run: Path, recipe: Recipe) -> list[Arm]:
    """The evaluation table by task, model and exit, in the recipe's order."""
    path = run / "evaluate" / "rows.parquet"
    if not path.is_file():
        raise DtoError(f"report needs {path}: start `dto evaluate {run}` first")
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
    problems = run / ("test" if recipe.evaluate.tasks else "problems") / "rows.parquet"
    asked = pl.DataFrame(schema={"problem_id": pl.String, "task": pl.String})
    if problems.is_file():
        frame = pl.scan_parquet(problems).filter(split="test")
        asked = frame.select(problem_id="id", task="task").collect()
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


def without_nan(data: Any) -> Any:
    """The same data with None, JSON's null, for every figure without value."""
    if isinstance(data, Mapping):
        return {key: without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    if isinstance(data, float) and not isfinite(data):
        return None
    return data
