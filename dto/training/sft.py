"""Supervised fine-tuning on stored responses, by TRL's SFTTrainer; the prompt has no loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from dto.recipe import Recipe
from dto.training.pairs import Demonstration
from dto.training.trainer import Mannered, arguments, table


class ExactSFTTrainer(Mannered, SFTTrainer):
    """SFTTrainer on token ids, which it leaves as they are; `order` as for SimPO."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: SFTConfig,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Demonstration],
        order: Sequence[int],
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(
            model,
            args,
            train_dataset=table([_columns(rows[index]) for index in order]),
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        self.losses = []


def _columns(row: Demonstration) -> dict[str, list[int]]:
    prompt, response = list(row.prompt_ids), list(row.response_ids)
    return {"input_ids": prompt + response, "labels": [-100] * len(prompt) + response}


def config(recipe: Recipe, directory: Path) -> SFTConfig:
    """TRL's settings of this loss."""
    return SFTConfig(
        **arguments(recipe, directory),
        train_sampling_strategy="sequential",
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
