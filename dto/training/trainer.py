"""What all trainers have in common: TRL's settings for ids that are there already, and manners."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch

from dto.errors import DtoError
from dto.recipe import Recipe

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object

logger = logging.getLogger("dto.train")


def on_cpu(recipe: Recipe) -> bool:
    """Whether training is to be done, or can only be done, on the CPU."""
    return recipe.model.device == "cpu" or not torch.accelerator.is_available()


def arguments(recipe: Recipe, directory: Path) -> dict[str, Any]:
    """TRL's settings: those of the recipe, and nothing that it does on its own account.

    Nothing limits the length here: responses come as ids, and those too long are dropped before.
    """
    settings = recipe.train
    return {
        "output_dir": str(directory),
        "learning_rate": settings.learning_rate,
        "num_train_epochs": 1,  # the order of the rows holds all epochs
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "warmup_steps": settings.warmup_steps,
        "seed": recipe.seed,
        "save_strategy": "no",  # DevCallback asks for checkpoints
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": not on_cpu(recipe),
        "use_cpu": on_cpu(recipe),
        "bf16": settings.bf16,
        "gradient_checkpointing": settings.gradient_checkpointing,
    }


def one_device(config: Any, run: Path) -> None:
    """Let one process train on one device, the first that it sees, and say which are idle.

    Otherwise transformers spreads each batch over all GPUs that are visible (nn.DataParallel): n
    times the batch, an n-th of the steps. Under `accelerate launch` each process has its own
    already. A private detail is relied on: `_n_gpu`, which transformers sets itself.
    """
    visible = int(config.n_gpu)
    if visible < 2:
        return
    config._n_gpu = 1
    logger.info(
        "train: 1 of %d visible GPUs is used, the others are idle; to use all: "
        "accelerate launch --num_processes %d -m dto.training.process %s",
        visible,
        visible,
        run,
    )


class Mannered(Base):
    """A trainer that stops at a loss that is no number, keeps its mean, and tells nobody.

    Mixed in before a trainer of TRL. A private detail is relied on: telemetry is sent by
    `_send_telemetry`.
    """

    losses: list[float]

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


def table(rows: list[dict[str, Any]]) -> datasets.Dataset:
    """Rows as TRL takes them."""
    return datasets.Dataset.from_list(rows)
