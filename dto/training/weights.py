"""Load the model to train, and save the model to keep."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dto.engines.models import load_model, load_tokenizer, origin
from dto.errors import DtoError
from dto.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model to train, always in float32, and its tokenizer.

    Raises DtoError if the model does not exist or cannot be loaded.
    """
    name, revision = origin(recipe.model)
    title = f"train: model {name!r}"
    model = load_model(name, revision, dtype=torch.float32, title=title)
    return model, load_tokenizer(recipe.model, name, title=title)


def with_adapters(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    """Add LoRA adapters (2106.09685) to all linear layers, if the recipe asks for them.

    Their scaling is 2 (alpha = 2 · rank). Raises DtoError if peft is not installed.
    """
    rank = recipe.train.lora_rank
    if not rank:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise DtoError(
            f"train.lora_rank = {rank} needs peft: pip install 'dto[peft]', or set it to 0"
        ) from None
    torch.manual_seed(recipe.seed)
    adapters = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    wrapped: Any = get_peft_model(model, adapters)
    adapted: PreTrainedModel = wrapped
    return adapted


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, or a copy with its adapters merged, for generating responses."""
    if not hasattr(model, "merge_and_unload"):
        return model
    plain: Any = copy.deepcopy(model)
    answering: PreTrainedModel = plain.merge_and_unload()
    return answering


@contextmanager
def answering(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Use the model for generation, with its own `forward` instead of the trainers' wrappers.

    accelerate wraps it in automatic mixed precision, whose outputs are float32 while keys and
    values are bfloat16. TRL wraps it in the fused head, which in a merged copy would still use the
    original model. Both wrappers are restored afterwards.
    """
    plain = merged(model)
    own = vars(plain)
    wrapped = own.pop("forward", None)
    try:
        yield plain
    finally:
        if wrapped is not None:
            own["forward"] = wrapped


def keep(recipe: Recipe, checkpoint: Path | None, directory: Path) -> None:
    """Save a checkpoint's weights (None: the base's), completely or not at all.

    The tokenizer and chat template are the base's. The weights are float32, as they were trained
    and measured, or bfloat16 if `train.bf16` is set.
    """
    model, tokenizer = load(recipe)
    if checkpoint is not None and recipe.train.lora_rank:
        from peft import PeftModel

        wrapped: Any = PeftModel.from_pretrained(model, checkpoint)
        model = merged(wrapped)
    elif checkpoint is not None:
        model = load_model(str(checkpoint), dtype=torch.float32)
    if recipe.train.bf16:
        model = model.bfloat16()
    unfinished = directory.with_name(f".{directory.name}.part")
    for path in (unfinished, directory):
        shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(directory)
