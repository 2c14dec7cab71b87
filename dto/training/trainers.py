"""TRL's trainers on stored token ids: SimPO with an anchor, DPO, SFT.

Shared parts are here too: TRL's settings, checked losses, and log-probabilities of labels by TRL's
fused head, without full logits. Full logits are [tokens, vocabulary]. With 150,000 ids they are the
largest part of a training's memory. The fused head computes them in tiles, once in the forward and
again in the backward pass. It recognises softcaps and scales by their names
in a model's configuration. A model with other operations after its backbone would silently get a
wrong loss, so each head is compared with the full logits first.

This is the only module that imports `trl.experimental`.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from accelerate import PartialState
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerState,
)
from transformers.integrations.integration_utils import TensorBoardCallback
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.kernels import chunked_logprob
from trl.trainer import utils
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from dto.errors import DtoError
from dto.recipe import Recipe
from dto.training.checkpoints import TENSORBOARD
from dto.training.pairs import Demonstration, TokenizedPair
from dto.training.train import check_packages
from dto.training.weights import load, on_cpu, sharding

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object

logger = logging.getLogger("dto.train")

CPU_TILE = (512, 8192)
"""Tokens and ids per tile on a CPU. TRL's tiles are for GPUs and exceed many batches."""
LONGEST_WAIT_SECONDS = 6 * 3600
"""Processes wait for each other's dev responses; if one fails, accelerate ends the others."""
REFERENCE = "ref"
"""TRL's copy of new adapters: the base, as without adapters, which TRL then uses. It must go, since
transformers resumes only such copies from a checkpoint, and loses the adapters that are trained."""
_PROBE_TOKENS = 8
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def arguments(recipe: Recipe, directory: Path) -> dict[str, Any]:
    """TRL's settings from the recipe. Each step is logged; DevCallback decides when to save.

    The length is not limited here, since too long responses were dropped before. Several processes
    share the rows of a step: each accumulates the gradients of its part. Raises DtoError if they
    cannot, and for a package that is not installed.
    """
    check_packages(recipe)
    settings, processes = recipe.train, int(os.environ.get("WORLD_SIZE", "1"))
    if settings.gradient_accumulation % processes:
        raise DtoError(
            f"train.gradient_accumulation = {settings.gradient_accumulation} cannot be split over "
            f"{processes} processes: set it to a multiple of {processes}"
        )
    more: dict[str, Any] = {}
    if settings.optimizer == "adamw_8bit":
        more["optim"] = "adamw_8bit"
    if sharding():  # accumulated in shards: without this, each GPU holds the gradients of all
        more["accelerator_config"] = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    return more | {
        "output_dir": str(directory),
        "learning_rate": settings.learning_rate,
        "num_train_epochs": 1,  # the order of the rows holds all epochs
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation // processes,
        "ddp_timeout": LONGEST_WAIT_SECONDS,
        "warmup_steps": settings.warmup_steps,
        "seed": recipe.seed,
        "save_strategy": "no",  # DevCallback requests checkpoints
        "logging_strategy": "steps",
        "logging_steps": 1,
        "report_to": sorted({*settings.report_to}) or "none",
        "run_name": recipe.name,
        "project": "dto",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": not on_cpu(recipe),
        "use_cpu": on_cpu(recipe),
        "bf16": settings.bf16,
        "gradient_checkpointing": settings.gradient_checkpointing,
    }


def be_patient(recipe: Recipe) -> None:
    """Join the other processes of a CPU; transformers gives `ddp_timeout` to GPUs alone."""
    if on_cpu(recipe):
        PartialState(cpu=True, timeout=timedelta(seconds=LONGEST_WAIT_SECONDS))


def one_device(config: Any) -> None:
    """Restrict one process to its first GPU, and log how many others stay idle.

    Otherwise transformers spreads each batch over all visible GPUs (nn.DataParallel): n times the
    batch, and an n-th of the steps. Under `accelerate launch`, each process already has its own
    GPU. This relies on a private attribute of transformers, `_n_gpu`.
    """
    visible = int(config.n_gpu)
    if visible < 2:
        return
    config._n_gpu = 1
    logger.info(
        "train: uses 1 of %d visible GPUs; to use all of them, set train.processes to %d",
        visible,
        visible,
    )


