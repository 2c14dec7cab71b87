"""Cost of a run by stage, and the number of questions after which it breaks even.

Critics of 2505.21765 ask for this, since rollouts are not free. Every generated token counts,
including those of trials, dev evaluations and cancelled requests. Counted in tokens, reading a
prompt is free and training on a token costs the same as generating it. Model FLOPs (`dto.usage`)
cover all work: prompt tokens not found in the cache, generated tokens and trained tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dto.pipeline import STAGES
from dto.recipe import JudgeSettings
from dto.reporting.evaluation import minus
from dto.reporting.page import OmittedSection, Section
from dto.reporting.table import Table
from dto.runs.reader import RunReader
from dto.statistics import Estimate, shown

JUDGE = "judge"
"""The judge that `prune` calls; the tokens of `prune` do not include it."""
TEACHER = "teacher"
"""DRQA's teacher (`batch.teacher`), to which all tokens of stage `batch` belong."""
_OTHERS = {"prune": (JUDGE,), "batch": (TEACHER,)}
OPTIMIZATION = tuple(
    name
    for stage in STAGES.values()
    if stage.spends
    for name in (stage.name, *_OTHERS.get(stage.name, ()))
)
"""The stages whose cost training has to earn back, and other models that they ask."""
MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class StageCost:
    """Cost of one stage, of the judge that `prune` calls, or of the teacher that `batch` asks.

    `tokens` are generated tokens, `trained_tokens` those trained on. `attention_flops` covers
    requests and, for train, forward and backward passes over the pairs; `model_flops` (`dto.usage`)
    includes them. Both are None where the size of the model is unknown, as it can be for a server.
    `seconds` is wall-clock time, `peak_memory` is in bytes. `money` is the price of the tokens of a
    judge or teacher by the recipe; None without prices.
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
    """Tokens or FLOPs spent, and the number of questions after which they are saved again.

    `saved` is the saving per question of the trained model over the base, both without an exit
    policy, with a 95 % interval paired by problem. `spent` is exact, so the ends of `questions`
    follow from the ends of `saved`. `questions` is None where the saving is not positive.
    """

    spent: float
    saved: Estimate
    questions: int | None
    questions_low: int | None
    questions_high: int | None

    @classmethod
    def of(cls, spent: float, saved: Estimate) -> Payback:
        """Divide the cost by the saving per question, both in tokens or both in FLOPs."""
        first, last = _questions(spent, saved.high), _questions(spent, saved.low)
        return cls(spent, saved, _questions(spent, saved.value), first, last)

    @property
    def after(self) -> str:
        """The break-even in words: `after 1,910 (1,702…2,204) questions`, or `never`."""
        if self.questions is None:
            return "never"
        ends = ""
        if self.questions_low is not None:
            last = "never" if self.questions_high is None else f"{self.questions_high:,}"
            ends = f" ({self.questions_low:,}…{last})"
        return f"after {self.questions:,}{ends} questions"

    def sentence(self, spec: str, unit: str) -> str:
        """Describe saving and break-even in a sentence; `spec` formats the saving."""
        saved = f"saves {self.saved:{spec}} {unit}"
        if self.saved.value < 0:
            saved = f"takes {minus(0.0, self.saved):{spec}} more {unit}"
        end = "it never breaks even" if self.questions is None else f"it breaks even {self.after}"
        if self.questions is None and self.questions_low is not None:
            end += f"; at the better end of the interval, after {self.questions_low:,}"
        return f"The trained model {saved} per question: {end}."


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Break-even of optimizing and training, in tokens and in model FLOPs.

    The cost is that of all stages from sample to train: generated and trained tokens, including
    those that a judge or teacher generated. `tokens_read` counts prompt tokens not found in the
    cache: they are part of the FLOPs but not of the token count. The FLOPs exclude a judge or
    teacher of unknown size (`without_…`) and are None where the size of the model is unknown.
    """

    tokens: Payback
    flops: Payback | None
    tokens_read: int
    without_judge: bool
    without_teacher: bool = False


def stage_costs(run: RunReader) -> list[StageCost]:
    """Read the costs of the finished stages from their manifests."""
    costs = []
    for stage in (*OPTIMIZATION, "evaluate"):
        manifest = run.manifest(stage)
        if stage == JUDGE:
            manifest = _judge(run)
        elif stage in ("batch", TEACHER):
            manifest = _batch(run, stage)
        if manifest is None:
            continue
        usage: Mapping[str, Any] = manifest.get("usage") or {}
        costs.append(
            StageCost(
                stage=stage,
                tokens=int(usage.get("generated", 0)),
                prompt_tokens=int(usage.get("prompt", 0)),
                cached_tokens=int(usage.get("cached", 0)),
                wasted_tokens=int(usage.get("wasted", 0)),
                trained_tokens=int(manifest.get("tokens_trained", 0)),
                attention_flops=_flops("attention_flops", usage, manifest),
                model_flops=_flops("model_flops", usage, manifest),
                seconds=_number(manifest.get("seconds")),
                peak_memory=manifest.get("peak_memory"),
                money=manifest.get("money"),
            )
        )
    return costs


