"""Which stages there are, and what each is computed from: the tables and the settings it reads."""

from __future__ import annotations

from typing import Any

from dto.recipe import Recipe
from dto.runs import manifest

STAGES = (
    "problems", "sample", "batch", "segment", "estimate", "optimize", "prune", "pair", "chain",
    "label", "train", "evaluate", "report",
)  # fmt: skip
_BEFORE = {
    "problems": (),
    "sample": ("problems",),
    "segment": ("sample",),
    "estimate": ("segment",),
    "optimize": ("estimate",),
    "prune": ("optimize",),
    "pair": ("prune",),
    "batch": ("problems",),
    "chain": ("sample",),
    "label": ("chain",),
    "report": ("evaluate",),
    "trace": ("problems",),
    "test": ("problems",),
    "pilot": ("sample",),
}
_TRAINED_ON = {
    "o1_pruner": ("sample",), "drqa": ("label",), "cft": ("label",),
    "sft_batch": ("batch", "chain", "label"), "grpo": (), "none": (),
}  # fmt: skip
"""What training methods read that read no pairs."""
_WITH_MODEL = ("sample", "batch", "estimate", "optimize", "prune", "evaluate", "trace", "pilot")
_DRAWN = ("temperature", "top_p", "top_k", "min_p", "presence_penalty")
_SAMPLING = tuple(f"sample.{key}" for key in _DRAWN)
_RENDERED = (
    "model.name", "model.revision", "model.tokenizer", "model.family", "model.system",
    "model.template", "model.think",
)  # fmt: skip
"""What decides how a message is rendered, and where a response thinks."""
_ALSO: dict[str, tuple[str, ...]] = {
    "problems": ("sample.imported",),
    "estimate": _SAMPLING,
    "optimize": _SAMPLING,
    "prune": _SAMPLING,
    "pair": ("sample.max_tokens",),
    "batch": (*_SAMPLING, "sample.max_tokens"),
    "label": _RENDERED,
    "train": (*_SAMPLING, "sample.max_tokens"),
    "pilot": (*_SAMPLING, "sample.max_tokens"),
    "trace": tuple(f"evaluate.{key}" for key in ("samples", "max_tokens", *_DRAWN)),
    "test": (
        "evaluate.tasks",
        "evaluate.limit",
        "problems.question_field",
        "problems.answer_field",
        "problems.answer_kind",
        "problems.near_duplicates",
    ),
}
"""Settings of other stages that a stage reads."""
_READ_BY_IMPORT = ("sample.imported", "model.prompt", *_RENDERED)
_HOW_SERVED = (
    "slots", "cache_bytes", "kv_bytes", "device", "gpu_memory", "tensor_parallel", "server",
    "api_key", "concurrency", "retries", "timeout",
)  # fmt: skip
_HOW_NOT_WHAT = (
    "name", "window", *(f"{group}.{key}" for group in ("model", "judge") for key in _HOW_SERVED),
    "judge.prompt_price", "judge.generated_price", "compare.processes",
)  # fmt: skip
"""Settings that decide how something is computed, never what comes out."""


def test_stage(recipe: Recipe) -> str:
    """The stage whose table holds the problems to evaluate on: those of its split `test`."""
    return "test" if recipe.evaluate.tasks else "problems"


def before(recipe: Recipe, stage: str) -> tuple[str, ...]:
    """The stages whose tables a stage reads (those upstream of them are implied)."""
    if stage == "evaluate":
        tested = test_stage(recipe)
        return (tested, "train") if "trained" in recipe.evaluate.models else (tested,)
    if stage == "sample" and recipe.sample.imported:
        return ()
    if stage == "optimize" and recipe.optimize.exit != "estimate":
        return ("segment",)
    if stage == "pair" and recipe.pair.data != "optimized":
        return ("sample",)
    asks_together = ("batch",) if recipe.batch.k else ()
    if stage == "batch" and recipe.batch.grouping == "difficulty":
        return ("problems", "sample")
    if stage == "chain":
        return ("sample", *asks_together)
    if stage == "report" and asks_together:
        return ("evaluate", "sample", "batch")
    if stage == "train":
        return ("problems", *_TRAINED_ON.get(recipe.train.method, ("pair",)))
    return _BEFORE[stage]


def needed(recipe: Recipe, last: str = "report") -> tuple[str, ...]:
    """The stages up to `last` that it depends on, in order."""
    found, owed = {last}, [last]
    while owed:
        further = [stage for stage in before(recipe, owed.pop()) if stage not in found]
        found.update(further)
        owed += further
    return tuple(stage for stage in STAGES if stage in found)


def asks_model(recipe: Recipe, stage: str) -> bool:
    """Whether a stage's own configuration says which model it has.

    Training is told by the digests of the stages that it goes by, unless none of them asks it.
    """
    if stage == "sample":
        return recipe.sample.imported is None
    if stage == "train":
        return not any(asks_model(recipe, each) for each in needed(recipe, stage) if each != stage)
    return stage in _WITH_MODEL


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """All settings that decide what is computed, by their dotted keys."""
    flat = manifest.flatten(recipe.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if key not in _HOW_NOT_WHAT}


def settings_read(recipe: Recipe, stage: str) -> dict[str, Any]:
    """Those of the settings that a stage reads, its own and other stages'.

    What a stage before it reads is left out: its digest says so.
    """
    own = ["seed", f"{stage}.", *_ALSO.get(stage, ())]
    if stage == "sample" and recipe.sample.imported:
        own = ["seed", *_READ_BY_IMPORT]
    if asks_model(recipe, stage):
        own.append("model.")
    if stage == "prune" and recipe.prune.judge != "none" and recipe.optimize.exit != "estimate":
        own.append("estimate.")  # it verifies by the same test
    if stage == "prune" and recipe.prune.judge == "llm":
        own.append("judge")
    if stage == "evaluate" and recipe.evaluate.tasks:
        # Of the test sets the rows are kept whose problem has the same id, which tells neither.
        own += ["problems.answer_kind", "problems.prompt"]
    settings = settings_of(recipe)
    return {key: value for key, value in settings.items() if key.startswith(tuple(own))}
