"""What a run cost, stage by stage, and when that has paid for itself.

Critics of 2505.21765 ask for this: rollouts are not free. Every token that was generated counts,
those of trials, of dev evaluations and of cancelled requests too. In tokens, reading prompts costs
nothing, and a token that is trained on as much as one that is generated; model FLOPs (`dto.usage`)
have all of it: what was read and not in the cache, generated and trained on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import wrap
from types import SimpleNamespace
from typing import Any

from dto.engines.models import shape_of_config
from dto.pipeline import STAGES
from dto.recipe import resolve
from dto.reporting.evaluation import Figures
from dto.reporting.table import Cell, Table
from dto.runs.reader import RunReader
from dto.statistics import NOTHING, Estimate, shown
from dto.usage import attention_flops

JUDGE = "judge"
"""The judge that `prune` asks, whose tokens are not among those of `prune`."""
OPTIMIZATION = tuple(
    name
    for stage in STAGES.values()
    if stage.spends
    for name in (stage.name, *([JUDGE] if stage.name == "prune" else []))
)
"""What is spent on optimizing and training."""
BACKWARD = 3.0
"""Forward and backward pass together, in forward passes."""
MEBIBYTE = 2**20
EARLIER = "computed by a version that did not count them"
NO_SIZE = "the size of the model is not known"


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage, or the judge that `prune` asked.

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

    Spent: all stages from sample to train, generated and trained tokens, those that a judge has
    generated too. `tokens_read` are those of prompts, not from the cache, that this leaves out.
    Saved: per question, by the trained model without an exit policy against the base, with 95 %
    intervals paired by problem. What was spent is exact, so the ends of `questions` follow from
    those of the saving. None: when the saving is not positive, or not known.

    Attention FLOPs are None where any stage's, or a judge's, are not known. Model FLOPs have what
    was read too. They leave out a judge whose size is not known (`without_judge`), and are None
    where anything else is not known, which `model_flops_missing` explains.
    """

    tokens_spent: int
    tokens_saved: Estimate
    questions: int | None
    questions_low: int | None
    questions_high: int | None
    tokens_read: int
    attention_flops_spent: float | None
    attention_flops_saved: float | None
    questions_by_flops: int | None
    model_flops_spent: float | None = None
    model_flops_saved: Estimate | None = None
    questions_by_model_flops: int | None = None
    questions_by_model_flops_low: int | None = None
    questions_by_model_flops_high: int | None = None
    model_flops_missing: str = ""
    without_judge: bool = False


def stage_costs(run: RunReader) -> list[StageCost]:
    """The costs of the stages that are finished, from their manifests."""
    costs = []
    for stage in (*OPTIMIZATION, "evaluate"):
        done = _judge(run) if stage == JUDGE else run.manifest(stage)
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
                money=done.get("money"),
                model_flops=model_flops,
                flops_missing=missing,
            )
        )
    return costs


def break_even(
    costs: Sequence[StageCost],
    base: Figures,
    trained: Figures,
    saved: Estimate = NOTHING,
    flops_saved: Estimate = NOTHING,
) -> BreakEven:
    """Set what was spent against what a question saves.

    `saved` is the same difference of tokens, paired by problem, for its interval; `flops_saved`
    that of model FLOPs.
    """
    spent = [cost for cost in costs if cost.stage in OPTIMIZATION]
    tokens = sum(cost.tokens + cost.trained_tokens for cost in spent)
    saved = replace(saved, value=base.tokens.value - trained.tokens.value)
    flops = [cost.attention_flops for cost in spent if cost.attention_flops is not None]
    flops_spent = sum(flops) if len(flops) == len(spent) else None
    attention, whole = (
        base.more[name] - trained.more[name] for name in ("attention_flops", "model_flops")
    )
    return BreakEven(
        tokens_spent=tokens,
        tokens_saved=saved,
        questions=_questions(tokens, saved.value),
        questions_low=_questions(tokens, saved.high),
        questions_high=_questions(tokens, saved.low),
        tokens_read=sum(cost.prompt_tokens - cost.cached_tokens for cost in spent),
        attention_flops_spent=flops_spent,
        attention_flops_saved=_number(attention),
        questions_by_flops=_questions(flops_spent, _number(attention)),
        **_in_model_flops(costs, replace(flops_saved, value=whole)),
    )


