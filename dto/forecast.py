"""What a run will take, from a pilot of a few problems: `dto run RECIPE --pilot 20`.

Tokens and FLOPs of a stage are the mean over the pilot's problems times the number there will be.
Their 95 % intervals come from a bootstrap that draws problems, the same draws for all stages,
widened for few problems (Student's t) and because the run's own problems are a draw too: by
sqrt(1 + n / N). Where a few problems take most of the tokens they promise too much: in simulations
with 20 problems they hold in 94, 92 and 88 % of the cases for lognormal tokens of spread 0.3, 0.6
and 1, and what they miss is mostly a run that takes more.

FLOPs take the share of prefixes that the pilot read from the prefix cache. With more rows at once
it holds fewer of them: the high end has each computed again for every call.

What training shortens is known only once it is done: the pilot trains on a handful of pairs. What a
trained model generates (its dev evaluations, its arms of the evaluation) may be anything between
what the responses have that it is trained on and what the base model's have: both ends are in the
interval. Training is forecast to its end; one that collapses stops earlier.

Seconds are fixed ones (an engine that starts, tables that are written), which stay as they are, and
busy ones, which grow with the tokens. A pilot is too small to fill an engine's batch, so busy
seconds grow by less: if it had k requests under way at a time in the mean, and the run will have K,
throughput grows by a factor between 1 (the device was full already) and K / k (a step takes as long
with K as with k). Both ends are in the interval; the figure takes the square root between them. The
batches of training are as full in the pilot, it grows with its tokens. Stages without an engine
grow with the problems, their interval is a factor of 2 either way. Seconds are of this machine,
under the load that it had: no interval knows what else will run beside.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, isnan, nan, sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from dto.errors import RecipeError
from dto.pipeline import needed, open_run
from dto.recipe import ModelSettings, Recipe
from dto.records import Problem
from dto.reporting.cost import BACKWARD
from dto.reporting.report import without_nan
from dto.reporting.table import aligned
from dto.runs import manifest
from dto.runs.run import Run
from dto.sequential import SequentialTest
from dto.statistics import widening
from dto.usage import ModelShape, attention_flops

Column = npt.NDArray[np.float64]
Columns = Mapping[str, Column]
"""A value for each of the pilot's problems, by stratum."""

RESAMPLES = 2000
SEED = 20_250_521


