"""One training, whatever its loss: what it reads, in which order, what it keeps, what it took."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from dto.errors import DtoError
from dto.recipe import Recipe
from dto.records import Dropped, LabelledChain, Problem
from dto.runs.manifest import peak_memory, write_text
from dto.seeds import content_id
from dto.tables import read
from dto.training import losses
from dto.training.checkpoints import (
    BASE_STEP,
    CHECKPOINTS,
    Choice,
    DevCallback,
    DevScore,
    TrainingState,
    choose,
)
from dto.training.judging import Judging
from dto.training.pairs import (
    Demonstration,
    TokenizedPair,
    chosen_sides,
    load_pairs,
    load_weighted,
    training_order,
    within_budget,
)
from dto.training.trainer import one_device
from dto.training.weights import keep, load, with_adapters
from dto.trajectories import prompt_ids
from dto.usage import ModelShape, Usage, training_flops

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ONLINE = ("grpo", "drqa")
"""Methods that sample what they train on."""
LABELLED = ("drqa", "cft", "sft_batch")
"""Methods that read labelled chains, and so have some held out to measure judging by."""

Row = TokenizedPair | Demonstration


@dataclass(frozen=True, slots=True)
class Material:
    """Rows of a table, or what is asked anew (problems, labelled chains), in their order."""

    rows: list[Row] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    asked: list[Problem] | list[LabelledChain] = field(default_factory=list)
    order: list[int] = field(default_factory=list)

    @property
    def epochs(self) -> float:
        """Passes over the rows."""
        return len(self.order) / max(1, len(self.rows or self.asked))


def material(
    run: Path, recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Material:
    """The material of the recipe's method."""
    settings = recipe.train
    method = settings.method
    if method == "none":
        return Material()
    if method in ONLINE:
        return _asked(run, recipe, tokenizer)
    rows, dropped = _stored(run, recipe, _context(recipe, model), tokenizer)
    lengths, size = [row.length for row in rows], step_size(recipe)
    if settings.policy_tokens is None:
        order = training_order(lengths, epochs=settings.epochs, batch_size=size, seed=recipe.seed)
    else:
        order = within_budget(
            [row.tokens for row in rows],
            lengths,
            budget=settings.policy_tokens,
            batch_size=size,
            seed=recipe.seed,
        )
    return Material(rows, dropped, order=order)


def _asked(run: Path, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Material:
    from dto.training.grpo import longest

    asked: list[Any]
    if recipe.train.method == "drqa":
        asked = labelled(run, "train")
        sizes = [len(row.prompt_ids) for row in asked]
    else:
        asked = problems(run, "train")
        sizes = [
            len(prompt_ids(row.question, tokenizer, recipe.model, row.prompt)) for row in asked
        ]
    if not asked:
        return Material()
    times = longest(recipe, len(asked), min(sizes)) / len(asked)
    group = recipe.train.batch_size // recipe.train.group
    # Of one length all, as far as the order is concerned: batches of one length are of one class.
    order = training_order([1] * len(asked), epochs=times, batch_size=group, seed=recipe.seed)
    return Material(asked=asked, order=order)


def _stored(
    run: Path, recipe: Recipe, context: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Row], list[Dropped]]:
    from dto.training.pairs import batch_answers, verdicts

    found: Sequence[Row | Dropped]
    match recipe.train.method:
        case "o1_pruner":
            found = load_weighted(run, context, recipe.train.accuracy_weight)
        case "cft":
            found = verdicts(labelled(run, "train"), recipe.model, tokenizer, context)
        case "sft_batch":
            found = batch_answers(run, labelled(run, "train"), recipe.model, tokenizer, context)
        case "sft":
            found = chosen_sides(load_pairs(run, context))
        case _:
            found = load_pairs(run, context)
    rows = [row for row in found if not isinstance(row, Dropped)]
    return rows, [row for row in found if isinstance(row, Dropped)]


def problems(run: Path, split: str) -> list[Problem]:
    """The problems of a split."""
    rows = read(run / "problems" / "rows.parquet", Problem)
    return [row for row in rows if row.split == split]


def labelled(run: Path, split: str) -> list[LabelledChain]:
    """The labelled chains of a split: `train`, or `dev`, which are held out."""
    rows = read(run / "label" / "rows.parquet", LabelledChain)
    return [row for row in rows if row.split == split]


def nouns(method: str) -> str:
    """What the rows of a method are."""
    names = {
        "sft": "responses", "sft_batch": "responses", "o1_pruner": "responses",
        "grpo": "problems", "drqa": "chains", "cft": "chains", "none": "rows",
    }  # fmt: skip
    return names.get(method, "pairs")


def step_size(recipe: Recipe) -> int:
    """Rows in one optimizer step."""
    per_process = recipe.train.batch_size * recipe.train.gradient_accumulation
    processes: int = PartialState().num_processes
    return per_process * processes


def _context(recipe: Recipe, model: PreTrainedModel) -> int:
    limit: Any = getattr(model.config, "max_position_embeddings", None)
    own = int(limit or recipe.pair.max_length)
    return min(own, recipe.model.context or own)


logger = logging.getLogger("dto.train")


