"""The forecast of each stage (:mod:`dto.forecast` says how and why)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, nan, sqrt
from pathlib import Path

import numpy as np

from dto.forecast import measured
from dto.forecast.extrapolate import NOTHING, Column, Extrapolation, Range
from dto.forecast.measured import Clock, Spent
from dto.recipe import ModelSettings, Recipe
from dto.sequential import SequentialTest

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
    had = measured.spent(run, stage, over.ids["train"], width)
    groups = over.actual["train"] * (1 if stage == "sample" else recipe.sample.samples)
    clock = measured.clock(run, stage)
    seconds = _seconds(
        clock, over.growth({"train": had.tokens}), _fuller(stage, clock, recipe, groups)
    )
    return StageForecast(
        stage,
        over.total({"train": had.tokens}),
        NOTHING,
        _with_high(over.total({"train": had.flops}), over.total({"train": had.flops + had.again})),
        seconds,
        clock.fixed,
    )


def judge_stage(run: Path, recipe: Recipe, over: Extrapolation) -> list[StageForecast]:
    """What the judge of `prune` generates; its requests are among the seconds of that stage.

    It reads the trajectories: its tokens grow as those do. None where no judge is asked.
    """
    usage = measured.judge_usage(run)
    if usage is None:
        return []
    ids = over.ids["train"]
    growth = over.growth(
        {"train": measured.spent(run, "sample", ids, recipe.sample.samples).tokens}
    )
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
    clock = measured.clock(run, stage)
    ratio = over.actual["train"] / len(over.ids["train"]) if stage in ("segment", "pair") else 1.0
    busy = Range(1.0, 0.5, 2.0).times(clock.busy * ratio)
    seconds = busy.plus(Range(1.0, 1.0, 1.0).times(clock.fixed))
    return StageForecast(stage, NOTHING, NOTHING, NOTHING, seconds, clock.fixed)


def evaluate_stage(
    run: Path, recipe: Recipe, over: Extrapolation, shortened: float
) -> StageForecast:
    """All arms on all test sets. Of the trained model's the low end is `shortened`."""
    strata = [name for name in over.ids if name.startswith("test ")]
    had = {name: measured.spent_by_arm(run, over.ids[name]) for name in strata}
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
    clock = measured.clock(run, "evaluate")
    groups = len(exits) * sum(over.actual[name] for name in strata)
    growth = tokens.times(1 / pilot) if pilot else over.growth(_columns(had, names, "tokens"))
    seconds = _seconds(clock, growth, _fuller("evaluate", clock, recipe, groups))
    return StageForecast("evaluate", tokens, NOTHING, flops, seconds, clock.fixed)


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
    sampled = measured.spent(run, "sample", ids, samples)
    done = measured.training(run, ids, settings.epochs, sampled)
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
