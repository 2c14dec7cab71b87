"""Run one training, for any method: load rows, order them, train, keep a model, count the cost."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from dto.drqa.records import LabelledChain
from dto.engines.models import shape_of_model
from dto.errors import DtoError
from dto.recipe import Recipe
from dto.records import Dropped, Problem, content_id
from dto.runs.manifest import peak_memory, write_text
from dto.runs.reader import RunReader
from dto.training.beside import open_beside
from dto.training.checkpoints import (
    CHECKPOINTS,
    PROGRESS,
    Choice,
    DevCallback,
    TrainingState,
    choose,
)
from dto.training.dev import BASE_STEP, DevScore, JudgingScore
from dto.training.flops import training_flops
from dto.training.pairs import (
    Material,
    Row,
    batch_answers,
    chosen_sides,
    critiques,
    load_pairs,
    load_weighted,
    row_prompt,
    training_order,
    within_budget,
)
from dto.training.train import has_reference
from dto.training.trainers import (
    SimPOTrainer,
    StoredDPOTrainer,
    StoredSFTTrainer,
    be_patient,
    one_device,
    settle,
    small_tiles,
)
from dto.training.weights import keep, load, on_cpu, sharding, with_adapters
from dto.usage import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback


logger = logging.getLogger("dto.train")

ONLINE = ("grpo", "drqa")
"""Methods that sample their training data."""
LABELLED = ("drqa", "cft", "sft_batch")
"""Methods that read labelled chains, and measure judging on held-out ones."""
NOUNS = {
    "sft": "responses", "sft_batch": "responses", "o1_pruner": "responses",
    "grpo": "problems", "drqa": "chains", "cft": "chains", "none": "rows",
}  # fmt: skip
"""The noun for a method's rows; other methods train on pairs."""


def fit(
    run: Path,
    recipe: Recipe,
    directory: Path | None = None,
    base: DevScore | None = None,
    *,
    allow_code_execution: bool = False,
) -> dict[str, Any]:
    """Train on a run's tables, keep one model in `directory`/model, and return the result.

    :func:`dto.training.train.train` describes the result, which is also in `result.json`.
    `directory` is RUN/train by default. A killed training resumes from its last complete checkpoint
    and ends with the same weights and scores: bit for bit with one or two processes; with more, the
    order in which gradients are summed is up to gloo or NCCL. A finished training is kept, whatever
    its number of processes. `base` is the base model's dev score, if known. Raises DtoError for
    inconsistent tables, a model that cannot be loaded, a loss that is not finite, and checkpoints
    of another number of processes.
    """
    directory = run / "train" if directory is None else directory
    kind = trainer_class(recipe.train.method)
    config = None
    if kind is not None:
        be_patient(recipe)
        config = kind.config(recipe, directory / CHECKPOINTS)
        _ = config.device  # sets up the processes of GPUs
        one_device(config)
    world = PartialState()
    model, tokenizer = load(recipe)
    shape = shape_of_model(model)
    material = read_material(RunReader(run, recipe), recipe, model, tokenizer)
    with world.main_process_first():
        training = TrainingState(
            directory,
            fingerprint(recipe, material),
            world.num_processes,
            sharding(),
            writer=world.is_main_process,
            keep=recipe.train.keep,
        )
        finished = training.result()
        if finished is not None:
            return finished
        checkpoint = training.resume(PROGRESS if recipe.train.method in ONLINE else "")
    trainer, engine_memory = None, {}
    if material.order:
        callback = DevCallback(recipe, tokenizer, material, training, allow_code_execution)
        trainer = callback.trainer = make_trainer(
            recipe,
            config,
            with_adapters(model, recipe),
            tokenizer,
            material.rows,
            material.order,
            callback,
        )
        trainer.allow_code_execution = allow_code_execution
        with open_beside(recipe, trainer.model, directory) as beside:
            trainer.beside = callback.beside = beside
            _train(callback, base, checkpoint)
            engine_memory = {} if beside is None else {"engine_memory": beside.peak_memory()}
        choice = choose(training.history, recipe.train.keep)
    else:
        noun = NOUNS.get(recipe.train.method, "pairs")
        choice = Choice(BASE_STEP, f"there are no {noun} to train on: base is kept")
    logger.info("%s", choice.reason)
    result = _result(recipe, shape, material, training, trainer, choice) | engine_memory
    if world.is_main_process:
        _save(recipe, training, material, choice, result)
    world.wait_for_everyone()
    return result


