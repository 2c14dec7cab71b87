"""Which module computes which loss; only the one that is asked for is imported, and its TRL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dto.recipe import Recipe
from dto.training.weights import load

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback


def config(recipe: Recipe, directory: Path) -> Any:
    """TRL's settings of the method; only its own module is imported."""
    match recipe.train.method:
        case "simpo":
            from dto.training.simpo import config as simpo

            return simpo(recipe, directory)
        case "dpo":
            from dto.training.dpo import config as dpo

            return dpo(recipe, directory)
        case "sft" | "cft" | "sft_batch":
            from dto.training.sft import config as sft

            return sft(recipe, directory)
        case "o1_pruner":
            from dto.training.pruner import config as pruner

            return pruner(recipe, directory)
        case "grpo" | "drqa":
            from dto.training.grpo import config as grpo

            return grpo(recipe, directory)
        case "none":
            return None


def trainer(
    recipe: Recipe,
    config: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    order: Sequence[int],
    callback: TrainerCallback,
) -> Any:
    """TRL's trainer of the method, on rows of a table or on problems; its head is checked."""
    from dto.training.head import settle, small_tiles
    from dto.training.trainer import on_cpu

    if on_cpu(recipe):
        small_tiles()
    built = _built(recipe, config, model, tokenizer, rows, order, [callback])
    settle(built)
    return built


def _built(
    recipe: Recipe,
    config: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    order: Sequence[int],
    callbacks: Sequence[TrainerCallback],
) -> Any:
    match recipe.train.method:
        case "dpo":
            from dto.training.dpo import ExactDPOTrainer

            reference = None if recipe.train.lora_rank else load(recipe)[0]
            return ExactDPOTrainer(model, reference, config, tokenizer, rows, order, callbacks)
        case "sft" | "cft" | "sft_batch":
            from dto.training.sft import ExactSFTTrainer

            return ExactSFTTrainer(model, config, tokenizer, rows, order, callbacks)
        case "o1_pruner":
            from dto.training.pruner import StoredTrainer

            return StoredTrainer(model, config, tokenizer, rows, order, callbacks)
        case "grpo" | "drqa":
            from dto.training.grpo import OnlineTrainer

            return OnlineTrainer(model, config, tokenizer, rows, order, recipe, callbacks)
    from dto.training.simpo import SimPOTrainer

    return SimPOTrainer(model, config, tokenizer, rows, order, callbacks)
