"""Sum up a run: accuracy against tokens with intervals, what it cost, when it has paid.

Everything is read from the run's tables and manifests; nothing is computed by a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import polars as pl

from dto.errors import DtoError
from dto.recipe import Recipe, load_recipe
from dto.reporting import table
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
from dto.reporting.funnel import funnel, training
from dto.reporting.picture import draw
from dto.runs import manifest


@dataclass(frozen=True, slots=True)
class Report:
    """What a run amounts to; `str()` gives the table for the terminal."""

    name: str
    rows: tuple[ReportRow, ...]
    comparisons: tuple[Comparison, ...]
    costs: tuple[StageCost, ...]
    break_even: BreakEven | None
    funnel: Mapping[str, Any]
    training: Mapping[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """The content of `report.json`: strict JSON, a figure without value is null."""
        stages = {cost.stage: asdict(cost) for cost in self.costs}
        data = {
            "name": self.name,
            "rows": [asdict(row) for row in self.rows],
            "comparisons": [asdict(each) for each in self.comparisons],
            "cost": {
                "stages": stages,
                "break_even": None if self.break_even is None else asdict(self.break_even),
                "break_even_questions": self.break_even and self.break_even.questions,
            },
            "funnel": dict(self.funnel),
            "training": self.training,
        }
        cleaned: dict[str, Any] = without_nan(data)
        return cleaned

    def __str__(self) -> str:
        first = self.rows[0] if self.rows else None
        head = self.name
        if first is not None:
            head += f": {first.problems:,} test problems × {first.samples} samples"
        parts = [
            [head],
            table.funnel_lines(self.funnel, self.training),
            table.evaluation_lines(self.rows, self.comparisons),
            table.cost_lines(self.costs, self.break_even),
        ]
        return "\n\n".join("\n".join(lines) for lines in parts if lines)


def report(run_directory: Path | str) -> Report:
    """Write `report.json`, `report.png` and `report.svg` below `RUN/report`, and return it all.

    Everything is compared with the model `base` under the first exit whose policy is none, over
    the same problems and seeds. Raises DtoError when the run has not been evaluated.
    """
    run = Path(run_directory)
    recipe = load_recipe(run / "recipe.yaml")
    found = _evaluated(run, recipe)
    plain = next((exit.name for exit in recipe.evaluate.exits if exit.policy == "none"), "")
    base = base_arm(found, plain)
    rows = tuple(report_row(arm, base) for arm in found)
    costs = stage_costs(run)
    by_name = {(row.model, row.exit): row for row in rows}
    base_row, trained_row = by_name.get(("base", plain)), by_name.get(("trained", plain))
    result = Report(
        name=recipe.name,
        rows=rows,
        comparisons=()
        if base is None
        else tuple(compare(arm, base) for arm in found if arm is not base),
        costs=tuple(costs),
        break_even=break_even(costs, base_row, trained_row)
        if base_row is not None and trained_row is not None
        else None,
        funnel=funnel(run),
        training=training(run),
    )
    directory = run / "report"
    directory.mkdir(exist_ok=True)
    text = json.dumps(result.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
    manifest.write_text(directory / "report.json", text + "\n")
    draw(rows, directory, str(result).splitlines()[0])
    return result


def _evaluated(run: Path, recipe: Recipe) -> list[Arm]:
    """The evaluation table by model and exit, in the recipe's order."""
    path = run / "evaluate" / "rows.parquet"
    if not path.is_file():
        raise DtoError(f"report needs {path}: start `dto evaluate {run}` first")
    rows = pl.read_parquet(path, columns=list(COLUMNS))
    timings = path.with_name("timings.parquet")
    if timings.is_file():
        rows = rows.join(pl.read_parquet(timings), on="id", how="left")
    else:
        rows = rows.with_columns(seconds=pl.lit(None, pl.Float64))
    models = {name: place for place, name in enumerate(recipe.evaluate.models)}
    exits = {exit.name: place for place, exit in enumerate(recipe.evaluate.exits)}
    problems = run / "problems" / "rows.parquet"
    expected = 0
    if problems.is_file():
        asked = pl.scan_parquet(problems).filter(split="test").select(pl.len()).collect().item()
        expected = int(asked) * recipe.evaluate.samples
    return sorted(
        arms(rows, expected),
        key=lambda arm: (models.get(arm.model, len(models)), exits.get(arm.exit, len(exits))),
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