class QuietTrainer(Base):
    """Mixin for TRL's trainers: trains on token ids in a given order, and checks the loss.

    TRL gets the rows unchanged: without template, tokenizer, or an added BOS or EOS. A non-finite
    loss ends the training. The losses are averaged. No telemetry is sent and no model card is
    written. This relies on a private method of TRL, `_send_telemetry`.

    Each step is logged under TRL's names, to the trackers of `train.report_to`, with the tokens
    trained on (prompts included, padding not) and their number per second. The seconds of a step
    include sampling for it, and not the dev measurement after it.
    """

    losses: list[float]

    def __init__(
        self,
        recipe: Recipe,
        model: PreTrainedModel,
        args: Any,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Any],
        order: Sequence[int],
        callbacks: Sequence[TrainerCallback] = (),
        **more: Any,
    ) -> None:
        """Prepare a training on `rows` in the order of the indices `order`.

        TRL sees the whole training as one "epoch" in sequence. `more` goes to TRL's trainer.

        FSDP2 with `bf16`: weights and optimizer state are float32 shards, layers compute in
        bfloat16, and gradients are averaged in float32. accelerate's own policy would average them
        in bfloat16, and round the log-probabilities that a model returns.
        """
        if sharding() == "fsdp" and args.bf16:
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            args.fsdp_plugin_args = {"mixed_precision_policy": policy}
        super().__init__(
            model=model,
            args=args,
            train_dataset=datasets.Dataset.from_list([self.columns(row) for row in rows]),
            processing_class=tokenizer,
            callbacks=list(callbacks),
            **more,
        )
        adapted: Any = self.model
        if REFERENCE in getattr(adapted, "peft_config", {}):
            adapted.delete_adapter(REFERENCE)
        prepared: Any = self.train_dataset
        self.train_dataset = prepared.select(order)
        self.remove_callback(PrinterCallback)
        self.losses = []
        self._lengths = [sum(getattr(rows[index], "lengths", ())) for index in order]
        self._began: float | None = None
        for tracker in self.callback_handler.callbacks:
            if isinstance(tracker, TensorBoardCallback) and tracker.logging_dir is None:
                tracker.logging_dir = str(Path(args.output_dir).parent / TENSORBOARD)

    @staticmethod
    def columns(row: Any) -> dict[str, Any]:
        """Convert a row to TRL's columns."""
        raise NotImplementedError

    def share(self, state: TrainerState) -> float:
        """The share of the training that is done, up to 1."""
        return state.global_step / state.max_steps

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of a batch. Raises DtoError, before any update, if it is not finite.

        Every process learns the losses of all, so that all of them stop.
        """
        result = super().compute_loss(*args, **kwargs)
        own = (result[0] if isinstance(result, tuple) else result).detach()
        losses = self.accelerator.gather(own.float().reshape(1)).tolist()
        for rank, loss in enumerate(losses):
            if not math.isfinite(loss):
                where = f" in process {rank + 1} of {len(losses)}" if len(losses) > 1 else ""
                raise DtoError(
                    f"train: loss is {loss} at step {self.state.global_step + 1} of "
                    f"{self.state.max_steps}{where}: lower train.learning_rate "
                    f"({self.args.learning_rate:g})"
                )
        self.losses.append(float(own))
        return result

    def progress(self) -> dict[str, Any]:
        """What a checkpoint must keep beside TRL's state; nothing on stored rows."""
        return {}

    def restore(self, progress: dict[str, Any]) -> bool:
        """Continue from the progress of a checkpoint; return whether the training had ended."""
        return False

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Train on a part of a step; the first part starts the clock of the step."""
        self._began = self._began or time.monotonic()
        return super().training_step(*args, **kwargs)

    def tokens_of_step(self) -> int:
        """The tokens of the step that has ended, over all processes."""
        processes = int(self.args.world_size)
        parts = int(self.args.train_batch_size) * int(self.args.gradient_accumulation_steps)
        end = self.state.global_step * parts * processes
        return sum(self._lengths[max(0, end - parts * processes) : end])

    def take_step(self) -> dict[str, Any]:
        """More figures of the step that has ended, for `steps.jsonl` only."""
        return {}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the figures of a step; the summary at the end of a training has no `loss`."""
        if "loss" in logs and self._began is not None:
            seconds, self._began = time.monotonic() - self._began, None
            tokens = self.tokens_of_step()
            logs |= {"tokens": tokens, "tokens_per_second": tokens / seconds}
        super().log(logs, start_time)

    def mean_loss(self) -> float | None:
        """Mean loss over all processes since the last call; None without any loss."""
        if not self.losses:
            return None
        own = torch.tensor([[math.fsum(self.losses), len(self.losses)]], dtype=torch.float64)
        total = self.accelerator.gather(own.to(self.accelerator.device)).sum(0)
        self.losses.clear()
        return float(total[0] / total[1])

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as TRL does. Raises DtoError, with settings that take less, without GPU memory."""
        try:
            return super().train(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            reason = ". ".join(" ".join(str(error).split()).split(". ")[:2])
        ways = ["a lower pair.max_length, sample.max_tokens or train.response_tokens"]
        if not hasattr(self.model, "peft_config"):
            ways.insert(0, "train.lora_rank=32")
        if not self.args.gradient_checkpointing:
            ways.insert(0, "train.gradient_checkpointing=true")
        if self.args.per_device_train_batch_size > 1:
            ways.insert(0, "a smaller train.batch_size with more train.gradient_accumulation")
        raise DtoError(
            f"train: no memory at step {self.state.global_step + 1} of {self.state.max_steps}: set "
            f"{', or '.join(ways)} ({reason})"
        )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no model card: checkpoints are not published."""

    def _send_telemetry(self) -> None:
        """Send no telemetry."""