def _flops(kind: str, usage: Mapping[str, Any], manifest: Mapping[str, Any]) -> float | None:
    """Add up the FLOPs of a stage's requests and of its training."""
    parts = [usage.get(kind)] if usage.get("requests") else []
    parts += [manifest.get(f"{kind}_trained")] if manifest.get("tokens_trained") else []
    return _total(map(_number, parts))


def _judge(run: RunReader) -> dict[str, Any] | None:
    """Return the usage of the judge in the form of a manifest; None if no judge was called."""
    usage = (run.manifest("prune") or {}).get("judge_usage")
    return None if usage is None else {"usage": usage, "money": _money(usage, run.recipe.judge)}


def _batch(run: RunReader, name: str) -> dict[str, Any] | None:
    """Return the manifest of stage `batch` under the name of the model that it asks."""
    teacher, manifest = run.recipe.batch.teacher, run.manifest("batch")
    if manifest is None or name != ("batch" if teacher is None else TEACHER):
        return None
    return manifest | {"money": _money(manifest["usage"], teacher)}


def _money(usage: Mapping[str, Any], model: JudgeSettings | None) -> float | None:
    """Return the price of a model's tokens; None without prices."""
    prices = (model.prompt_price, model.generated_price) if model else (None, None)
    if prices == (None, None):
        return None
    spent = usage["prompt"] * (prices[0] or 0.0) + usage["generated"] * (prices[1] or 0.0)
    return float(spent / 1e6)


def break_even(costs: Sequence[StageCost], saved: Estimate, flops_saved: Estimate) -> BreakEven:
    """Compute the break-even in tokens and in model FLOPs."""
    spent = [cost for cost in costs if cost.stage in OPTIMIZATION]
    unsized = {cost.stage for cost in spent if cost.model_flops is None} & {JUDGE, TEACHER}
    flops = _total(cost.model_flops for cost in spent if cost.stage not in unsized)
    unknown = flops is None or math.isnan(flops_saved.value)
    return BreakEven(
        tokens=Payback.of(sum(cost.tokens + cost.trained_tokens for cost in spent), saved),
        flops=None if unknown else Payback.of(flops or 0.0, flops_saved),
        tokens_read=sum(cost.prompt_tokens - cost.cached_tokens for cost in spent),
        without_judge=JUDGE in unsized,
        without_teacher=TEACHER in unsized,
    )


def _questions(spent: float, saved: float) -> int | None:
    return math.ceil(spent / saved) if saved > 0 else None


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _total(values: Iterable[float | None]) -> float | None:
    numbers = list(values)
    return None if None in numbers else sum(value or 0.0 for value in numbers)


def break_even_sentences(even: BreakEven) -> tuple[str, str]:
    """Describe the break-even in tokens, then in model FLOPs.

    The token count leaves out the reading of prompts. It also ignores that training on a token
    takes two to four times the FLOPs of generating it.
    """
    tokens, flops = even.tokens, even.flops
    in_tokens = (
        f"Optimizing and training took {tokens.spent:,} tokens, generated or trained on. "
        + tokens.sentence(",.1f…", "tokens")
    )
    in_flops = f"In model FLOPs, including {even.tokens_read:,} prompt tokens that were read"
    if flops is None:
        return in_tokens, f"{in_flops}: unknown for some stages."
    unsized = {JUDGE: even.without_judge, TEACHER: even.without_teacher}
    names = " and ".join(f"the {name}" for name, absent in unsized.items() if absent)
    judge = f", without {names}, whose size is unknown" if names else ""
    saving = flops.sentence(".1e…", "FLOPs")
    return in_tokens, f"{in_flops}: {shown(flops.spent, '.1e')}{judge}. {saving}"


def cost_section(
    costs: Sequence[StageCost], even: BreakEven | None, trained: bool = True
) -> Section | OmittedSection:
    """Build the section with the cost of each stage and the break-even, if a model is trained."""
    title = "Cost and break-even"
    if not costs:
        return OmittedSection(title, "no stage of the run is finished.")
    spent = [cost for cost in costs if cost.stage in OPTIMIZATION]
    facts = [
        f"The tokens of the {cost.stage} cost {cost.money:,.4g} at the prices in the recipe."
        for cost in costs
        if cost.money is not None
    ]
    if even is not None:
        facts += break_even_sentences(even)
    elif spent and trained:
        facts.append("The break-even is unknown: it needs evaluations of the base and of the "
                     "trained model, both without an exit and with few failures.")  # fmt: skip
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
        ("Every generated token counts, including those of rollouts, trials and discarded "
         "requests.",),
        tables=(table,),
        facts=tuple(facts),
        notes=("The break-even counts tokens generated and trained on, from sampling to training; "
               "evaluation is measurement and does not count. Cached: prompt tokens found in the "
               "prefix cache. Wasted: generated tokens that were not used. Model FLOPs: attention, "
               "plus 2 per parameter for each token read or generated; 6 per parameter for each "
               "token trained on (4 if only adapters are trained), and 2 more each for gradient "
               "checkpointing and for a reference model. Seconds and MiB depend on the machine "
               "of the run.",),
    )  # fmt: skip
