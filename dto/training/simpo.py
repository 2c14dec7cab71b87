"""SimPO with an NLL anchor on the stored token ids: the training process.

    python -m dto.training.simpo RUN
    accelerate launch -m dto.training.simpo RUN          # several GPUs, several machines

SimPO is 2405.14734; the anchor, the negative log-likelihood of the chosen response, is CPO's
(2401.08417). The loss of a pair is

    -logsigmoid(beta · (mean logp chosen - mean logp rejected) - gamma) + nll · NLL(chosen)

where 2505.21765 has SimPO alone: that collapses easily, so the anchor is there and the model is
measured on dev problems while it is trained. TRL's CPOTrainer computes the loss. This is the only
module that imports `trl.experimental`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer

from dto.errors import DtoError
from dto.ledger import Usage
from dto.recipe import Recipe, load_recipe
from dto.records import Dropped, Problem
from dto.runs.manifest import peak_memory, write_text
from dto.seeds import content_id
from dto.tables import read
from dto.training.callback import DevCallback
from dto.training.checkpoints import BASE_STEP, CHECKPOINTS, Choice, TrainingState, choose
from dto.training.pairs import TokenizedPair, load_pairs, training_order
from dto.training.weights import keep, load

logger = logging.getLogger("dto.train")

PARENT_CHECK_SECONDS = 0.5
PROBE_BYTES = 8 * 2**20


class SimPOTrainer(CPOTrainer):
    """CPOTrainer on token ids: no template, no tokeniser, no BOS or EOS that was not there.

    `order` holds indices into `pairs`, for the whole training: it is one "epoch" to the trainer,
    gone through in sequence.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: CPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[TokenizedPair],
        order: Sequence[int],
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        rows = datasets.Dataset.from_list([_columns(pair) for pair in pairs])
        super().__init__(
            model, args, train_dataset=rows, processing_class=tokenizer, callbacks=list(callbacks)
        )
        tokenized: Any = self.train_dataset
        self.train_dataset = tokenized.select(order)
        self.remove_callback(PrinterCallback)
        self.losses: list[float] = []

    def tokenize_row(self, feature: dict[str, Any], model: object = None) -> dict[str, Any]:
        """The row as it is: `pairs` holds the ids that the model sampled."""
        return feature

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of a batch. Raises DtoError, before any weight moves, when it is not finite."""
        result = super().compute_loss(*args, **kwargs)
        loss = float((result[0] if isinstance(result, tuple) else result).detach())
        if not math.isfinite(loss):
            raise DtoError(
                f"train: loss is {loss} at step {self.state.global_step + 1} of "
                f"{self.state.max_steps}: lower train.learning_rate ({self.args.learning_rate:g})"
            )
        self.losses.append(loss)
        return result

    def mean_loss(self) -> float | None:
        """Mean loss, over all processes, since this was last asked for; None before any."""
        if not self.losses:
            return None
        own = torch.tensor([[math.fsum(self.losses), len(self.losses)]], dtype=torch.float64)
        total = self.accelerator.gather(own.to(self.accelerator.device)).sum(0)
        self.losses.clear()
        return float(total[0] / total[1])

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: checkpoints are not published."""

    def _send_telemetry(self) -> None:
        """None: a training run tells nobody of itself."""


def _columns(pair: TokenizedPair) -> dict[str, list[int]]:
    """The columns that TRL's collator pads: full sequences, labels -100 over the prompt."""
    prompt = list(pair.prompt_ids)
    columns = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for side, response in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
        ids = prompt + list(response)
        columns[f"{side}_input_ids"] = ids
        columns[f"{side}_attention_mask"] = [1] * len(ids)
        columns[f"{side}_labels"] = [-100] * len(prompt) + list(response)
    return columns


def config(recipe: Recipe, directory: Path) -> CPOConfig:
    """TRL's settings: those of the recipe, and nothing that it does on its own account.

    `max_length` limits nothing here: pairs come as ids, and those that are too long are dropped.
    """
    settings = recipe.train
    use_cpu = recipe.model.device == "cpu" or not torch.accelerator.is_available()
    return CPOConfig(
        output_dir=str(directory),
        loss_type="simpo",
        beta=settings.beta,
        simpo_gamma=settings.gamma,
        cpo_alpha=settings.nll,
        learning_rate=settings.learning_rate,
        num_train_epochs=1,  # the order of the pairs holds all epochs
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        warmup_steps=settings.warmup_steps,
        max_length=recipe.pair.max_length,
        seed=recipe.seed,
        train_sampling_strategy="sequential",
        save_strategy="no",  # DevCallback asks for checkpoints
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=not use_cpu,
        use_cpu=use_cpu,
        bf16=settings.bf16,
        gradient_checkpointing=settings.gradient_checkpointing,
    )


