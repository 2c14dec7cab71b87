"""SimPO with an NLL anchor on the stored token ids, by TRL's CPOTrainer.

SimPO is 2405.14734; the anchor, the negative log-likelihood of the chosen response, is CPO's
(2401.08417). The loss of a pair is

    -logsigmoid(beta · (mean logp chosen - mean logp rejected) - gamma) + nll · NLL(chosen)

where 2505.21765 has SimPO alone: that collapses easily, so the anchor is there and the model is
measured on dev problems while it is trained. CPOTrainer computes whole logits; here the loss is
computed from the labels' log-probabilities (`dto.training.head`). This is the only module that
imports `trl.experimental`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer

from dto.recipe import Recipe
from dto.training.head import fuse
from dto.training.pairs import TokenizedPair
from dto.training.trainer import Mannered, arguments, table


class SimPOTrainer(Mannered, CPOTrainer):
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
        rows = table([_columns(pair) for pair in pairs])
        super().__init__(
            model, args, train_dataset=rows, processing_class=tokenizer, callbacks=list(callbacks)
        )
        tokenized: Any = self.train_dataset
        self.train_dataset = tokenized.select(order)
        self.remove_callback(PrinterCallback)
        self.losses = []
        fuse(model)

    def get_batch_loss_metrics(
        self, model: Any, batch: dict[str, Any], train_eval: str = "train"
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of CPOTrainer; its metrics, which nobody reads, are not computed."""
        sides = self.concatenated_inputs(
            batch, padding_value=int(self.pad_token_id), device=self.accelerator.device
        )
        labels = sides["concatenated_labels"]
        output = model(
            sides["concatenated_input_ids"],
            attention_mask=sides["concatenated_attention_mask"],
            labels=labels,
            fused_lm_head=True,
        )
        counts = (labels[:, 1:] != -100).sum(-1)
        sums = output.log_probs.sum(-1)
        chosen = slice(len(batch["chosen_labels"]))
        means = sums / counts
        losses, _, _ = self.cpo_loss(means[chosen], means[chosen.stop :])
        loss = losses.mean()
        if self.cpo_alpha:
            loss = loss - self.cpo_alpha * sums[chosen].sum() / counts[chosen].sum()
        if self.aux_loss_enabled:  # of a mixture of experts
            loss = loss + self.aux_loss_coef * output.aux_loss
        return loss, {}

    def tokenize_row(self, feature: dict[str, Any], model: object = None) -> dict[str, Any]:
        """The row as it is: `pairs` holds the ids that the model sampled."""
        return feature


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
    """TRL's settings of this loss."""
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
