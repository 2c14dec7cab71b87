"""What a run cost, stage by stage, and when that has paid for itself.

Critics of 2505.21765 ask for this: rollouts are not free. Every token that was generated counts,
those of trials, of dev evaluations and of cancelled requests too. In tokens, reading prompts costs
nothing, and a token that is trained on as much as one that is generated; model FLOPs (`dto.usage`)
have all of it: what was read and not in the cache, generated and trained on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl

from dto.recipe import load_recipe, resolve
from dto.reporting.evaluation import AverageRow, ReportRow
from dto.runs import manifest
from dto.statistics import Estimate
from dto.usage import ModelShape, attention_flops

OPTIMIZATION = (
    "sample", "batch", "segment", "estimate", "optimize", "prune", "judge", "pair", "chain",
    "label", "train",
)  # fmt: skip
BACKWARD = 3.0
"""Forward and backward pass together, in forward passes."""
EARLIER = "computed by a version that did not count them"
NO_SIZE = "the size of the model is not known"


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage, or the judge that `prune` asked, whose tokens are not among those of `prune`.

    `tokens` were generated, `trained_tokens` went through training.

    `attention_flops` covers requests and, for train, forward and backward passes over the pairs;
    None where the model's config is not known. Seconds are of the wall, `peak_memory` is in bytes.
    `money` is what the judge's tokens cost at the recipe's prices, None without prices.
    `model_flops` (`dto.usage`) covers the same as `attention_flops` and holds it; None where it is
    not known, which `flops_missing` explains.
    """

    stage: str
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    wasted_tokens: int
    trained_tokens: int
    attention_flops: float | None
    seconds: float | None
    peak_memory: int | None
    money: float | None = None
    model_flops: float | None = None
    flops_missing: str = ""


@dataclass(frozen=True, slots=True)
class BreakEven:
    """After how many answered questions the optimization is paid for, in tokens and in FLOPs.

    Spent: all stages from sample to train (generated and trained tokens, those that a judge has
    generated too; attention FLOPs, not known where a judge's are not). Saved:
    per question, by the trained model without an exit policy against the base. None: never, or not
    known. `low` and `high` are ends of 95 % intervals, paired by problem, of what is saved and of
    the questions that follow from it: what was spent is exact. nan, None: no end.

    `tokens_read` are those of prompts, not from the cache, that `tokens_spent` leaves out. Model
    FLOPs have them. They leave out a judge whose size is not known (`without_judge`), and are None
    where anything else is not known, which `model_flops_missing` explains.
    """

    tokens_spent: int
    tokens_saved_per_question: float
    questions: int | None
    attention_flops_spent: float | None
    attention_flops_saved_per_question: float | None
    questions_by_flops: int | None
    tokens_saved_low: float = math.nan
    tokens_saved_high: float = math.nan
    questions_low: int | None = None
    questions_high: int | None = None
    tokens_read: int = 0
    model_flops_spent: float | None = None
    model_flops_saved_per_question: float | None = None
    model_flops_saved_low: float = math.nan
    model_flops_saved_high: float = math.nan
    questions_by_model_flops: int | None = None
    questions_by_model_flops_low: int | None = None
    questions_by_model_flops_high: int | None = None
    model_flops_missing: str = ""
    without_judge: bool = False


def stage_costs(run: Path) -> list[StageCost]:
    """The costs of the stages that are finished, from their manifests."""
    costs = []
    for stage in (*OPTIMIZATION, "evaluate"):
        if stage == "judge":
            costs += _judge_cost(run)
            continue
        done = manifest.read(run / stage)
        if done is None:
            continue
        usage: Mapping[str, Any] = done.get("usage") or {}
        flops = _number(usage.get("attention_flops"))
        model_flops, missing = _model_flops(usage)
        if stage == "train" and flops is not None:
            training = _training_flops(run, done)
            flops = None if training is None else flops + training
        if stage == "train" and done.get("tokens_trained") and model_flops is not None:
            training = _number(done.get("model_flops_trained"))
            model_flops = None if training is None else model_flops + training
            if training is None:
                missing = NO_SIZE if "model_flops_trained" in done else EARLIER
        costs.append(
            StageCost(
                stage=stage,
                tokens=int(usage.get("generated", 0)),
                prompt_tokens=int(usage.get("prompt", 0)),
                cached_tokens=int(usage.get("cached", 0)),
                wasted_tokens=int(usage.get("wasted", 0)),
                trained_tokens=int(done.get("tokens_trained", 0)),
                attention_flops=flops,
                seconds=_number(done.get("seconds")),
                peak_memory=done.get("peak_memory"),
                model_flops=model_flops,
                flops_missing=missing,
            )
        )
    return costs


