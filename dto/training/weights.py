"""Load the model to train, and save the model to keep."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.tensor import DTensor

from dto.engines.models import load_model, load_tokenizer, origin
from dto.errors import DtoError
from dto.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


CHECKPOINTED = "_checkpoint_wrapped_module."
"""What accelerate adds to names of parameters where activations are checkpointed."""
SHARDS = "pytorch_model_fsdp_0"
"""The folder of a checkpoint in which transformers keeps the weights of FSDP2."""


def on_cpu(recipe: Recipe) -> bool:
    """Whether to train on the CPU: by the settings, or because there is no accelerator."""
    return recipe.model.device == "cpu" or not torch.accelerator.is_available()


def sharding() -> str:
    """How accelerate splits the model over processes: `fsdp`, `deepspeed`, or empty."""
    for name in ("fsdp", "deepspeed"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "").lower() == "true":
            return name
    return ""


def load(
    recipe: Recipe, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model to train, and its tokenizer.

    Bytes a parameter, before activations. All weights train in float32: 16, of which weights 4,
    gradient 4 and AdamW 8 (2 with `adamw_8bit`); `bf16` adds 2 for the copies that layers compute
    with. Weights of bfloat16 alone would lose most updates: at a rate of 1e-6 they are smaller than
    half a unit in the last place. FSDP2 and ZeRO-3 divide the 16 by the number of processes. LoRA:
    4 for the base, which is not updated, or 2 with `bf16`; and 16 for each parameter of an adapter.

    Raises DtoError if the model does not exist, cannot be loaded or could not be saved.
    """
    name, revision = origin(recipe.model)
    title = f"train: model {name!r}"
    frozen = recipe.train.lora_rank and recipe.train.bf16
    default = torch.bfloat16 if frozen else torch.float32
    model = load_model(name, revision, dtype=dtype or default, title=title)
    _make_savable(model, title)
    return model, load_tokenizer(recipe.model, name, title=title)


def _make_savable(model: PreTrainedModel, title: str) -> None:
    """Switch sampling on where the generation config has sampling settings but no `do_sample`.

    transformers loads such a config, which some models have, and refuses to save it: the training
    would fail at its first checkpoint. vLLM reads the settings either way. Raises DtoError if the
    config is not valid for another reason.
    """
    config: Any = model.generation_config
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
    try:
        config.validate(strict=True)
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        raise DtoError(f"{title}: correct its generation_config.json ({reason})") from None


def with_adapters(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    """Add LoRA adapters (2106.09685) to all linear layers, if the recipe asks for them.

    Their scaling is 2 (alpha = 2 · rank), and they are float32. Raises DtoError if peft is not
    installed, and for a model without linear layers.
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
    try:
        wrapped: Any = get_peft_model(model, adapters)
    except ValueError as error:
        raise DtoError(
            f"train.lora_rank = {rank}: {recipe.model.name!r} has no linear layers for adapters "
            f"({' '.join(str(error).split())[:150]}): set it to 0"
        ) from None
    adapted: PreTrainedModel = wrapped
    return adapted


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, or a copy with its adapters merged, for generating responses."""
    if not hasattr(model, "merge_and_unload"):
        return model
    plain: Any = copy.deepcopy(model)
    answering: PreTrainedModel = plain.merge_and_unload()
    return answering


def whole(parameter: Any) -> torch.Tensor:
    """All of a parameter that may be split over processes; each of them must call it."""
    if hasattr(parameter, "ds_id"):  # ZeRO-3
        import deepspeed  # type: ignore[import-not-found]  # not tried on a GPU

        with deepspeed.zero.GatheredParameters([parameter]):
            gathered: torch.Tensor = parameter.detach().clone()
        return gathered
    full: torch.Tensor = parameter.detach()
    return full.full_tensor() if isinstance(full, DTensor) else full


def gathered(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    """A copy of a model that is, or will be, split over processes: all of it on this one's device.

    It has the precision of the kept model, and adapters are merged: 2 bytes a parameter on each GPU
    with `train.bf16`, else 4. Its buffers and the first weights are read from the base's files.
    """
    dtype = torch.bfloat16 if recipe.train.bf16 else torch.float32
    plain: Any = with_adapters(load(recipe, dtype)[0], recipe).to(PartialState().device)
    parts = {
        name.replace(CHECKPOINTED, ""): parameter for name, parameter in model.named_parameters()
    }
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(whole(parts[name]))
    copied: PreTrainedModel = plain.merge_and_unload() if recipe.train.lora_rank else plain
    return copied


@contextmanager
def answering(model: PreTrainedModel, recipe: Recipe) -> Iterator[PreTrainedModel]:
    """Use the model for generation, with its own `forward` instead of the trainers' wrappers.

    If processes split it, this is a copy (`gathered`) that ends with the context. accelerate wraps
    a model in automatic mixed precision, whose outputs are float32 while keys and values are
    bfloat16. TRL wraps it in the fused head, which in a merged copy would still use the original
    model. Both wrappers are restored afterwards.
    """
    plain = gathered(model, recipe) if sharding() else merged(model)
    own = vars(plain)
    wrapped = own.pop("forward", None)
    try:
        yield plain
    finally:
        if wrapped is not None:
            own["forward"] = wrapped


def keep(recipe: Recipe, checkpoint: Path | None, directory: Path) -> None:
    """Save a checkpoint's weights (None: the base's), completely or not at all.

    The tokenizer, chat template, configuration and generation config (sampling settings, end
    tokens) are the base's: a training changes them, among others to `use_cache: false`. The weights
    are float32, as they were trained and measured, or bfloat16 if `train.bf16` is set. The shards
    of FSDP2 are put together.
    """
    model, tokenizer = load(recipe)
    if checkpoint is not None:
        shards = checkpoint / SHARDS
        if recipe.train.lora_rank:
            model = merged(_adapted(model, recipe, checkpoint))
        elif shards.is_dir():
            _read_shards(model.state_dict(), shards)
        else:
            base, model = model, load_model(str(checkpoint), dtype=torch.float32)
            model.config, model.generation_config = base.config, base.generation_config
    if recipe.train.bf16:
        model = model.bfloat16()
    unfinished = directory.with_name(f".{directory.name}.part")
    for path in (unfinished, directory):
        shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(directory)


def _adapted(model: PreTrainedModel, recipe: Recipe, checkpoint: Path) -> Any:
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    if not (checkpoint / SHARDS).is_dir():
        return PeftModel.from_pretrained(model, checkpoint)
    adapted: Any = with_adapters(model, recipe)
    weights = get_peft_model_state_dict(adapted)
    _read_shards(weights, checkpoint / SHARDS)
    set_peft_model_state_dict(adapted, weights)
    return adapted


def _read_shards(weights: dict[str, torch.Tensor], shards: Path) -> None:
    """Fill the weights, in place, from a checkpoint that several processes have written."""
    state_dict_loader.load({"model": weights}, checkpoint_id=shards, no_dist=True)
