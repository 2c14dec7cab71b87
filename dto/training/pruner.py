"""O1-Pruner (2501.12570): the clipped objective of PPO on samples of the base model.

Each stored response counts with its length-harmonizing reward as the advantage, and with the ratio
of its probability under the model to that under the base; TRL's GRPOTrainer computes the clipped
loss. Departure from the paper, whose ratio is that of whole responses: ratios are those of tokens,
as in PPO, and the loss is the mean over the tokens of a batch (TRL's default). Both probabilities
are of the whole distribution at `sample.temperature`: with `sample.top_p` below 1 the samples are
from a narrower one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import pad

from dto.recipe import Recipe
from dto.training.pairs import Demonstration
from dto.training.trainer import Mannered, arguments, table


class StoredTrainer(Mannered, GRPOTrainer):
    """GRPOTrainer that is given responses and advantages; `order` as for SimPO."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: GRPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Demonstration],
        order: Sequence[int],
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(
            model,
            _no_reward,
            args,
            train_dataset=table([_columns(rows[index]) for index in order]),
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        self.base = copy.deepcopy(self.accelerator.unwrap_model(self.model)).eval()
        self.base.requires_grad_(False)
        self.remove_callback(PrinterCallback)
        self.losses = []
        self.filler = int(tokenizer.pad_token_id)

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        """The rows in their order: there are no groups to repeat a prompt for."""
        rows: Any = self.train_dataset if dataset is None else dataset
        return SequentialSampler(rows)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch as TRL would have made it: padded ids, advantages, logprobs of the base."""
        device = self.accelerator.device
        filler = self.filler

        def padded(column: str, side: str) -> tuple[torch.Tensor, torch.Tensor]:
            ids = [torch.tensor(row[column]) for row in inputs]
            mask = [torch.ones_like(each) for each in ids]
            return (
                pad(ids, padding_value=filler, padding_side=side).to(device),
                pad(mask, padding_value=0, padding_side=side).to(device),
            )

        prompts, prompt_mask = padded("prompt_ids", "left")
        responses, response_mask = padded("response_ids", "right")
        with torch.no_grad():
            logprobs, _, _ = self._get_per_token_logps_and_entropies(
                self.base,
                torch.cat([prompts, responses], dim=1),
                torch.cat([prompt_mask, response_mask], dim=1),
                responses.size(1),
            )
        advantages = torch.tensor([row["weight"] for row in inputs], device=device)
        return {
            "prompt_ids": prompts,
            "prompt_mask": prompt_mask,
            "completion_ids": responses,
            "completion_mask": response_mask,
            "advantages": advantages,
            "old_per_token_logps": logprobs,
            "num_items_in_batch": self.accelerator.gather(response_mask.sum()).sum(),
        }


def _no_reward(completions: list[str], **_: Any) -> list[float | None]:
    raise NotImplementedError("stored responses carry their advantages")


def _columns(row: Demonstration) -> dict[str, Any]:
    return {
        "prompt": row.id,
        "prompt_ids": list(row.prompt_ids),
        "response_ids": list(row.response_ids),
        "weight": row.weight,
    }


def config(recipe: Recipe, directory: Path) -> GRPOConfig:
    """TRL's settings of this loss."""
    return GRPOConfig(
        **arguments(recipe, directory),
        num_generations=recipe.train.batch_size,  # TRL wants a divisor of the batch
        temperature=recipe.sample.temperature or 1.0,
        beta=0.0,
        shuffle_dataset=False,
    )
