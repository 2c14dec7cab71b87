"""Forecast tokens and FLOPs of a run from a pilot of few problems: `dto run RECIPE --pilot 20`.

The forecast of a stage is the mean over the pilot's problems times the number of problems in the
run. Its 95 % interval comes from a bootstrap over problems, with the same draws for all stages. It
is widened for few problems (Student's t) and because the problems of the run are a sample too, by
sqrt(1 + n / N). It is too narrow if a few problems take most of the tokens: in simulations with 20
problems and lognormal tokens of spread 0.3, 0.6 and 1, it covered 94, 92 and 88 % of the cases, and
most misses were runs that took more.

FLOPs assume the share of prefixes that the pilot found in the prefix cache. With more rows at once
the cache holds fewer prefixes: the high end assumes that every call computes its prefix again.

How much training shortens responses is unknown before training, since the pilot trains on a handful
of pairs. Responses of the trained model (dev evaluations, arms of the evaluation) are assumed to be
as long as those of the base model or as those it is trained on: the interval includes both. The
forecast assumes that training does not collapse and stop early.

Seconds are not forecast: a pilot does not fill the batch of an engine, and machine load changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, nan, sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from dto.cluster import Ray
from dto.engines.models import shape_of_config
from dto.errors import RecipeError
from dto.pipeline import STAGES, needed, open_run, run_stages
from dto.recipe import Recipe
from dto.records import Problem, Split
from dto.reporting.table import Cell, Table, write_json
from dto.runs.reader import RunReader
from dto.runs.run import OpenRun
from dto.statistics import Estimate, widening
from dto.usage import attention_flops

TOKENS, FLOPS, CACHED = pl.col("tokens"), pl.col("flops"), pl.col("cached")
RESAMPLES = 2000
SEED = 20_250_521

Bounds = npt.NDArray[np.float64]
"""[value, low, high] of a forecast; sums assume that all errors go the same way."""
NOTHING: Bounds = np.zeros(3)


class Extrapolation:
    """Extrapolation from the pilot's problems to the run's, by stratum (train, dev, each test set).

    Args:
        ids: problem ids of the pilot by stratum, at least two each.
        actual: number of problems of the run by stratum.
    """

    def __init__(self, ids: Mapping[str, Sequence[str]], actual: Mapping[str, int]) -> None:
        rng = np.random.default_rng(SEED)
        self.ids = ids
        self.actual = actual
        self._weights_RP = {
            stratum: rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), RESAMPLES)
            / len(rows)
            for stratum, rows in ids.items()
        }

    def total(
        self,
        frame: pl.DataFrame,
        column: pl.Expr,
        strata: Sequence[str] = ("train",),
        number: int | None = None,
    ) -> Bounds:
        """Forecast the sum of a column over all problems of the strata, or over `number` problems.

        `frame` has any number of rows per `problem`; a problem without rows counts as 0.
        """
        value, draws_R = 0.0, np.zeros(RESAMPLES)
        sums = frame.group_by("problem").agg(column.sum().cast(pl.Float64).alias("sum"))
        for stratum in strata:
            rows = pl.DataFrame({"problem": self.ids[stratum]}, schema={"problem": pl.String})
            joined = rows.join(sums, on="problem", how="left", maintain_order="left")
            values_P = joined["sum"].fill_null(0.0).to_numpy()
            times = self.actual[stratum] if number is None else number
            count, mean = len(values_P), float(values_P.mean())
            wider = widening(count) * sqrt(1 + count / max(1, times))
            value += times * mean
            draws_R += times * (mean + wider * (self._weights_RP[stratum] @ values_P - mean))
        if not np.isfinite(value):
            return np.full(3, nan)
        low, high = np.quantile(draws_R, [0.025, 0.975])
        return np.array([value, max(0.0, low), high])


@dataclass(frozen=True, slots=True)
class StageForecast:
    """Forecast of one stage: tokens generated and trained on, attention FLOPs (nan if unknown)."""

    stage: str
    tokens: Estimate
    trained_tokens: Estimate
    attention_flops: Estimate


@dataclass(frozen=True, slots=True)
class Forecast:
    """Forecast of all stages and their sum; `str()` gives the table for the terminal.

    `pilot` and `problems` count the problems of the pilot and of the run by stratum.
    """

    name: str
    pilot: Mapping[str, int]
    problems: Mapping[str, int]
    stages: tuple[StageForecast, ...]
    total: StageForecast
    pilot_tokens: int

    def __str__(self) -> str:
        counts = ", ".join(
            f"{number:,} {name} ({self.pilot[name]})" for name, number in self.problems.items()
        )
        table = Table.of(
            "",
            (*self.stages, self.total),
            {
                "stage": (lambda row: row.stage, ""),
                "tokens (95 %)": (_tokens, ",.0f"),
                "trained": (lambda row: row.trained_tokens.value, ",.0f"),
                "FLOPs": (lambda row: row.attention_flops.value, ".1e"),
            },
            notes=(f"The pilot took {self.pilot_tokens:,} tokens. The run was not started.",),
        )
        return f"{self.name}: forecast for {counts} problems (in brackets: pilot)\n\n{table.text()}"


def _tokens(row: StageForecast) -> Cell:
    return 0 if row.tokens.high == 0 else row.tokens


def pilot_recipe(recipe: Recipe, problems: int) -> Recipe:
    """Limit a recipe to this many problems per split and test set.

    Raises RecipeError for imported responses, batch prompts, training without pairs and comparisons
    of methods, which cannot be forecast.
    """
    if recipe.compare.methods:
        raise RecipeError("--pilot: a comparison has many runs: forecast the recipe of one method")
    stages = needed(recipe)
    if recipe.batch.k or ("train" in stages and "pair" not in stages):
        raise RecipeError(
            "--pilot: batch prompts and training without pairs cannot be forecast: run the recipe "
            "with few problems instead, such as --set problems.train=40"
        )
    if recipe.sample.imported:
        raise RecipeError(
            f"--pilot: cannot use a part of the imported responses in {recipe.sample.imported}: "
            "import a smaller file instead"
        )
    settings, evaluate = recipe.problems, recipe.evaluate
    fewer = {split: min(getattr(settings, split), problems) for split in ("train", "dev", "test")}
    limit = {"limit": min(evaluate.limit or problems, problems)} if evaluate.tasks else {}
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-pilot",
            "problems": settings.model_copy(update=fewer),
            "evaluate": evaluate.model_copy(update=limit),
        }
    )


def forecast_run(
    recipe: Recipe,
    path: Path,
    problems: int,
    opener: Callable[[Path, Recipe], OpenRun] = open_run,
    ray: Ray | None = None,
) -> Forecast:
    """Run every stage with `problems` problems and forecast the whole run.

    The pilot and its `forecast.json` go to the directory PATH-pilot, never to that of the run;
    `opener` opens it. With `ray` the hours are those of a run on as many actors. Raises RecipeError
    for a recipe that cannot be forecast.
    """
    small = pilot_recipe(recipe, problems)
    actual = actual_problems(recipe)
    _check_counts(actual)
    run = opener(path.with_name(f"{path.name}-pilot"), small)
    try:
        run_stages(run, needed(small), ray=ray, may_be_empty=True)
        result = forecast(run, recipe, actual)
    finally:
        run.close()
    write_json(run / "forecast.json", result)
    return result


def actual_problems(recipe: Recipe) -> dict[str, int]:
    """Count the problems of the run by stratum. This loads the sources to know their sizes."""
    from dto.tasks.load import load_problems
    from dto.tasks.problems import load_test_sets

    loaded = load_problems(recipe.problems, recipe.seed)
    rows = [row for row in loaded if isinstance(row, Problem)]
    if recipe.evaluate.tasks:
        rows = [row for row in rows if row.split != "test"]
        rows += [row for row in load_test_sets(recipe, rows) if isinstance(row, Problem)]
    return {name: len(ids) for name, ids in _strata(rows).items()}


def _check_counts(counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        if count < 2:
            raise RecipeError(
                f"--pilot: {name} has {count} problems and a forecast needs at least 2: choose a "
                f"larger source or raise problems.{name.partition(' ')[0]}"
            )


def _strata(rows: Iterable[Problem]) -> dict[str, list[str]]:
    """Group problem ids by stratum: `train`, `dev`, and `test TASK`."""
    ids: dict[str, list[str]] = {"train": [], "dev": []}
    for row in rows:
        ids.setdefault(f"test {row.task}" if row.split == "test" else row.split, []).append(row.id)
    return ids


def forecast(run: RunReader, recipe: Recipe, actual: Mapping[str, int]) -> Forecast:
    """Forecast `recipe` with `actual` problems by stratum, from a finished pilot `run`.

    Raises RecipeError if a stratum of the pilot has fewer than two problems.
    """
    stages_of: dict[Split, str] = {"train": "problems", "dev": "problems", "test": run.test_stage}
    ids = _strata(row for split, stage in stages_of.items() for row in run.problems(split, stage))
    _check_counts({name: len(ids.get(name, ())) for name in actual})
    extrapolation = Extrapolation({name: ids[name] for name in actual}, actual)
    shortening = _shortening(run)
    stages: dict[str, Bounds] = {}  # rows: tokens, trained tokens, FLOPs
    usages: list[dict[str, Any]] = []
    for stage in needed(run.recipe):
        manifest = run.manifest(stage) or {}
        usages += [manifest.get(key) or {} for key in ("usage", "judge_usage")]
        figures: Sequence[Bounds] = (NOTHING, NOTHING, NOTHING)
        if stage == "train":
            figures = _train(run, recipe, extrapolation, shortening)
        elif stage == "evaluate":
            figures = _evaluate(run, extrapolation, shortening)
        elif STAGES[stage].needs == "model":
            figures = _requests(usage(run, stage), extrapolation)
        stages[stage] = np.stack(figures)
        if judge := manifest.get("judge_usage"):
            stages["judge"] = np.stack(_judge(run, judge, extrapolation))
    pilot = {name: len(rows) for name, rows in extrapolation.ids.items()}

    def row(stage: str, figures: Bounds) -> StageForecast:
        count = sum(pilot.values())
        tokens, trained, flops = (
            Estimate(value, low, high, count, count) for value, low, high in figures.tolist()
        )
        return StageForecast(stage, tokens, trained, flops)

    return Forecast(
        name=recipe.name,
        pilot=pilot,
        problems=dict(actual),
        stages=tuple(row(stage, figures) for stage, figures in stages.items()),
        total=row("total", np.sum(list(stages.values()), axis=0)),
        pilot_tokens=sum(int(usage.get("generated", 0)) for usage in usages),
    )


def _requests(
    frame: pl.DataFrame, extrapolation: Extrapolation, strata: Sequence[str] = ("train",)
) -> tuple[Bounds, Bounds, Bounds]:
    """Forecast tokens and FLOPs of requests; the high end of FLOPs assumes an empty cache."""
    total = extrapolation.total
    flops, uncached = (total(frame, column, strata) for column in (FLOPS, FLOPS + CACHED))
    return total(frame, TOKENS, strata), NOTHING, np.array([*flops[:2], uncached[2]])


def _judge(
    run: RunReader, judge_usage: Mapping[str, Any], extrapolation: Extrapolation
) -> tuple[Bounds, Bounds, Bounds]:
    """Forecast the judge of `prune`, in proportion to the tokens of the trajectories it reads."""
    sampled = usage(run, "sample")
    growth = extrapolation.total(sampled, TOKENS / max(1.0, float(sampled["tokens"].sum())))
    flops = judge_usage["attention_flops"]
    return growth * judge_usage["generated"], NOTHING, growth * (nan if flops is None else flops)


def _evaluate(run: RunReader, extrapolation: Extrapolation, shortening: float) -> Sequence[Bounds]:
    """Forecast all arms on all test sets; `shortening` scales the low end of the trained model."""
    strata = [name for name in extrapolation.ids if name.startswith("test ")]
    frame, model = usage(run, "evaluate"), pl.col("model")
    base, trained, others = (
        np.stack(_requests(frame.filter(arms), extrapolation, strata))
        for arms in (model == "base", model == "trained", model != "trained")
    )
    if "trained" in run.recipe.evaluate.models:
        trained[:, 1] *= [shortening, 1, shortening**2]  # attention FLOPs are quadratic in length
        trained[:, 2] = np.maximum(trained[:, 2], base[:, 2])
        others += trained
    return list(others)


def _train(
    run: RunReader, recipe: Recipe, extrapolation: Extrapolation, shortening: float
) -> tuple[Bounds, Bounds, Bounds]:
    """Forecast the pairs of all epochs and the dev evaluations.

    Dev responses are assumed to be as long as sampled ones. `shortening` scales the low end of all
    dev evaluations but the first, which measures the base model.
    """
    settings, manifest = recipe.train, run.manifest("train") or {}
    prompt = pl.col("prompt_tokens").cast(pl.Int64)
    tokens = 2 * prompt + pl.col("chosen_tokens") + pl.col("rejected_tokens")
    pairs = run.frame("pair").select(problem="problem_id", tokens=tokens).collect()
    trained = extrapolation.total(pairs, settings.epochs * TOKENS)
    flops = manifest.get("attention_flops_trained")
    flops_per_token = (nan if flops is None else flops) / max(1, manifest.get("tokens_trained", 0))
    sampled = usage(run, "sample")
    batch = settings.batch_size * settings.gradient_accumulation
    steps = ceil(extrapolation.total(pairs, settings.epochs * TOKENS.is_not_null())[0] / batch)
    evaluations = min(settings.evaluations, steps or settings.evaluations)
    points = evaluations + 1 if evaluations else 0

    def generated(column: pl.Expr, factor: float) -> Bounds:
        total = extrapolation.total(sampled, column, number=extrapolation.actual["dev"])
        total *= settings.dev_samples / recipe.sample.samples * points
        total[1] *= (1 + evaluations * factor) / (1 + evaluations)  # all but that of the base
        return total

    return (
        generated(TOKENS, shortening),
        trained,
        generated(FLOPS, shortening**2) + (trained * flops_per_token),
    )


def usage(run: RunReader, stage: str) -> pl.DataFrame:
    """Read the usage of a stage by group: problem, tokens, FLOPs; for evaluate, the model.

    `cached` has the FLOPs that the prefix cache saved. Without the cache each call would compute
    its prefix once, since the requests of a call share it.
    """
    parts = pl.col("key").str.split("/")
    keys = {"problem": parts.list.first()}
    if stage == "evaluate":  # model / exit / problem, where the model can be a path
        keys = {
            "problem": parts.list.last(),
            "model": parts.list.head(parts.list.len() - 2).list.join("/"),
        }
    prefix = (pl.col("cached") / pl.col("requests")).fill_nan(0).round()
    calls = pl.col("requests") / STAGES[stage].width(run.recipe)
    return pl.read_parquet(run / stage / "usage.parquet").select(
        tokens="generated",
        flops="attention_flops",
        cached=calls * _attention(run, prefix),
        **keys,
    )


def _attention(run: RunReader, tokens: pl.Expr) -> pl.Expr:
    """Compute attention FLOPs over this many tokens, as :func:`dto.usage.attention_flops` does."""
    config, shape = run / "train" / "model" / "config.json", None
    if config.is_file():
        shape = shape_of_config(SimpleNamespace(**json.loads(config.read_text("utf-8"))))
    return attention_flops(shape, 0, 1) * tokens * (tokens + 1) / 2


def _shortening(run: RunReader) -> float:
    """Divide the tokens of the responses after optimizing by their tokens before; at most 1.

    A response without an optimized version counts unchanged. Without any optimized responses the
    effect of training is unknown: 0.
    """
    if not run.table("prune").is_file():
        return 0.0
    lengths = run.frame("sample").select(pl.col("token_ids").list.len().cast(pl.Int64))
    shorter = run.frame("prune").select(pl.col("tokens_before") - pl.col("tokens_after"))
    total, saved = (
        int(frame.sum().collect(engine="streaming").item()) for frame in (lengths, shorter)
    )
    return min(1.0, (total - saved) / total) if total else 1.0
