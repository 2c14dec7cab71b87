"""Run a recipe with a few problems, and say what all of them will take."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

from dto.errors import RecipeError
from dto.forecast import measured
from dto.forecast.extrapolate import NOTHING, Extrapolation, Range
from dto.forecast.stages import (
    StageForecast,
    evaluate_stage,
    judge_stage,
    plain_stage,
    row_stage,
    train_stage,
)
from dto.recipe import Recipe
from dto.records import Problem
from dto.reporting.report import without_nan
from dto.reporting.table import aligned
from dto.runs import manifest
from dto.runs.graph import needed, test_stage
from dto.runs.run import Run, open_run


@dataclass(frozen=True, slots=True)
class Forecast:
    """All stages and their sum; `str()` gives the table for the terminal.

    `pilot` and `problems` count the problems of the pilot and of the run by stratum (train, dev,
    each test set).
    """

    name: str
    pilot: Mapping[str, int]
    problems: Mapping[str, int]
    stages: tuple[StageForecast, ...]
    total: StageForecast
    pilot_tokens: int
    pilot_seconds: float

    def as_json(self) -> dict[str, Any]:
        """The content of `forecast.json`: strict JSON, a figure without value is null."""
        data: dict[str, Any] = without_nan(asdict(self))
        return data

    def __str__(self) -> str:
        asked = ", ".join(
            f"{number:,} {name} ({self.pilot[name]})" for name, number in self.problems.items()
        )
        cells: list[tuple[str, ...]] = [
            ("stage", "tokens (95 %)", "trained", "FLOPs", "seconds (bounds)", "fixed")
        ]
        for row in (*self.stages, self.total):
            cells.append(
                (
                    row.stage, _count(row.tokens), f"{row.trained_tokens.value:,.0f}",
                    "–" if isnan(row.attention_flops.value) else f"{row.attention_flops.value:.1e}",
                    _count(row.seconds), f"{row.fixed_seconds:,.0f}",
                )
            )  # fmt: skip
        if self.total.gpu_hours is not None:
            hours = [row.gpu_hours or NOTHING for row in (*self.stages, self.total)]
            shown = ["GPU-hours", *(f"{h.value:,.2f} ({h.low:,.2f}–{h.high:,.2f})" for h in hours)]
            cells = [(*row, last) for row, last in zip(cells, shown, strict=True)]
        lines = [
            f"{self.name}: forecast for {asked} problems (pilot)",
            "",
            *aligned(cells, left=1),
        ]
        lines.append(
            f"The pilot took {self.pilot_tokens:,} tokens and {self.pilot_seconds:,.0f} seconds. "
            "Nothing else was run."
        )
        return "\n".join(lines)


def pilot_recipe(recipe: Recipe, problems: int) -> Recipe:
    """The recipe with at most so many problems of each split and each test set.

    Raises RecipeError for imported responses, which take nothing to sample, for batch prompts, and
    for a comparison of methods.
    """
    if recipe.compare.methods:
        raise RecipeError("--pilot: a comparison is many runs: forecast the recipe of a method")
    if recipe.batch.k or recipe.train.method in ("drqa", "cft", "sft_batch"):
        raise RecipeError(
            "--pilot: batch prompts and labelled chains cannot be forecast: run the recipe with a "
            "few problems instead, as in --set problems.train=40"
        )
    if recipe.sample.imported:
        raise RecipeError(
            f"--pilot: the responses of {recipe.sample.imported} are there already, and cannot be "
            "taken in part: put some of them into a file of their own and import that"
        )
    own, evaluate = recipe.problems, recipe.evaluate
    fewer = {split: min(getattr(own, split), problems) for split in ("train", "dev", "test")}
    limit = {"limit": min(evaluate.limit or problems, problems)} if evaluate.tasks else {}
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-pilot",
            "problems": own.model_copy(update=fewer),
            "evaluate": evaluate.model_copy(update=limit),
        }
    )


def run_pilot(
    recipe: Recipe, place: Path, problems: int, begin: Callable[[Path, Recipe], Run] = open_run
) -> Forecast:
    """Run every stage with `problems` problems in a directory of its own; forecast the run.

    The pilot goes into PLACE-pilot, never into the run's own directory; `forecast.json` is written
    there. `begin` opens it. Stages that an earlier attempt left unfinished begin anew, as their
    seconds are measured. Raises RecipeError for what cannot be forecast.
    """
    from dto.pipeline import run_stages

    small = pilot_recipe(recipe, problems)
    actual = actual_problems(recipe)
    _enough(actual)
    run = begin(place.with_name(f"{place.name}-pilot"), small)
    try:
        stages = run_order(run)
        if "train" in stages and "sample" not in stages:
            raise RecipeError(
                f"--pilot: train.method {recipe.train.method} samples no responses before it "
                "trains, by which its length could be forecast"
            )
        for stage in stages:
            if manifest.read(run / stage) is None:
                run.clear(stage)
        run_stages(run, [stage for stage in stages if stage != "test"])
        result = forecast(run, recipe, actual)
    finally:
        run.close()
    text = json.dumps(result.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
    manifest.write_text(run / "forecast.json", text + "\n")
    return result


def actual_problems(recipe: Recipe) -> dict[str, int]:
    """How many problems the run has by stratum. Loads the sources, as their sizes are not known."""
    own = recipe.problems
    actual = {"train": own.train, "dev": own.dev}
    from dto.tasks.load import load_problems, load_test_sets

    rows = [row for row in load_problems(own, recipe.seed) if isinstance(row, Problem)]
    tests = [row for row in rows if row.split == "test"]
    if recipe.evaluate.tasks:
        asked = [row for row in rows if row.split != "test"]
        tests = [row for row in load_test_sets(recipe, asked) if isinstance(row, Problem)]
    for row in tests:
        actual[f"test {row.task}"] = actual.get(f"test {row.task}", 0) + 1
    return actual


def forecast(run: Run, recipe: Recipe, actual: Mapping[str, int]) -> Forecast:
    """What `recipe` will take with so many problems (`actual`), from a finished pilot `run`.

    Raises RecipeError when a stratum has fewer than two problems in the pilot.
    """
    ids = measured.problem_ids(run.path, run.recipe)
    _enough({name: len(ids.get(name, ())) for name in actual})
    over = Extrapolation({name: ids[name] for name in actual}, actual)
    shortened = measured.shortened(run.path)
    stages = []
    for stage in run_order(run):
        if stage == "train":
            stages.append(train_stage(run.path, recipe, over, shortened))
        elif stage == "evaluate":
            stages.append(evaluate_stage(run.path, recipe, over, shortened))
        elif stage in measured.ENGINE:
            stages.append(row_stage(stage, run.path, recipe, over))
            stages += judge_stage(run.path, recipe, over) if stage == "prune" else ()
        else:
            stages.append(plain_stage(stage, run.path, over))
    total = StageForecast("total", NOTHING, NOTHING, NOTHING, NOTHING, 0.0)
    for row in stages:
        total = StageForecast(
            "total",
            total.tokens.plus(row.tokens),
            total.trained_tokens.plus(row.trained_tokens),
            total.attention_flops.plus(row.attention_flops),
            total.seconds.plus(row.seconds),
            total.fixed_seconds + row.fixed_seconds,
        )
    took = [manifest.read(run / stage) or {} for stage in run_order(run)]
    usages = [done.get(key) or {} for done in took for key in ("usage", "judge_usage")]
    if gpus := _gpus(recipe):
        held = gpus / 3600
        stages = [replace(row, gpu_hours=row.seconds.times(held)) for row in stages]
        total = replace(total, gpu_hours=total.seconds.times(held))
    return Forecast(
        name=recipe.name,
        pilot={name: len(own) for name, own in over.ids.items()},
        problems=dict(actual),
        stages=tuple(stages),
        total=total,
        pilot_tokens=sum(int(usage.get("generated", 0)) for usage in usages),
        pilot_seconds=sum(float(done.get("seconds", 0.0)) for done in took),
    )


def _enough(counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        if count < 2:
            raise RecipeError(
                f"--pilot: there are {count} problems for {name}, and 2 are the least to forecast "
                "from: name a larger source or more of problems"
            )


def run_order(run: Run) -> list[str]:
    """The stages that `dto run` computes, in their order, without the report."""
    stages = [stage for stage in needed(run.recipe) if stage != "report"]
    if test_stage(run.recipe) == "test":
        stages.insert(stages.index("evaluate"), "test")
    return stages


def _gpus(recipe: Recipe) -> int:
    import torch

    model = recipe.model
    if model.engine == "openai" or model.device == "cpu" or not torch.cuda.is_available():
        return 0
    return model.tensor_parallel if model.engine == "vllm" else 1


def _count(figure: Range) -> str:
    if isnan(figure.value):
        return "–"
    if not figure.high:
        return "0"
    return f"{figure.value:,.0f} ({figure.low:,.0f}–{figure.high:,.0f})"