def _in_model_flops(costs: Sequence[StageCost], saved: Estimate) -> dict[str, Any]:
    """The fields of `BreakEven` that are about model FLOPs."""
    unknown = {
        cost.stage: cost.flops_missing
        for cost in costs
        if cost.model_flops is None and cost.stage in (*OPTIMIZATION, "evaluate")
    }
    without_judge = unknown.pop(JUDGE, None) is not None
    if math.isnan(saved.value):
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
    return {
        "model_flops_spent": spent,
        "model_flops_saved": saved,
        "questions_by_model_flops": _questions(spent, saved.value),
        "questions_by_model_flops_low": _questions(spent, saved.high),
        "questions_by_model_flops_high": _questions(spent, saved.low),
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


def _judge(run: RunReader) -> dict[str, Any] | None:
    """What the judge of `prune` took, as a manifest has it; None where none was asked."""
    usage = (run.manifest("prune") or {}).get("judge_usage")
    if usage is None:
        return None
    judge = run.recipe.judge
    prices = (judge.prompt_price, judge.generated_price) if judge else (None, None)
    money = None
    if prices != (None, None):
        spent = usage["prompt"] * (prices[0] or 0.0) + usage["generated"] * (prices[1] or 0.0)
        money = spent / 1e6
    return {"usage": usage, "money": money}


def _training_flops(run: RunReader, done: Mapping[str, Any]) -> float | None:
    """The attention's, as training counted them.

    Of an earlier version, which did not: forward and backward pass over both sides of as many pairs
    as hold so many tokens.
    """
    if "attention_flops_trained" in done:
        return _number(done["attention_flops_trained"])
    tokens = int(done.get("tokens_trained", 0))
    config = run / "train" / "model" / "config.json"
    if not config.is_file():  # a run that was pulled without its weights: the base has their shape
        config = Path(resolve(run.recipe.model.name)) / "config.json"
    if not tokens:
        return 0.0
    if not config.is_file() or not run.table("pair").is_file():
        return None
    shape = shape_of_config(SimpleNamespace(**json.loads(config.read_text("utf-8"))))
    columns = ("prompt_tokens", "chosen_tokens", "rejected_tokens")
    lengths = run.frame("pair", *columns).collect()
    once = sum(
        attention_flops(shape, 0, prompt + chosen) + attention_flops(shape, 0, prompt + rejected)
        for prompt, chosen, rejected in lengths.iter_rows()
    )
    epoch: int = sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in lengths.rows())
    return float(BACKWARD * once * tokens / epoch)


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


COST_COLUMNS: Mapping[str, tuple[Callable[[StageCost], Cell], str]] = {
    "stage": (lambda cost: cost.stage, ""),
    "tokens": (lambda cost: cost.tokens, ""),
    "read": (lambda cost: cost.prompt_tokens, ""),
    "cached": (lambda cost: cost.cached_tokens, ""),
    "wasted": (lambda cost: cost.wasted_tokens, ""),
    "trained": (lambda cost: cost.trained_tokens, ""),
    "attention FLOPs": (lambda cost: _known(cost.attention_flops), ".1e"),
    "model FLOPs": (lambda cost: _known(cost.model_flops), ".1e"),
    "attention FLOPs or 0": (lambda cost: _or_zero(cost.attention_flops), ".1e"),
    "model FLOPs or 0": (lambda cost: _or_zero(cost.model_flops), ".1e"),
    "seconds": (lambda cost: _known(cost.seconds), ",.1f"),
    "MiB": (lambda cost: _known(cost.peak_memory and cost.peak_memory / MEBIBYTE), ",.0f"),
    "money": (lambda cost: _known(cost.money), ",.4g"),
}
"""By name, what a table of costs may show."""