class SimPOTrainer(QuietTrainer, CPOTrainer):
    """SimPO (2405.14734) with an NLL anchor, by TRL's CPOTrainer.

    The anchor, the negative log-likelihood of the chosen response, is CPO's (2401.08417). The loss
    of a pair is

        -logsigmoid(beta · (mean logp chosen - mean logp rejected) - gamma) + nll · NLL(chosen)

    Departure from 2505.21765, which uses SimPO alone: that collapses easily, so we add the anchor
    and measure the model on dev problems during training. CPOTrainer computes full logits; here
    the loss is computed from the labels' log-probabilities.
    """

    def __init__(self, recipe: Recipe, model: PreTrainedModel, *args: Any) -> None:
        super().__init__(recipe, model, *args)
        fuse(model)

    @staticmethod
    def config(recipe: Recipe, directory: Path) -> CPOConfig:
        """TRL's settings of SimPO."""
        settings = recipe.train
        return CPOConfig(
            **arguments(recipe, directory),
            train_sampling_strategy="sequential",
            loss_type="simpo",
            beta=settings.beta,
            simpo_gamma=settings.gamma,
            cpo_alpha=settings.nll,
            max_length=recipe.pair.max_length,
        )

    @staticmethod
    def columns(row: TokenizedPair) -> dict[str, list[int]]:
        """The columns that TRL's collator pads: full sequences, labels -100 over the prompt."""
        prompt = list(row.prompt_ids)
        columns = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side, response in (("chosen", row.chosen_ids), ("rejected", row.rejected_ids)):
            ids = prompt + list(response)
            columns[f"{side}_input_ids"] = ids
            columns[f"{side}_attention_mask"] = [1] * len(ids)
            columns[f"{side}_labels"] = [-100] * len(prompt) + list(response)
        return columns

    def tokenize_row(self, feature: dict[str, Any], model: object = None) -> dict[str, Any]:
        """Return the row unchanged, since it holds ids."""
        return feature

    def get_batch_loss_metrics(
        self, model: Any, batch: dict[str, Any], train_eval: str = "train"
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of CPOTrainer, and those of its metrics that need no logits.

        The log-probabilities are means over the tokens of a response, as in the loss; a reward is
        beta times that. Each side is a pass of its own. In one pass, as in CPOTrainer, the chosen
        responses would be padded to the length of the rejected ones, which are twice as long.
        """
        sums, counts, auxiliary = [], [], []
        for side in ("chosen", "rejected"):
            labels = batch[f"{side}_labels"]
            output = model(
                batch[f"{side}_input_ids"],
                attention_mask=batch[f"{side}_attention_mask"],
                labels=labels,
                fused_lm_head=True,
            )
            sums.append(output.log_probs.sum(-1))
            counts.append((labels[:, 1:] != -100).sum(-1))
            if self.aux_loss_enabled:  # for a mixture of experts
                auxiliary.append(output.aux_loss)
        logps = [total / count for total, count in zip(sums, counts, strict=True)]
        losses, *rewards = self.cpo_loss(*logps)
        loss = losses.mean()
        if self.cpo_alpha:
            loss = loss - self.cpo_alpha * sums[0].sum() / counts[0].sum()
        if auxiliary:
            loss = loss + self.aux_loss_coef * torch.stack(auxiliary).mean()
        margins = rewards[0] - rewards[1]
        figures = torch.stack([*logps, margins, (margins > 0).to(margins)]).detach().float()
        parts = torch.cat([figures.sum(1), figures.new_tensor([figures.size(1)])])
        total = self.accelerator.gather(parts[None]).sum(0)
        names = ("logps/chosen", "logps/rejected", "rewards/margins", "rewards/accuracies")
        return loss, dict(zip(names, (total[:-1] / total[-1]).tolist(), strict=True))


class StoredDPOTrainer(QuietTrainer, DPOTrainer):
    """DPO (2305.18290). The reference is the base model; with LoRA, the model without adapters."""

    def __init__(self, recipe: Recipe, *args: Any) -> None:
        reference = None if recipe.train.lora_rank else load(recipe)[0]
        super().__init__(recipe, *args, ref_model=reference)

    @staticmethod
    def config(recipe: Recipe, directory: Path) -> DPOConfig:
        """TRL's settings of DPO."""
        return DPOConfig(
            **arguments(recipe, directory),
            train_sampling_strategy="sequential",
            beta=recipe.train.beta,
            max_length=None,
        )

    @staticmethod
    def columns(row: TokenizedPair) -> dict[str, list[int]]:
        """The three parts of a pair."""
        return {
            "prompt_ids": list(row.prompt_ids),
            "chosen_ids": list(row.chosen_ids),
            "rejected_ids": list(row.rejected_ids),
        }

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the rows unchanged: TRL would tokenize text and add an EOS."""
        return dataset


class StoredSFTTrainer(QuietTrainer, SFTTrainer):
    """Supervised fine-tuning on stored responses, without a loss on the prompt."""

    @staticmethod
    def config(recipe: Recipe, directory: Path) -> SFTConfig:
        """TRL's settings of SFT."""
        return SFTConfig(
            **arguments(recipe, directory),
            train_sampling_strategy="sequential",
            max_length=None,
            packing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        )

    @staticmethod
    def columns(row: Demonstration) -> dict[str, list[int]]:
        """Ids and labels, -100 over the prompt."""
        prompt, response = list(row.prompt_ids), list(row.response_ids)
        return {"input_ids": prompt + response, "labels": [-100] * len(prompt) + response}


def fuse(model: PreTrainedModel) -> None:
    """Add the fused head to a model: `model(..., labels=…, fused_lm_head=True).log_probs`."""
    add_fused_lm_head(base_of(model))


def base_of(model: Any) -> Any:
    """The language model without adapters around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def small_tiles() -> None:
    """Use small tiles of logits on a CPU, and skip positions without a label, as TRL does on a GPU.

    This relies on private names of TRL: two sizes, and the check whether to skip such positions. A
    test measures the effect.
    """
    chunked_logprob.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE = CPU_TILE
    utils.__dict__["_use_triton"] = lambda device: True


def settle(trainer: Any) -> None:
    """Check the fused head of a trainer's model against the full logits.

    Raises DtoError if they differ, since the model would silently be trained on a wrong loss.
    """
    if reason := mismatch(trainer.model, float(getattr(trainer, "temperature", 1.0))):
        raise DtoError(
            f"train: {reason}, so its loss would be wrong: use a model whose logits come from its "
            "head alone"
        )


def mismatch(model: PreTrainedModel, temperature: float = 1.0) -> str:
    """The reason why the fused head of a model cannot be used; empty if it can."""
    base = base_of(model)
    name = type(base).__name__
    head = base.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        return f"the head of {name} is not a plain linear layer ({type(head).__name__})"
    count = int(base.config.get_text_config().vocab_size)
    ids = (torch.arange(_PROBE_TOKENS, device=base.device)[None] * 7919) % count
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    try:
        with torch.no_grad():
            fused = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float() / temperature
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        return f"the fused head fails on {name} ({' '.join(str(error).split())[:150]})"
    finally:
        model.train(was_training)
    full = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    if ((fused - full).abs() > _TOLERANCE[base.dtype] * (1 + full.abs())).any():
        return f"the logits of {name} differ from those of its head"
    return ""