def fit(
    run: Path,
    recipe: Recipe,
    directory: Path | None = None,
    base: DevScore | None = None,
    *,
    allow_code_execution: bool = False,
) -> dict[str, Any]:
    """Train on what a run holds and keep one model in `directory`/model; what came of it.

    The result, also in `result.json`, is described at :func:`dto.training.train.train`; `directory`
    is RUN/train if none is given. A training on stored responses that was killed goes on from its
    last complete checkpoint, and ends with the same weights and scores; with another number of
    processes it starts anew, as its steps are others, and so does one that samples. A finished one
    stands, however many processes it had. `base` is the dev score of the base model where that is
    known already. Raises DtoError for tables that do not fit, a model that cannot be loaded and a
    loss that is not finite.
    """
    directory = run / "train" if directory is None else directory
    method = recipe.train.method
    config = losses.config(recipe, directory / CHECKPOINTS)
    if config is not None:
        _ = config.device  # sets up the processes: on CPUs, PartialState() before it would not
        one_device(config, run)
    world = PartialState()
    model, tokenizer = load(recipe)
    shape = ModelShape.of_model(model)
    found = material(run, recipe, model, tokenizer)
    dev = problems(run, "dev")
    held_out = labelled(run, "dev") if method in LABELLED else []
    if len(dev) < 2:
        raise DtoError(
            f"train: {len(dev)} dev problems are too few to choose a checkpoint by: "
            "set problems.dev to 300"
        )
    with world.main_process_first():
        mark = fingerprint(recipe, found, dev, held_out)
        training = TrainingState(
            directory,
            mark,
            world.num_processes,
            writer=world.is_main_process,
            keep=recipe.train.keep,
        )
        finished = directory / "result.json"
        if finished.exists() and training.model.is_dir():
            known: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
            return known
        if method in ONLINE:
            training.restart()
        last = training.resume()
    choice = Choice(BASE_STEP, f"there are no {nouns(method)} to train on: base is kept")
    online: Any = None
    judging: Judging | None = None
    if found.order:
        model = with_adapters(model, recipe)
        callback = DevCallback(recipe, tokenizer, dev, training, allow_code_execution)
        callback.epochs = found.epochs
        if held_out:
            judging = Judging(
                held_out,
                tokenizer,
                recipe,
                directory,
                [score.step for score in training.history],
                writer=world.is_main_process,
            )
            callback.judging = judging
        rows = found.rows or found.asked
        trainer = losses.trainer(recipe, config, model, tokenizer, rows, found.order, callback)
        callback.mean_loss = trainer.mean_loss
        if method in ONLINE:
            online, callback.share = trainer, trainer.share
            trainer.allow_code_execution = allow_code_execution
        if not training.history:
            if base is None:
                callback.score(model, BASE_STEP, 0.0, 0.0)
            else:
                training.record(base, {"train_seconds": 0.0, "dev_seconds": 0.0, "usage": {}})
        if judging is not None and not judging.scores:
            judging.measure(model, BASE_STEP)
        if not training.history[-1].collapsed:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        choice = choose(training.history, recipe.train.keep)
    logger.info("%s", choice.reason)
    steps = training.history[-1].step if training.history else 0
    spent = _spent(training)
    if online is None:
        seen = [found.rows[index] for index in found.order[: steps * step_size(recipe)]]
        trained = sum(row.tokens for row in seen)
        lengths = [length for row in seen for length in row.lengths]
    else:
        usage = Usage.read(spent["usage"])
        usage.add(online.usage)
        spent["usage"] = usage.as_json()
        trained = online.spent - online.generated
        lengths = online.lengths
    flops = training_flops(
        shape,
        lengths,
        adapters=bool(recipe.train.lora_rank),
        checkpointing=recipe.train.gradient_checkpointing,
        reference=method in ("dpo", "o1_pruner") or (online is not None and online.beta != 0.0),
    )
    result = {
        "rows": {
            nouns(method): len(found.rows or found.asked),
            "dropped": len(found.dropped),
            "dev_problems": len(dev),
            **({"held_out": len(held_out)} if method in LABELLED else {}),
        },
        "kept_step": choice.step,
        "reason": choice.reason,
        "steps": steps,
        "collapsed": steps > 0 and training.history[-1].collapsed,
        "tokens_trained": trained,
        "attention_flops_trained": flops[0],
        "model_flops_trained": None if isnan(flops[1]) else flops[1],
        "policy_tokens": trained if online is None else online.spent,
        "epochs": round(found.epochs, 3) if online is None else None,
        "groups": None if online is None else online.groups._asdict(),
        "judging": None if judging is None else judging.summary(choice.step),
        "peak_memory": peak_memory(),
        **spent,
    }
    if world.is_main_process:
        lines = [json.dumps(asdict(row)) + "\n" for row in found.dropped]
        write_text(directory / "dropped.jsonl", "".join(lines))
        checkpoint = training.checkpoint(choice.step) if choice.step > BASE_STEP else None
        keep(recipe, checkpoint, training.model)
        write_text(finished, json.dumps(result, indent=2) + "\n")
        shutil.rmtree(training.checkpoints, ignore_errors=True)
    world.wait_for_everyone()
    return result


def _spent(training: TrainingState) -> dict[str, Any]:
    efforts = training.efforts()
    usage = Usage()
    for effort in efforts:
        usage.add(Usage.read(effort["usage"]))
    spent = {
        key: round(sum(effort[key] for effort in efforts), 3)
        for key in ("train_seconds", "dev_seconds")
    }
    return {"usage": usage.as_json(), **spent, "seconds": round(sum(spent.values()), 3)}


def fingerprint(
    recipe: Recipe,
    material: Material,
    problems: Sequence[Problem],
    held_out: Sequence[LabelledChain] = (),
) -> str:
    """What makes a training the same: settings, model, what it trains on and is measured by."""
    parts = (recipe.train, recipe.sample, recipe.model)
    settings = [part.model_dump_json() for part in parts]
    rows = (*material.rows, *material.asked)
    trained = content_id(*(content_id(repr(row)) for row in rows))
    measured = content_id(*(row.id for row in problems), *(row.id for row in held_out))
    return content_id(str(recipe.seed), *settings, trained, measured)
