"""One training, whatever its loss: what it reads, in which order, what it keeps, what it took."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from dto.errors import DtoError
from dto.ledger import Usage
from dto.recipe import Recipe
from dto.records import Dropped, Problem
from dto.runs.manifest import peak_memory, write_text
from dto.seeds import content_id
from dto.tables import read
from dto.training import losses
from dto.training.callback import DevCallback
from dto.training.checkpoints import (
    BASE_STEP,
    CHECKPOINTS,
    Choice,
    DevScore,
    TrainingState,
    choose,
)
from dto.training.pairs import (
    Demonstration,
    TokenizedPair,
    chosen_sides,
    load_pairs,
    load_weighted,
    training_order,
    within_budget,
)
from dto.training.weights import keep, load, with_adapters
from dto.trajectories import prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("dto.train")

Row = TokenizedPair | Demonstration


@dataclass(frozen=True, slots=True)
class Material:
    """What is trained on: rows of a table, or problems that are sampled anew, in their order."""

    rows: list[Row] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    order: list[int] = field(default_factory=list)

    @property
    def epochs(self) -> float:
        """Passes over the rows."""
        return len(self.order) / max(1, len(self.rows or self.problems))


def fit(
    run: Path,
    recipe: Recipe,
    directory: Path | None = None,
    base: DevScore | None = None,
    *,
    allow_code_execution: bool = False,
) -> dict[str, Any]:
    """Train on what a run holds and keep one model in `directory`/model; what came of it.

    The result, also in `result.json`, is described at :func:`dto.stages.train.train`; `directory`
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
    world = PartialState()
    model, tokenizer = load(recipe)
    material = _material(run, recipe, model, tokenizer)
    problems = _problems(run, "dev")
    if len(problems) < 2:
        raise DtoError(
            f"train: {len(problems)} dev problems are too few to choose a checkpoint by: "
            "set problems.dev to 300"
        )
    with world.main_process_first():
        mark = fingerprint(recipe, material, problems)
        training = TrainingState(directory, mark, world.num_processes, writer=world.is_main_process)
        finished = directory / "result.json"
        if finished.exists() and training.model.is_dir():
            known: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
            return known
        if method == "grpo":
            training.restart()
        last = training.resume()
    choice = Choice(BASE_STEP, f"there are no {_nouns(method)} to train on: base is kept")
    online: Any = None
    if material.order:
        model = with_adapters(model, recipe)
        callback = DevCallback(recipe, tokenizer, problems, training, allow_code_execution)
        callback.epochs = material.epochs
        rows = material.rows or material.problems
        trainer = losses.trainer(recipe, config, model, tokenizer, rows, material.order, callback)
        callback.mean_loss = trainer.mean_loss
        if method == "grpo":
            online, callback.share = trainer, trainer.share
            trainer.allow_code_execution = allow_code_execution
        if not training.history:
            if base is None:
                callback.score(model, BASE_STEP, 0.0, 0.0)
            else:
                training.record(base, {"train_seconds": 0.0, "dev_seconds": 0.0, "usage": {}})
        if not training.history[-1].collapsed:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        choice = choose(training.history)
    logger.info("%s", choice.reason)
    steps = training.history[-1].step if training.history else 0
    spent = _spent(training)
    if online is None:
        seen = material.order[: steps * _step_size(recipe)]
        trained = sum(material.rows[index].tokens for index in seen)
    else:
        usage = Usage(**spent["usage"])
        usage.add(online.usage)
        spent["usage"] = asdict(usage)
        trained = online.spent - online.generated
    result = {
        "rows": {
            _nouns(method): len(material.rows or material.problems),
            "dropped": len(material.dropped),
            "dev_problems": len(problems),
        },
        "kept_step": choice.step,
        "reason": choice.reason,
        "steps": steps,
        "collapsed": steps > 0 and training.history[-1].collapsed,
        "tokens_trained": trained,
        "policy_tokens": trained if online is None else online.spent,
        "epochs": round(material.epochs, 3) if online is None else None,
        "peak_memory": peak_memory(),
        **spent,
    }
    if world.is_main_process:
        lines = [json.dumps(asdict(row)) + "\n" for row in material.dropped]
        write_text(directory / "dropped.jsonl", "".join(lines))
        checkpoint = training.checkpoint(choice.step) if choice.step > BASE_STEP else None
        keep(recipe, checkpoint, training.model)
        write_text(finished, json.dumps(result, indent=2) + "\n")
        shutil.rmtree(training.checkpoints, ignore_errors=True)
    world.wait_for_everyone()
    return result


def _material(
    run: Path, recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Material:
    """The rows, or problems, of the method, in the order and as often as they are trained on."""
    settings = recipe.train
    context = _context(recipe, model)
    if settings.method == "none":
        return Material()
    if settings.method == "grpo":
        from dto.training.grpo import longest

        problems = _problems(run, "train")
        if not problems:
            return Material()
        shortest = min(
            len(prompt_ids(row.question, tokenizer, recipe.model, row.prompt)) for row in problems
        )
        times = longest(recipe, len(problems), shortest) / len(problems)
        group = settings.batch_size // settings.group
        order = training_order(
            [1] * len(problems), epochs=times, batch_size=group, seed=recipe.seed
        )
        return Material(problems=problems, order=order)
    found: Sequence[Row | Dropped]
    if settings.method == "o1_pruner":
        found = load_weighted(run, context, settings.accuracy_weight)
    else:
        pairs = load_pairs(run, context)
        found = chosen_sides(pairs) if settings.method == "sft" else pairs
    rows = [row for row in found if not isinstance(row, Dropped)]
    dropped = [row for row in found if isinstance(row, Dropped)]
    lengths, size = [row.length for row in rows], _step_size(recipe)
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


def _nouns(method: str) -> str:
    names = {"sft": "responses", "o1_pruner": "responses", "grpo": "problems", "none": "rows"}
    return names.get(method, "pairs")


def _problems(run: Path, split: str) -> list[Problem]:
    rows = read(run / "problems" / "rows.parquet", Problem)
    return [row for row in rows if row.split == split]


def _spent(training: TrainingState) -> dict[str, Any]:
    efforts = training.efforts()
    usage = Usage()
    for effort in efforts:
        usage.add(Usage(**effort["usage"]))
    spent = {
        key: round(sum(effort[key] for effort in efforts), 3)
        for key in ("train_seconds", "dev_seconds")
    }
    return {"usage": asdict(usage), **spent, "seconds": round(sum(spent.values()), 3)}


def _context(recipe: Recipe, model: PreTrainedModel) -> int:
    limit: Any = getattr(model.config, "max_position_embeddings", None)
    own = int(limit or recipe.pair.max_length)
    return min(own, recipe.model.context or own)


def _step_size(recipe: Recipe) -> int:
    """Rows in one optimizer step."""
    per_process = recipe.train.batch_size * recipe.train.gradient_accumulation
    processes: int = PartialState().num_processes
    return per_process * processes


def fingerprint(recipe: Recipe, material: Material, problems: Sequence[Problem]) -> str:
    """What makes a training the same: settings, model, what is trained on, dev problems."""
    parts = (recipe.train, recipe.sample, recipe.model)
    settings = [part.model_dump_json() for part in parts]
    rows = (*material.rows, *material.problems)
    trained = content_id(*(content_id(repr(row)) for row in rows))
    measured = content_id(*(row.id for row in problems))
    return content_id(str(recipe.seed), *settings, trained, measured)