def cost_table(
    costs: Iterable[StageCost], columns: Mapping[str, str], title: str = "", **options: Any
) -> Table:
    """A line a stage; `columns` has by head the name of a cell (COST_COLUMNS)."""
    cells = {head: COST_COLUMNS[name] for head, name in columns.items()}
    return Table.of(title, costs, cells, **options)


def cost_text(costs: Sequence[StageCost], even: BreakEven | None) -> str:
    """For a terminal: the costs of each stage, and the break-even number of questions."""
    names = ("stage", "tokens", "read", "cached", "trained", "attention FLOPs", "model FLOPs",
             "seconds", "MiB")  # fmt: skip
    notes = [
        f"The {cost.stage}'s tokens cost {cost.money:,.4g} at the recipe's prices."
        for cost in costs
        if cost.money is not None
    ]
    if even is not None:
        notes += [*paid_for(even), *wrap(" ".join(paid_in_flops(even)), 100)]
    return cost_table(costs, {name: name for name in names}, notes=tuple(notes)).text()


def together(costs: Sequence[StageCost], name: str) -> StageCost:
    """All stages as one; FLOPs are None where a stage's are, memory and money are left out."""
    return StageCost(
        name,
        tokens=sum(cost.tokens for cost in costs),
        prompt_tokens=sum(cost.prompt_tokens for cost in costs),
        cached_tokens=sum(cost.cached_tokens for cost in costs),
        wasted_tokens=sum(cost.wasted_tokens for cost in costs),
        trained_tokens=sum(cost.trained_tokens for cost in costs),
        attention_flops=_total([cost.attention_flops for cost in costs]),
        seconds=sum(cost.seconds for cost in costs if cost.seconds is not None),
        peak_memory=None,
        model_flops=_total([cost.model_flops for cost in costs]),
    )


def _total(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(value or 0.0 for value in values)


def _or_zero(value: float | None) -> float | str:
    return "0" if value == 0 else _known(value)


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def paid_for(even: BreakEven) -> list[str]:
    """What was spent and what a question saves; after how many of them that is paid for."""
    saved = even.tokens_saved
    spent = (
        f"Spent on optimizing and training: {even.tokens_spent:,} tokens, generated or trained on."
    )
    if even.questions is None:
        if saved.value < 0:
            more = replace(saved, value=-saved.value, low=-saved.high, high=-saved.low)
            took = f"takes {more:,.1f…} tokens more"
        else:
            took = f"saves {saved:,.1f…} tokens"
        best = "it never pays"
        if even.questions_low is not None:
            best = f"that never pays, at the interval's better end after {even.questions_low:,}"
        return [spent, f"The trained model {took} a question: {best}."]
    after = f"{even.questions:,}"
    if even.questions_low is not None:
        last = "never" if even.questions_high is None else f"{even.questions_high:,}"
        after += f" ({even.questions_low:,}…{last})"
    return [
        spent,
        f"Saved by the trained model: {saved:,.1f…} a question.",
        f"Paid for after {after} questions.",
    ]


def paid_in_flops(even: BreakEven) -> list[str]:
    """What the count of tokens leaves out; then the same in model FLOPs, which have all of it."""
    lines = [
        f"This leaves out the reading of {even.tokens_read:,} tokens of prompts that were not in "
        "the cache, and that training on a token takes two to four times what generating it takes."
    ]
    spent, saved = even.model_flops_spent, even.model_flops_saved
    if spent is None or saved is None:
        return [
            *lines,
            f"In model FLOPs, which have that, it is not known ({even.model_flops_missing}).",
        ]
    judge = ", without the judge's, whose size is not known," if even.without_judge else ""
    lines.append(f"In model FLOPs, which have that: {shown(spent, '.1e')} spent{judge}")
    lines[-1] += f" and {saved:.1e…} saved a question:"
    after, first = even.questions_by_model_flops, even.questions_by_model_flops_low
    last = even.questions_by_model_flops_high
    if after is None:
        better = (
            "" if first is None else f"; at the interval's better end after {first:,} questions"
        )
        return [*lines, f"it never pays{better}."]
    between = f" ({first:,}…{'never' if last is None else f'{last:,}'})" if first else ""
    return [*lines, f"paid for after {after:,}{between} questions."]
