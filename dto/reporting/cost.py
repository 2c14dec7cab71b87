"""What a run cost, stage by stage, and when that has paid for itself.

Critics of 2505.21765 ask for this: rollouts are not free. Every token that was generated counts,
those of trials, of dev evaluations and of cancelled requests too. In tokens, reading prompts costs
nothing, and a token that is trained on as much as one that is generated; model FLOPs (`dto.usage`)
have all of it: what was read and not in the cache, generated and trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dto.pipeline import STAGES
from dto.reporting.evaluation import less
from dto.reporting.page import LeftOut, Section
from dto.reporting.table import Table
from dto.runs.reader import RunReader
from dto.statistics import Estimate, shown

JUDGE = "judge"
"""The judge that `prune` asks, whose tokens are not among those of `prune`."""
OPTIMIZATION = tuple(
    name
    for stage in STAGES.values()
    if stage.spends
    for name in (stage.name, *([JUDGE] if stage.name == "prune" else []))
)
"""What is spent on optimizing and training."""
MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage, or the judge that `prune` asked.

    `tokens` were generated, `trained_tokens` went through training.

    `attention_flops` covers requests and, for train, forward and backward passes over the pairs;
    `model_flops` (`dto.usage`) holds them. Both are None where the model's size is not known, as a
    server's need not be. Seconds are of the wall, `peak_memory` is in bytes. `money` is what the
    judge's tokens cost at the recipe's prices, None without prices.
    """

    stage: str
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    wasted_tokens: int
    trained_tokens: int
    attention_flops: float | None
    model_flops: float | None
    seconds: float | None
    peak_memory: int | None
    money: float | None = None


@dataclass(frozen=True, slots=True)
class Payback:
    """What was spent, and after how many answered questions that is paid for.

    `saved` is a question's, by the trained model without an exit policy against the base, with a
    95 % interval paired by problem. What was spent is exact, so the ends of `questions` follow from
    those of the saving. None: never, or not known.
    """

    spent: float
    saved: Estimate
    questions: int | None
    questions_low: int | None
    questions_high: int | None

    @classmethod
    def of(cls, spent: float, saved: Estimate) -> Payback:
        """From what was spent and what a question saves, both in tokens or in FLOPs."""
        first, last = _questions(spent, saved.high), _questions(spent, saved.low)
        return cls(spent, saved, _questions(spent, saved.value), first, last)

    @property
    def after(self) -> str:
        """`after 1,910 (1,702…2,204) questions`, or `never`."""
        if self.questions is None:
            return "never"
        ends = ""
        if self.questions_low is not None:
            last = "never" if self.questions_high is None else f"{self.questions_high:,}"
            ends = f" ({self.questions_low:,}…{last})"
        return f"after {self.questions:,}{ends} questions"

    def told(self, spec: str, unit: str) -> str:
        """What a question saves, shown by `spec`, of what, and when that pays."""
        saved = f"saves {self.saved:{spec}} {unit}"
        if self.saved.value < 0:
            saved = f"takes {less(0.0, self.saved):{spec}} {unit} more"
        pays = "it never pays" if self.questions is None else f"paid for {self.after}"
        if self.questions is None and self.questions_low is not None:
            pays += f", at the interval's better end after {self.questions_low:,}"
        return f"The trained model {saved} a question: {pays}."


@dataclass(frozen=True, slots=True)
class BreakEven:
    """When optimizing and training have paid, in tokens and in model FLOPs.

    Spent: all stages from sample to train, generated and trained tokens, those that a judge has
    generated too. `tokens_read` are those of prompts, not from the cache, that the count of tokens
    leaves out; FLOPs have them. FLOPs leave out a judge whose size is not known (`without_judge`),
    and are None where a model's size is not known.
    """

    tokens: Payback
    flops: Payback | None
    tokens_read: int
    without_judge: bool


def stage_costs(run: RunReader) -> list[StageCost]:
    """The costs of the stages that are finished, from their manifests."""
    costs = []
    for stage in (*OPTIMIZATION, "evaluate"):
        done = _judge(run) if stage == JUDGE else run.manifest(stage)
        if done is None:
            continue
        usage: Mapping[str, Any] = done.get("usage") or {}
        costs.append(
            StageCost(
                stage=stage,
                tokens=int(usage.get("generated", 0)),
                prompt_tokens=int(usage.get("prompt", 0)),
                cached_tokens=int(usage.get("cached", 0)),
                wasted_tokens=int(usage.get("wasted", 0)),
                trained_tokens=int(done.get("tokens_trained", 0)),
                attention_flops=_flops("attention_flops", usage, done),
                model_flops=_flops("model_flops", usage, done),
                seconds=_number(done.get("seconds")),
                peak_memory=done.get("peak_memory"),
                money=done.get("money"),
            )
        )
    return costs