def break_even(
    costs: list[StageCost],
    base: ReportRow | AverageRow,
    trained: ReportRow | AverageRow,
    saved_by_problem: Estimate | None = None,
    flops_by_problem: Estimate | None = None,
) -> BreakEven:
    """Set what was spent against what a question saves.

    `saved_by_problem` is the same difference of tokens, paired by problem, for its interval, and
    `flops_by_problem` that of model FLOPs.
    """
    spent = [cost for cost in costs if cost.stage in OPTIMIZATION]
    tokens = sum(cost.tokens + cost.trained_tokens for cost in spent)
    saved = base.tokens_mean - trained.tokens_mean
    low = high = math.nan
    if saved_by_problem is not None:
        low, high = saved_by_problem.low, saved_by_problem.high
    flops = [cost.attention_flops for cost in spent if cost.attention_flops is not None]
    flops_spent = sum(flops) if len(flops) == len(spent) else None
    flops_saved = _number(base.attention_flops_mean - trained.attention_flops_mean)
    in_model_flops = _in_model_flops(
        costs, base.model_flops_mean - trained.model_flops_mean, flops_by_problem
    )
    return BreakEven(
        tokens_spent=tokens,
        tokens_saved_per_question=saved,
        questions=_questions(tokens, saved),
        attention_flops_spent=flops_spent,
        attention_flops_saved_per_question=flops_saved,
        questions_by_flops=_questions(flops_spent, flops_saved),
        tokens_saved_low=low,
        tokens_saved_high=high,
        questions_low=_questions(tokens, high),
        questions_high=_questions(tokens, low),
        tokens_read=sum(cost.prompt_tokens - cost.cached_tokens for cost in spent),
        **in_model_flops,
    )


def _in_model_flops(
    costs: Sequence[StageCost], saved: float, by_problem: Estimate | None
) -> dict[str, Any]:
    """The fields of `BreakEven` that are about model FLOPs."""
    unknown = {
        cost.stage: cost.flops_missing
        for cost in costs
        if cost.model_flops is None and cost.stage in (*OPTIMIZATION, "evaluate")
    }
    without_judge = unknown.pop("judge", None) is not None
    if math.isnan(saved):
        unknown.setdefault("evaluate", EARLIER)
    else:
        unknown.pop("evaluate", None)  # its rows have theirs
    if unknown:
        stages: dict[str, list[str]] = {reason: [] for reason in unknown.values()}
        for stage, reason in unknown.items():
            stages[reason].append(stage)
        told = [f"{', '.join(names)}: {reason}" for reason, names in stages.items()]
        return {"model_flops_missing": "; ".join(told)}
    spent = sum(cost.model_flops or 0.0 for cost in costs if cost.stage in OPTIMIZATION)
    low, high = (by_problem.low, by_problem.high) if by_problem else (math.nan, math.nan)
    return {
        "model_flops_spent": spent,
        "model_flops_saved_per_question": saved,
        "model_flops_saved_low": low,
        "model_flops_saved_high": high,
        "questions_by_model_flops": _questions(spent, saved),
        "questions_by_model_flops_low": _questions(spent, high),
        "questions_by_model_flops_high": _questions(spent, low),
        "without_judge": without_judge,
    }


def _model_flops(usage: Mapping[str, Any]) -> tuple[float | None, str]:
    """Those of a stage's requests; where they are not known, why."""
    if not usage.get("requests"):
        return 0.0, ""
    flops = _number(usage.get("model_flops"))
    if flops is None:
        return None, NO_SIZE if "model_flops" in usage else EARLIER
    return flops, ""


def _questions(spent: float | None, saved: float | None) -> int | None:
    if spent is None or saved is None or not saved > 0:
        return None
    return math.ceil(spent / saved)


def _judge_cost(run: Path) -> list[StageCost]:
    """What the judge of `prune` took; empty where none was asked."""
    usage = (manifest.read(run / "prune") or {}).get("judge_usage")
    if usage is None:
        return []
    judge = load_recipe(run / "recipe.yaml").judge
    prices = (judge.prompt_price, judge.generated_price) if judge else (None, None)
    read, written = int(usage["prompt"]), int(usage["generated"])
    model_flops, missing = _model_flops(usage)
    money = None
    if prices != (None, None):
        money = (read * (prices[0] or 0.0) + written * (prices[1] or 0.0)) / 1e6
    return [
        StageCost(
            stage="judge",
            tokens=written,
            prompt_tokens=read,
            cached_tokens=int(usage["cached"]),
            wasted_tokens=int(usage["wasted"]),
            trained_tokens=0,
            attention_flops=_number(usage.get("attention_flops")),
            seconds=None,
            peak_memory=None,
            money=money,
            model_flops=model_flops,
            flops_missing=missing,
        )
    ]


def _training_flops(run: Path, done: Mapping[str, Any]) -> float | None:
    """The attention's, as training counted them.

    Of an earlier version, which did not: forward and backward pass over both sides of as many pairs
    as hold so many tokens.
    """
    if "attention_flops_trained" in done:
        return _number(done["attention_flops_trained"])
    tokens = int(done.get("tokens_trained", 0))
    config = run / "train" / "model" / "config.json"
    if not config.is_file():  # a run that was pulled without its weights: the base has their shape
        config = Path(resolve(load_recipe(run / "recipe.yaml").model.name)) / "config.json"
    pairs = run / "pair" / "rows.parquet"
    if not tokens:
        return 0.0
    if not config.is_file() or not pairs.is_file():
        return None
    shape = ModelShape.from_config(SimpleNamespace(**json.loads(config.read_text("utf-8"))))
    lengths = pl.read_parquet(pairs, columns=["prompt_tokens", "chosen_tokens", "rejected_tokens"])
    once = sum(
        attention_flops(shape, 0, prompt + chosen) + attention_flops(shape, 0, prompt + rejected)
        for prompt, chosen, rejected in lengths.iter_rows()
    )
    epoch: int = sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in lengths.rows())
    return float(BACKWARD * once * tokens / epoch)


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
