"""The model that is trained, and the one that is kept."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dto.engines.models import load_model, load_tokenizer
from dto.errors import DtoError
from dto.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train, in float32 whatever it is stored in, and its tokenizer.

    Raises DtoError when there is no such model, or the files are none.
    """
    name, revision = recipe.model.name, recipe.model.revision
    title = f"train: model {name!r}"
    model = load_model(name, revision, dtype=torch.float32, title=title)
    return model, load_tokenizer(recipe.model, name, title=title)


def with_adapters(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    """The model with LoRA adapters (2106.09685) on all its linear layers, if the recipe has any.

    Their weight is 2 (alpha = 2 · rank). Raises DtoError where peft is not installed.
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
    """The model as it answers: itself, or a copy into which its adapters are merged."""
    if not hasattr(model, "merge_and_unload"):
        return model
    plain: Any = copy.deepcopy(model)
    answering: PreTrainedModel = plain.merge_and_unload()
    return answering


@contextmanager
def answering(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model as it answers, its own `forward` in place of what trainers put before it.

    accelerate puts automatic mixed precision before it, whose outputs are float32 while keys and
    values inside are bfloat16; TRL puts the fused head before it, which in a merged copy would go
    on with the model that was copied. Both are back afterwards.
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
    """Save a checkpoint's weights (None: the base's), whole or not at all.

    With the base's own tokenizer and chat template. The weights are float32, as they were trained
    and measured, or bfloat16 where `train.bf16` asks for mixed precision.
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