def trainer_class(method: str) -> Any:
    """The trainer class of a method; None for `none`.

    GRPO's is imported only when needed, because TRL then imports vLLM, if it is installed.
    """
    stored: dict[str, Any] = {"none": None, "simpo": SimPOTrainer, "dpo": StoredDPOTrainer}
    stored |= dict.fromkeys(("sft", "cft", "sft_batch"), StoredSFTTrainer)
    if method in stored:
        return stored[method]
    from dto.training import grpo

    return grpo.PrunerTrainer if method == "o1_pruner" else grpo.OnlineTrainer


def make_trainer(
    recipe: Recipe,
    config: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Any],
    order: Sequence[int],
    callback: TrainerCallback,
) -> Any:
    """Make the trainer of the recipe's method for ordered rows, and check its fused head."""
    if on_cpu(recipe):
        small_tiles()
    kind = trainer_class(recipe.train.method)
    trainer = kind(recipe, model, config, tokenizer, rows, order, [callback])
    settle(trainer)
    return trainer


def _train(callback: DevCallback, base: DevScore | None, checkpoint: Path | None) -> None:
    """Measure the base model, unless its score is known, and train to the end."""
    trainer, training = callback.trainer, callback.training
    progress = checkpoint / PROGRESS if checkpoint is not None else None
    ended = (
        progress is not None
        and progress.exists()
        and trainer.restore(json.loads(progress.read_text(encoding="utf-8")))
    )
    if not training.history:
        if base is None:
            callback.score(trainer.model, BASE_STEP, 0.0, 0.0)
        else:
            training.record(base, {"train_seconds": 0.0, "dev_seconds": 0.0, "usage": {}})
    if not training.judging:
        callback.judge(trainer.model, BASE_STEP)
    if not (ended or training.history[-1].collapsed):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def read_material(
    run: RunReader, recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Material:
    """Load the data of the recipe's method. Raises DtoError for fewer than two dev problems."""
    settings = recipe.train
    dev = list(run.problems("dev"))
    if len(dev) < 2:
        raise DtoError(
            f"train: {len(dev)} dev problems are too few to choose a checkpoint: set problems.dev "
            "to 300"
        )
    held_out = _labelled(run, "dev") if settings.method in LABELLED else []
    loaded = _load_rows(run, recipe, model, tokenizer)
    rows = [row for row in loaded if not isinstance(row, Dropped)]
    dropped = [row for row in loaded if isinstance(row, Dropped)]
    return Material(dev, held_out, rows, dropped, _order(rows, recipe, tokenizer))


def _load_rows(
    run: RunReader, recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Sequence[Problem | LabelledChain | Row | Dropped]:
    """The method's rows in the tables; a row that cannot be used is a Dropped."""
    limit: Any = getattr(model.config, "max_position_embeddings", None)
    own = int(limit or recipe.pair.max_length)
    context = min(own, recipe.model.context or own)
    match recipe.train.method:
        case "none":
            return []
        case "grpo":
            return list(run.problems("train"))
        case "drqa":
            return _labelled(run, "train")
        case "cft":
            return critiques(_labelled(run, "train"), recipe.model, tokenizer, context)
        case "sft_batch":
            return batch_answers(run, _labelled(run, "train"), recipe.model, tokenizer, context)
        case "o1_pruner":
            return load_weighted(run, context, recipe.train.accuracy_weight)
        case "sft":
            return chosen_sides(load_pairs(run, context))
    return load_pairs(run, context)


def _order(rows: Sequence[Any], recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Indices into the rows, for all epochs or until the token budget is spent."""
    settings, seed = recipe.train, recipe.seed
    if not rows:
        return []
    if settings.method in ONLINE:
        shortest = min(len(row_prompt(row, tokenizer, recipe.model)) for row in rows)
        epochs = longest(recipe, len(rows), shortest) / len(rows)
        group = settings.batch_size // settings.group
        # Equal lengths, so that batches are not grouped by length: it correlates with the class.
        return training_order([1] * len(rows), epochs=epochs, batch_size=group, seed=seed)
    lengths, size = [max(row.lengths) for row in rows], step_size(recipe)
    if settings.policy_tokens is None:
        return training_order(lengths, epochs=settings.epochs, batch_size=size, seed=seed)
    tokens, budget = [sum(row.lengths) for row in rows], settings.policy_tokens
    return within_budget(tokens, lengths, budget=budget, batch_size=size, seed=seed)


def longest(recipe: Recipe, rows: int, shortest_prompt: int) -> int:
    """The number of rows in a training's order; an upper bound if a token budget ends it."""
    settings = recipe.train
    budget = settings.policy_tokens
    if budget is None:
        return round(settings.epochs * rows)
    return budget // (settings.group * (shortest_prompt + 2)) + settings.batch_size


def _labelled(run: RunReader, split: str) -> list[LabelledChain]:
    """The labelled chains of a split; those of `dev` are held out."""
    return [row for row in run.rows("label", LabelledChain) if row.split == split]


def step_size(recipe: Recipe) -> int:
    """The number of rows in one optimizer step, of all processes together."""
    return recipe.train.batch_size * recipe.train.gradient_accumulation


def fingerprint(recipe: Recipe, material: Material) -> str:
    """Hash everything that decides a training: settings, model, rows and dev problems."""
    unread = {"engine_gpus", "processes", "accelerate", "report_to"}
    settings = [recipe.train.model_dump_json(exclude=unread)]
    settings += [part.model_dump_json() for part in (recipe.sample, recipe.model)]
    trained = content_id(*(content_id(repr(row)) for row in material.rows))
    measured = content_id(*(row.id for row in material.dev), *(row.id for row in material.held_out))
    return content_id(str(recipe.seed), *settings, trained, measured)


def _result(
    recipe: Recipe,
    shape: ModelShape,
    material: Material,
    training: TrainingState,
    trainer: Any,
    choice: Choice,
) -> dict[str, Any]:
    """The result: counts, the kept step, and the cost. `trainer` is None if nothing was trained."""
    method = recipe.train.method
    online = trainer if method in ONLINE else None
    steps = training.history[-1].step if training.history else 0
    usage, seconds = training.spent()
    if online is None:
        seen = [material.rows[index] for index in material.order[: steps * step_size(recipe)]]
        lengths = [length for row in seen for length in row.lengths]
    else:
        usage.add(online.usage)
        lengths = online.lengths
    attention_flops, model_flops = training_flops(
        shape,
        lengths,
        adapters=bool(recipe.train.lora_rank),
        checkpointing=recipe.train.gradient_checkpointing,
        reference=has_reference(recipe.train),
    )
    return {
        "rows": {
            NOUNS.get(method, "pairs"): len(material.rows),
            "dropped": len(material.dropped),
            "dev_problems": len(material.dev),
            **({"held_out": len(material.held_out)} if method in LABELLED else {}),
        },
        "kept_step": choice.step,
        "reason": choice.reason,
        "steps": steps,
        "collapsed": steps > 0 and training.history[-1].collapsed,
        "tokens_trained": sum(lengths),
        "attention_flops_trained": attention_flops,
        "model_flops_trained": None if isnan(model_flops) else model_flops,
        "policy_tokens": sum(lengths) if online is None else online.spent,
        "epochs": round(material.epochs, 3) if online is None else None,
        "groups": None if online is None else online.groups._asdict(),
        "judging": _judging(training.judging, choice.step),
        "peak_memory": peak_memory(),
        "usage": usage.as_json(),
        **seconds,
    }


def _judging(scores: Sequence[JudgingScore], kept_step: int) -> dict[str, Any] | None:
    """Judging before the training, at its end, and of what is kept."""
    if not scores:
        return None
    kept = next((row for row in scores if row.step == kept_step), scores[0])
    return {"before": asdict(scores[0]), "after": asdict(scores[-1]), "kept": asdict(kept)}


def _save(
    recipe: Recipe,
    training: TrainingState,
    material: Material,
    choice: Choice,
    result: dict[str, Any],
) -> None:
    """Keep the chosen weights, the dropped rows and the result, which comes last."""
    lines = [json.dumps(asdict(row)) + "\n" for row in material.dropped]
    write_text(training.directory / "dropped.jsonl", "".join(lines))
    kept = training.checkpoint(choice.step) if choice.step > BASE_STEP else None
    keep(recipe, kept, training.model)
    write_text(training.finished, json.dumps(result, indent=2) + "\n")
    shutil.rmtree(training.checkpoints, ignore_errors=True)
