"""The model that is trained, and the one that is kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dto.errors import DtoError
from dto.nano import resolve
from dto.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train, in float32 whatever it is stored in, and its tokenizer.

    Raises DtoError when there is no such model, or the files are none.
    """
    name, revision = resolve(recipe.model.name), recipe.model.revision
    try:
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DtoError(f"train: model {recipe.model.name!r} cannot be loaded: {reason}") from None
    return model, tokenizer


def keep(recipe: Recipe, checkpoint: Path | None, directory: Path) -> None:
    """Save a checkpoint's weights (None: the base's), whole or not at all.

    With the base's own tokenizer and chat template. The weights are float32, as they were trained
    and measured, or bfloat16 where `train.bf16` asks for mixed precision.
    """
    model, tokenizer = load(recipe)
    if checkpoint is not None:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if recipe.train.bf16:
        model = model.bfloat16()
    unfinished = directory.with_name(f".{directory.name}.part")
    for path in (unfinished, directory):
        shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(directory)
