"""DPO (2305.18290) on stored token ids, by TRL's DPOTrainer; the reference is the base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from dto.recipe import Recipe
from dto.training.pairs import TokenizedPair
from dto.training.trainer import Mannered, arguments, table


class ExactDPOTrainer(Mannered, DPOTrainer):
    """DPOTrainer on token ids; `order` as for SimPO.

    `reference` is a copy of the base model, None for one whose adapters can be switched off.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reference: PreTrainedModel | None,
        args: DPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[TokenizedPair],
        order: Sequence[int],
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        rows = table([_columns(pairs[index]) for index in order])
        super().__init__(
            model,
            reference,
            args,
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        self.losses = []

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The rows as they are: TRL would tokenise text, and add an EOS."""
        return dataset


def _columns(pair: TokenizedPair) -> dict[str, list[int]]:
    return {
        "prompt_ids": list(pair.prompt_ids),
        "chosen_ids": list(pair.chosen_ids),
        "rejected_ids": list(pair.rejected_ids),
    }


def config(recipe: Recipe, directory: Path) -> DPOConfig:
    """TRL's settings of this loss."""
    return DPOConfig(
        **arguments(recipe, directory),
        train_sampling_strategy="sequential",
        beta=recipe.train.beta,
        max_length=None,
    )