def fit(run: Path, recipe: Recipe, *, allow_code_execution: bool = False) -> dict[str, Any]:
    """Train on the pairs of a run and keep one model in `train/model`; what came of it.

    The result, also in `train/result.json`, is described at :func:`dto.stages.train.train`. A
    training that was killed goes on from its last complete checkpoint, and ends with the same
    weights and scores; with another number of processes it starts anew, as its steps are others. A
    finished one stands, however many processes it had. Raises DtoError for tables that do not fit,
    a model that cannot be loaded and a loss that is not finite.
    """
    arguments = config(recipe, run / "train" / CHECKPOINTS)
    _ = arguments.device  # sets up the processes: on CPUs, PartialState() before it would not
    world = PartialState()
    model, tokenizer = load(recipe)
    context = _context(recipe, model)
    rows = load_pairs(run, context)
    pairs = [row for row in rows if isinstance(row, TokenizedPair)]
    dropped = [row for row in rows if isinstance(row, Dropped)]
    problems = _dev_problems(run)
    with world.main_process_first():
        mark = fingerprint(recipe, pairs, problems)
        training = TrainingState(
            run / "train", mark, world.num_processes, writer=world.is_main_process
        )
        finished = training.directory / "result.json"
        if finished.exists() and training.model.is_dir():
            known: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
            return known
        last = training.resume()
    order = training_order(
        [pair.length for pair in pairs],
        epochs=recipe.train.epochs,
        batch_size=_step_size(recipe),
        seed=recipe.seed,
    )
    choice = Choice(BASE_STEP, "there are no pairs to train on: base is kept")
    if order:
        callback = DevCallback(recipe, tokenizer, problems, training, allow_code_execution)
        trainer = SimPOTrainer(model, arguments, tokenizer, pairs, order, [callback])
        callback.mean_loss = trainer.mean_loss
        if not training.history:
            callback.score(model, BASE_STEP, 0.0, 0.0)
        if not training.history[-1].collapsed:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        choice = choose(training.history)
    logger.info("%s", choice.reason)
    steps = training.history[-1].step if training.history else 0
    seen = order[: steps * _step_size(recipe)]
    result = {
        "rows": {"pairs": len(pairs), "dropped": len(dropped), "dev_problems": len(problems)},
        "kept_step": choice.step,
        "reason": choice.reason,
        "steps": steps,
        "collapsed": steps > 0 and training.history[-1].collapsed,
        "tokens_trained": sum(pairs[index].tokens for index in seen),
        "peak_memory": peak_memory(),
        **_spent(training),
    }
    if world.is_main_process:
        lines = [json.dumps(asdict(row)) + "\n" for row in dropped]
        write_text(training.directory / "dropped.jsonl", "".join(lines))
        checkpoint = training.checkpoint(choice.step) if choice.step > BASE_STEP else None
        keep(recipe, checkpoint, training.model)
        write_text(finished, json.dumps(result, indent=2) + "\n")
        shutil.rmtree(training.checkpoints, ignore_errors=True)
    world.wait_for_everyone()
    return result


def _dev_problems(run: Path) -> list[Problem]:
    rows = read(run / "problems" / "rows.parquet", Problem)
    problems = [row for row in rows if row.split == "dev"]
    if len(problems) < 2:
        raise DtoError(
            f"train: {len(problems)} dev problems are too few to choose a checkpoint by: "
            "set problems.dev to 300"
        )
    return problems


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
    """Pairs in one optimizer step."""
    per_process = recipe.train.batch_size * recipe.train.gradient_accumulation
    processes: int = PartialState().num_processes
    return per_process * processes


def fingerprint(recipe: Recipe, pairs: Sequence[TokenizedPair], problems: Sequence[Problem]) -> str:
    """What makes a training the same: settings, model, pairs, dev problems."""
    parts = (recipe.train, recipe.sample, recipe.model)
    settings = [part.model_dump_json() for part in parts]
    trained = content_id(*(content_id(repr(pair)) for pair in pairs))
    measured = content_id(*(row.id for row in problems))
    return content_id(str(recipe.seed), *settings, trained, measured)


def _exit_with(parent: int) -> None:
    """End this process when its parent is gone: nobody is left to read the result."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def has_room(directory: Path) -> bool:
    """Whether a file can be written there: writers of weights say of a full disk what they like."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(PROBE_BYTES))
    except OSError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The process: 0, 1 with a line `error: …` on stdout, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m dto.training.simpo", description=__doc__)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--parent", type=int, help="process id to end with")
    parser.add_argument("--allow-code-execution", action="store_true", help="run programs")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        _exit_with(options.parent)
    if os.environ.get("RANK", "0") == "0":
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        logger.setLevel(logging.INFO)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    try:
        recipe = load_recipe(options.run / "recipe.yaml")
        fit(options.run, recipe, allow_code_execution=options.allow_code_execution)
    except DtoError as error:
        print(f"error: {error}", flush=True)
        return 1
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError) or not has_room(options.run):
            reason = error if isinstance(error, OSError) else "no room on the disk"
            print(f"error: train: {reason}; what was computed is kept, make room", flush=True)
            return 1
        raise
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