@dataclass(frozen=True, slots=True)
class Range:
    """A figure and its interval; nan where it is not known."""

    value: float
    low: float
    high: float

    def plus(self, other: Range) -> Range:
        """The sum; ends are added, as if all erred the same way."""
        return Range(self.value + other.value, self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> Range:
        """All three times a factor."""
        return Range(self.value * factor, self.low * factor, self.high * factor)


NOTHING = Range(0.0, 0.0, 0.0)


class Extrapolation:
    """From the pilot's problems to those of the run.

    Args:
        ids: the pilot's problems by stratum (train, dev, each test set), two or more in each.
        actual: how many problems of each stratum the run has.
    """

    def __init__(self, ids: Mapping[str, Sequence[str]], actual: Mapping[str, int]) -> None:
        rng = np.random.default_rng(SEED)
        self.ids = ids
        self.actual = actual
        self._weights_RP = {
            stratum: rng.multinomial(len(own), np.full(len(own), 1 / len(own)), RESAMPLES)
            / len(own)
            for stratum, own in ids.items()
        }

    def total(self, values: Columns) -> Range:
        """The sum over all problems of these strata."""
        return self._range([(each, values[each], self.actual[each]) for each in values])

    def like(self, stratum: str, values: Column, number: int) -> Range:
        """The sum over `number` other problems like those of a stratum."""
        return self._range([(stratum, values, number)])

    def growth(self, values: Columns) -> Range:
        """The sum over all problems, over the pilot's; of their number where that is 0."""
        had = sum(float(column.sum()) for column in values.values())
        if had > 0:
            return self.total(values).times(1 / had)
        number = sum(self.actual[each] for each in values)
        return Range(1.0, 1.0, 1.0).times(number / sum(len(self.ids[each]) for each in values))

    def _range(self, parts: Sequence[tuple[str, Column, int]]) -> Range:
        value, draws_R = 0.0, np.zeros(RESAMPLES)
        for stratum, column, number in parts:
            had, mean = len(column), float(column.mean())
            wider = widening(had) * sqrt(1 + had / max(1, number))
            value += number * mean
            draws_R += number * (mean + wider * (self._weights_RP[stratum] @ column - mean))
        if not np.isfinite(value):
            return Range(nan, nan, nan)
        low, high = np.quantile(draws_R, [0.025, 0.975])
        return Range(value, max(0.0, float(low)), float(high))


ENGINE = ("sample", "estimate", "optimize", "prune", "evaluate")
"""Stages whose work is requests to an engine."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The wall seconds of a stage: what it takes however few rows there are, and the rest.

    `fixed` is what passed outside the work on rows (an engine or processes that start, tables that
    are written), `busy` the rest. `in_flight` rows were under way at a time, in the mean over
    `busy`.
    """

    fixed: float
    busy: float
    in_flight: float


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens generated and attention FLOPs by problem of a stratum (nan where not known).

    `again` are the FLOPs that would come on top if no prefix were found in the cache: each is then
    computed once a call (the requests of one call share it in any case).
    """

    tokens: Column
    flops: Column
    again: Column


@dataclass(frozen=True, slots=True)
class Training:
    """What training took, and what it trained on, by training problem, over all epochs.

    `pairs` counts them, `tokens` are read, `flops` are of forward and backward passes. A method
    that trains on something else has no pairs: its tokens are shared out as the sampled ones are.
    """

    pairs: Column
    tokens: Column
    flops: Column
    points: int  # dev evaluations
    tokens_trained: int
    dev_tokens: int
    start_seconds: float
    train_seconds: float
    dev_seconds: float


def problem_ids(run: Path, recipe: Recipe) -> dict[str, list[str]]:
    """The pilot's problems by stratum: `train`, `dev`, and `test` with its task."""
    columns = ("id", "task", "split")
    rows = pl.read_parquet(run / "problems" / "rows.parquet", columns=list(columns))
    if recipe.evaluate.tasks:
        tests = pl.read_parquet(run / "test" / "rows.parquet", columns=list(columns))
        rows = pl.concat([rows.filter(pl.col("split") != "test"), tests])
    found: dict[str, list[str]] = {}
    for id, task, split in rows.iter_rows():
        found.setdefault(f"test {task}" if split == "test" else split, []).append(id)
    return found


def spent(run: Path, stage: str, ids: Sequence[str], width: int) -> Spent:
    """What a stage took for each of the problems; what has no row took nothing.

    A call made `width` requests.
    """
    return _by_problem(_usage(run, stage), ids, _shape(run), width)


def spent_by_arm(run: Path, ids: Sequence[str]) -> dict[tuple[str, str], Spent]:
    """What the evaluation took for each of the problems, by model and exit."""
    parts = _usage(run, "evaluate").partition_by("model", "exit", as_dict=True)
    shape = _shape(run)
    return {
        (str(model), str(exit)): _by_problem(part, ids, shape, 1)
        for (model, exit), part in parts.items()
    }


def _usage(run: Path, stage: str) -> pl.DataFrame:
    frame = pl.read_parquet(
        run / stage / "usage.parquet",
        columns=["key", "requests", "cached", "generated", "attention_flops"],
    )
    parts = pl.col("key").str.split("/")
    if stage != "evaluate":
        return frame.with_columns(problem=parts.list.first())
    # model / exit / problem, and the model may be a path
    return frame.with_columns(
        problem=parts.list.last(),
        exit=parts.list.get(-2),
        model=parts.list.head(parts.list.len() - 2).list.join("/"),
    )


def _by_problem(
    frame: pl.DataFrame, ids: Sequence[str], shape: ModelShape | None, width: int
) -> Spent:
    again = [
        requests / width * attention_flops(shape, 0, round(cached / requests)) if requests else 0.0
        for requests, cached in frame.select("requests", "cached").iter_rows()
    ]
    sums = (
        frame.with_columns(again=pl.Series(again, dtype=pl.Float64))
        .group_by("problem")
        .agg(pl.col("generated", "attention_flops", "again").cast(pl.Float64).sum())
    )
    rows = pl.DataFrame({"problem": ids}).join(
        sums, on="problem", how="left", maintain_order="left"
    )
    rows = rows.fill_null(0.0)
    return Spent(*(rows[name].to_numpy() for name in ("generated", "attention_flops", "again")))


def clock(run: Path, stage: str) -> Clock:
    """How a stage spent its time.

    Stages without an engine start their processes with the first row: the time to the first result
    is fixed for them.
    """
    done = _manifest(run, stage)
    seconds = float(done["seconds"])
    busy = min(seconds, float(done.get("fed_seconds", 0.0)))
    took = pl.read_parquet(run / stage / "timings.parquet", columns=["seconds"])["seconds"]
    if stage not in ENGINE and len(took):
        busy = max(0.0, busy - float(took.min()))  # type: ignore[arg-type]
    in_flight = float(took.sum()) / busy if busy > 0 else 0.0
    return Clock(seconds - busy, busy, in_flight)


def judge_usage(run: Path) -> dict[str, Any] | None:
    """What the judge of `prune` took; None where none was asked."""
    usage: dict[str, Any] | None = _manifest(run, "prune").get("judge_usage")
    return usage


def training(run: Path, ids: Sequence[str], epochs: float, sampled: Spent) -> Training:
    """What training took."""
    done = _manifest(run, "train")
    held_PX = _trained_on(run, ids) * epochs
    if not (run / "pair" / "rows.parquet").is_file():
        share_P = sampled.tokens / max(1.0, float(sampled.tokens.sum()))
        held_PX[:, 1] = share_P * int(done["tokens_trained"])
        held_PX[:, 2] = np.nan
    train_seconds, dev_seconds = float(done["train_seconds"]), float(done["dev_seconds"])
    path = run / "train" / "history.jsonl"
    history = path.read_text(encoding="utf-8") if path.is_file() else ""
    return Training(
        pairs=held_PX[:, 0],
        tokens=held_PX[:, 1],
        flops=held_PX[:, 2],
        points=sum(bool(line.strip()) for line in history.splitlines()),
        tokens_trained=int(done["tokens_trained"]),
        dev_tokens=int(done["usage"]["generated"]),
        start_seconds=max(0.0, float(done["seconds"]) - train_seconds - dev_seconds),
        train_seconds=train_seconds,
        dev_seconds=dev_seconds,
    )


def _trained_on(run: Path, ids: Sequence[str]) -> npt.NDArray[np.float64]:
    """Pairs, tokens and FLOPs of one pass over the pairs, by problem."""
    held_PX = np.zeros((len(ids), 3))
    path = run / "pair" / "rows.parquet"
    if not path.is_file():
        return held_PX
    columns = ["problem_id", "prompt_tokens", "chosen_tokens", "rejected_tokens"]
    shape, place = _shape(run), {id: number for number, id in enumerate(ids)}
    for problem, prompt, chosen, rejected in pl.read_parquet(path, columns=columns).iter_rows():
        flops = sum(attention_flops(shape, 0, prompt + side) for side in (chosen, rejected))
        tokens = 2 * prompt + chosen + rejected
        held_PX[place[problem]] += (1, tokens, BACKWARD * flops)
    return held_PX


def shortened(run: Path) -> float:
    """Tokens of the sampled responses as they are trained on, over those that they have.

    One without an optimized version counts as it is; at most 1. Where nothing is optimized nobody
    knows what training will shorten: 0.
    """
    if not (run / "prune" / "rows.parquet").is_file():
        return 0.0
    tokens = pl.col("token_ids").list.len().cast(pl.Int64)
    before = pl.scan_parquet(run / "sample" / "rows.parquet").select("id", before=tokens)
    after = pl.scan_parquet(run / "prune" / "rows.parquet").select("id", "tokens_after")
    rows = before.join(after, on="id", how="left").collect(engine="streaming")
    kept = rows["tokens_after"].fill_null(rows["before"])
    total = int(rows["before"].sum())
    return min(1.0, float(kept.sum()) / total) if total else 1.0


def _shape(run: Path) -> ModelShape | None:
    config = run / "train" / "model" / "config.json"
    if not config.is_file():
        return None
    data: Mapping[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    return ModelShape.from_config(SimpleNamespace(**data))


def _manifest(run: Path, stage: str) -> dict[str, Any]:
    done = manifest.read(run / stage)
    assert done is not None, f"the pilot in {run} has finished {stage}"
    return done


VLLM_SEQUENCES = 256
"""What vLLM decodes together on a GPU."""


@dataclass(frozen=True, slots=True)
class StageForecast:
    """One stage: tokens generated and trained on, attention FLOPs (nan where not known), seconds.

    `fixed_seconds` are part of `seconds`. `gpu_hours` are the seconds times the GPUs that are held;
    None without one, or where the engine is somewhere else.
    """

    stage: str
    tokens: Range
    trained_tokens: Range
    attention_flops: Range
    seconds: Range
    fixed_seconds: float
    gpu_hours: Range | None = None


def row_stage(stage: str, run: Path, recipe: Recipe, over: Extrapolation) -> StageForecast:
    """Sample, estimate, optimize or prune: requests for the training problems."""
    width = _width(stage, recipe)
    had = spent(run, stage, over.ids["train"], width)
    groups = over.actual["train"] * (1 if stage == "sample" else recipe.sample.samples)
    timing = clock(run, stage)
    seconds = _seconds(
        timing, over.growth({"train": had.tokens}), _fuller(stage, timing, recipe, groups)
    )
    return StageForecast(
        stage,
        over.total({"train": had.tokens}),
        NOTHING,
        _with_high(over.total({"train": had.flops}), over.total({"train": had.flops + had.again})),
        seconds,
        timing.fixed,
    )


def judge_stage(run: Path, recipe: Recipe, over: Extrapolation) -> list[StageForecast]:
    """What the judge of `prune` generates; its requests are among the seconds of that stage.

    It reads the trajectories: its tokens grow as those do. None where no judge is asked.
    """
    usage = judge_usage(run)
    if usage is None:
        return []
    ids = over.ids["train"]
    growth = over.growth({"train": spent(run, "sample", ids, recipe.sample.samples).tokens})
    flops = usage["attention_flops"]
    return [
        StageForecast(
            "judge",
            growth.times(usage["generated"]),
            NOTHING,
            growth.times(nan if flops is None else flops),
            NOTHING,
            0.0,
        )
    ]


def plain_stage(stage: str, run: Path, over: Extrapolation) -> StageForecast:
    """A stage without an engine; problems are loaded at once, however many they are."""
    timing = clock(run, stage)
    ratio = over.actual["train"] / len(over.ids["train"]) if stage in ("segment", "pair") else 1.0
    busy = Range(1.0, 0.5, 2.0).times(timing.busy * ratio)
    seconds = busy.plus(Range(1.0, 1.0, 1.0).times(timing.fixed))
    return StageForecast(stage, NOTHING, NOTHING, NOTHING, seconds, timing.fixed)


def evaluate_stage(
    run: Path, recipe: Recipe, over: Extrapolation, shortened: float
) -> StageForecast:
    """All arms on all test sets. Of the trained model's the low end is `shortened`."""
    strata = [name for name in over.ids if name.startswith("test ")]
    had = {name: spent_by_arm(run, over.ids[name]) for name in strata}
    exits = [exit.name for exit in recipe.evaluate.exits]
    names = [(model, exit) for model in recipe.evaluate.models for exit in exits]
    trained = [name for name in names if name[0] == "trained"]
    others = [name for name in names if name[0] != "trained"]
    untrained = [("base", exit) for exit in exits if "base" in recipe.evaluate.models]
    ranges = []
    for quantity, power in (("tokens", 1), ("flops", 2), ("again", 2)):
        own, base = (_columns(had, arms, quantity) for arms in (trained, untrained))
        learned = over.total(own) if trained else NOTHING
        if trained:
            high = max(learned.high, over.total(base).high) if untrained else learned.high
            learned = Range(learned.value, learned.low * shortened**power, high)
        ranges.append(over.total(_columns(had, others, quantity)).plus(learned))
    tokens, flops, again = ranges
    flops = _with_high(flops, flops.plus(again))
    pilot = sum(float(column.sum()) for column in _columns(had, names, "tokens").values())
    timing = clock(run, "evaluate")
    groups = len(exits) * sum(over.actual[name] for name in strata)
    growth = tokens.times(1 / pilot) if pilot else over.growth(_columns(had, names, "tokens"))
    seconds = _seconds(timing, growth, _fuller("evaluate", timing, recipe, groups))
    return StageForecast("evaluate", tokens, NOTHING, flops, seconds, timing.fixed)


def _columns(
    had: Mapping[str, Mapping[tuple[str, str], Spent]],
    arms: list[tuple[str, str]],
    quantity: str,
) -> dict[str, Column]:
    """The sum over arms, by stratum; an arm that has no rows took nothing."""
    return {
        stratum: sum(
            (getattr(own[arm], quantity) for arm in arms if arm in own),
            np.zeros(len(next(iter(own.values())).tokens)),
        )
        for stratum, own in had.items()
    }


def train_stage(run: Path, recipe: Recipe, over: Extrapolation, shortened: float) -> StageForecast:
    """The pairs, as often as there are epochs, and the dev evaluations.

    A dev response is forecast as the sampled ones are; only that of the base model, which is
    measured first, has its length for sure.
    """
    ids, settings, dev = over.ids["train"], recipe.train, over.actual["dev"]
    samples = recipe.sample.samples
    sampled = spent(run, "sample", ids, samples)
    done = training(run, ids, settings.epochs, sampled)
    trained = over.total({"train": done.tokens})
    evaluations = settings.evaluations
    if pairs := over.total({"train": done.pairs}).value:
        steps = ceil(pairs / (settings.batch_size * settings.gradient_accumulation))
        evaluations = min(evaluations, steps)
    points = evaluations + 1 if done.points else 0
    responses = settings.dev_samples / samples * points
    tokens, flops = (
        _floored(over.like("train", column, dev).times(responses), evaluations, points, shorter)
        for column, shorter in ((sampled.tokens, shortened), (sampled.flops, shortened**2))
    )
    flops = flops.plus(over.total({"train": done.flops}))
    seconds = Range(1.0, 1.0, 1.0).times(done.start_seconds)
    if done.tokens_trained:
        seconds = seconds.plus(trained.times(done.train_seconds / done.tokens_trained))
    if done.dev_tokens:
        each = len(over.ids["dev"]) * settings.dev_samples
        clock = Clock(0.0, done.dev_seconds, float(min(each, _slots(recipe.model))))
        fuller = min(_slots(recipe.model), dev * settings.dev_samples) / clock.in_flight
        seconds = seconds.plus(_seconds(clock, tokens.times(1 / done.dev_tokens), fuller))
    return StageForecast("train", tokens, trained, flops, seconds, done.start_seconds)


def _with_high(figure: Range, other: Range) -> Range:
    return Range(figure.value, figure.low, other.high)


def _floored(whole: Range, evaluations: int, points: int, shorter: float) -> Range:
    """All points but the first may be shorter."""
    if not points:
        return NOTHING
    share = (points - evaluations + evaluations * shorter) / points
    return Range(whole.value, whole.low * share, whole.high)


def _seconds(clock: Clock, growth: Range, fuller: float) -> Range:
    """Busy seconds grow, less where the batch gets `fuller` times as full."""
    fuller = max(1.0, fuller)
    busy = Range(growth.value / sqrt(fuller), growth.low / fuller, growth.high).times(clock.busy)
    return busy.plus(Range(1.0, 1.0, 1.0).times(clock.fixed))


def _fuller(stage: str, clock: Clock, recipe: Recipe, groups: int) -> float:
    """Requests under way at a time in the run, over those of the pilot."""
    width = _width(stage, recipe)
    # The evaluation times its rows, of which each is a request; other stages their groups.
    had = clock.in_flight * (1 if stage == "evaluate" else width)
    slots = _slots(recipe.model)
    most = min(slots, width * min(groups, recipe.window))
    return most / max(1.0, min(had, slots))


def _width(stage: str, recipe: Recipe) -> int:
    """Requests that a group of rows makes at a time."""
    estimate = recipe.estimate
    test = SequentialTest(estimate.threshold, estimate.margin, estimate.error, estimate.cap)
    at_once = (
        test.rounds_to_decision(0, 0) if estimate.method == "sequential" else estimate.rollouts
    )
    return {
        "sample": recipe.sample.samples,
        "estimate": at_once,
        "optimize": recipe.optimize.finalizations,
        "prune": recipe.prune.rollouts,
        "evaluate": recipe.evaluate.samples,
    }[stage]


def _slots(model: ModelSettings) -> int:
    if model.engine == "openai":
        return model.concurrency
    if model.engine == "vllm":
        return max(model.slots, VLLM_SEQUENCES)
    return model.slots


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
            if run.state(stage) == "begun":
                run.set_aside(stage)
        run_stages(run, stages)
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
    from dto.tasks.load import load_problems
    from dto.tasks.problems import load_test_sets

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
    ids = problem_ids(run.path, run.recipe)
    _enough({name: len(ids.get(name, ())) for name in actual})
    over = Extrapolation({name: ids[name] for name in actual}, actual)
    shorter = shortened(run.path)
    stages = []
    for stage in run_order(run):
        if stage == "train":
            stages.append(train_stage(run.path, recipe, over, shorter))
        elif stage == "evaluate":
            stages.append(evaluate_stage(run.path, recipe, over, shorter))
        elif stage in ENGINE:
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
    return [*needed(run.recipe)]


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