def _flops(kind: str, usage: Mapping[str, Any], done: Mapping[str, Any]) -> float | None:
    """Those of a stage's requests, and of training where it trained."""
    parts = [usage.get(kind)] if usage.get("requests") else []
    parts += [done.get(f"{kind}_trained")] if done.get("tokens_trained") else []
    return _total(map(_number, parts))


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


def break_even(costs: Sequence[StageCost], saved: Estimate, flops_saved: Estimate) -> BreakEven:
    """Set what was spent against what a question saves, in tokens and in model FLOPs."""
    spent = [cost for cost in costs if cost.stage in OPTIMIZATION]
    known = [cost for cost in spent if cost.stage != JUDGE or cost.model_flops is not None]
    flops = _total(cost.model_flops for cost in known)
    unknown = flops is None or math.isnan(flops_saved.value)
    return BreakEven(
        tokens=Payback.of(sum(cost.tokens + cost.trained_tokens for cost in spent), saved),
        flops=None if unknown else Payback.of(flops or 0.0, flops_saved),
        tokens_read=sum(cost.prompt_tokens - cost.cached_tokens for cost in spent),
        without_judge=len(known) < len(spent),
    )


def _questions(spent: float, saved: float) -> int | None:
    return math.ceil(spent / saved) if saved > 0 else None


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _total(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else sum(value or 0.0 for value in known)


def paid_for(even: BreakEven) -> tuple[str, str]:
    """When it pays in tokens; then in model FLOPs, which have what the count of tokens leaves out.

    Reading prompts is left out, and that training on a token takes two to four times what
    generating it takes.
    """
    tokens, flops = even.tokens, even.flops
    in_tokens = (
        f"Spent on optimizing and training: {tokens.spent:,} tokens, generated or trained on. "
        + tokens.told(",.1f…", "tokens")
    )
    in_flops = f"In model FLOPs, with the {even.tokens_read:,} tokens of prompts that were read"
    if flops is None:
        return in_tokens, f"{in_flops}: not known of all stages."
    judge = ", without the judge's, whose size is not known" if even.without_judge else ""
    told = flops.told(".1e…", "FLOPs")
    return in_tokens, f"{in_flops}: {shown(flops.spent, '.1e')}{judge}. {told}"


def cost_section(costs: Sequence[StageCost], even: BreakEven | None) -> Section | LeftOut:
    """The ledger of the stages, and after how many questions it has paid."""
    title = "What it cost"
    if not costs:
        return LeftOut(title, "no stage of the run has a manifest.")
    spent = [cost for cost in costs if cost.stage in OPTIMIZATION]
    facts = [
        f"The {cost.stage}'s tokens cost {cost.money:,.4g} at the recipe's prices."
        for cost in costs
        if cost.money is not None
    ]
    if even is not None:
        facts += paid_for(even)
    elif spent:
        facts.append("After how many questions that is paid for is not known: the base and the "
                     "trained model have to be evaluated, both without an exit and with few "
                     "failures.")  # fmt: skip
    table = Table.of(
        "",
        costs,
        {
            "stage": (lambda cost: cost.stage, ""),
            "generated": (lambda cost: cost.tokens, ""),
            "read": (lambda cost: cost.prompt_tokens, ""),
            "cached": (lambda cost: cost.cached_tokens, ""),
            "wasted": (lambda cost: cost.wasted_tokens, ""),
            "trained on": (lambda cost: cost.trained_tokens, ""),
            "model FLOPs": (lambda cost: cost.model_flops, ".1e"),
            "seconds": (lambda cost: cost.seconds, ",.1f"),
            "MiB": (lambda cost: cost.peak_memory and cost.peak_memory / MEBIBYTE, ",.0f"),
        },
    )
    return Section(
        "cost",
        title,
        ("Every generated token counts, those of rollouts, of trials and of requests that were "
         "thrown away too.",),
        tables=(table,),
        facts=tuple(facts),
        notes=("Generated and trained on are what has to be paid for, from sampling to training; "
               "evaluating is measurement. Cached are tokens of prompts that were not computed "
               "again, wasted are generated tokens that nothing came of. Model FLOPs are those of "
               "attention and, for each token that was read or generated, two a parameter; where "
               "it was trained on six, or four of adapters alone, and two more each for gradient "
               "checkpointing and a reference model. Seconds and MiB are those of the machine.",),
    )  # fmt: skip
