"""Load tokenizers and models, and find the shape from which FLOPs are computed (`dto.usage`).

Engines, stages without an engine and training all load them here.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dto.errors import EngineError
from dto.recipe import resolve
from dto.source import Source
from dto.usage import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dto.recipe import ModelSettings


def origin(model: ModelSettings) -> tuple[str, str | None]:
    """The Hub id or folder of a model's weights, and their revision.

    That is its name; where the name is a server's own, `model.tokenizer`.
    """
    place = resolve(model.name)
    own = Path(place).is_dir() or place.count("/") == 1
    if model.engine == "openai" and model.tokenizer is not None and not own:
        return model.tokenizer, None
    return model.name, model.revision


def load_tokenizer(
    model: ModelSettings, name: str | None = None, *, title: str = "", local: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a recipe's model, or of the model `name` (a trained model's folder).

    `local`: download nothing. `title` names the tokenizer in errors. Raises EngineError if it
    cannot be loaded or has no fast version.
    """
    from transformers import AutoTokenizer

    revision = model.revision
    if name is None:
        name = model.tokenizer or model.name
        revision = None if model.tokenizer else revision
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            resolve(name), revision=revision, local_files_only=local
        )
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ValueError("it has no fast version: convert it to a tokenizer.json")
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(title or f"tokenizer of {name!r}", error) from None
    return tokenizer


def load_model(
    name: str, revision: str | None = None, *, dtype: Any, title: str = ""
) -> PreTrainedModel:
    """Load the causal language model of an embedded name, a folder or a Hub id, on the CPU.

    `title` names the model in errors. Raises EngineError if it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    title = title or f"model {name!r}"
    place = Source.parse(resolve(name))
    if place.is_local and not place.exists:
        raise _unloadable(title, FileNotFoundError("no such folder — train it first"))
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            place.name, revision=revision, dtype=dtype
        )
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise _unloadable(title, error) from None
    return model


def load_for_serving(
    settings: ModelSettings, name: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer for the transformers engine, on the serving device.

    Device `auto` is CUDA if available, else the CPU. Dtype `auto` is the checkpoint's own on a GPU
    and float32 on a CPU, where it is faster and gives bitwise equal results in any batch. Raises
    EngineError, naming `name`, if they cannot be loaded.
    """
    import torch

    device, dtype = settings.device, settings.dtype
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EngineError(f"model.device = {device!r}: torch finds no GPU; set it to auto")
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    model: Any = load_model(name, settings.revision, dtype=dtype)
    try:
        model = model.to(device)
    except RuntimeError as error:  # out of memory
        raise _unloadable(f"model {name!r}", error) from None
    return model, load_tokenizer(settings, name)


def _unloadable(title: str, error: Exception) -> EngineError:
    reason = " ".join(str(error).split())[:300]
    return EngineError(
        f"{title} cannot be loaded: {reason} — use nano, nano-control, a folder with config.json, "
        "tokenizer and weights, or a Hub id"
    )


_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def shape_of_config(config: Any, parameters: int | None = None) -> ModelShape:
    """The shape of a transformers config (grouped-query heads count as query heads)."""
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return ModelShape(int(config.num_hidden_layers), heads, head_dim, parameters)


def shape_of_model(model: Any) -> ModelShape:
    """The shape of a loaded causal language model, with its actual parameters counted."""
    return shape_of_config(model.config, active_parameters(model))


def active_parameters(model: Any) -> int | None:
    """Count the parameters in a token's forward pass: N in `dto.usage`.

    None for a mixture of experts whose config does not give the number of experts, or the number
    that each token uses.
    """
    from torch import nn

    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    if (head := model.get_output_embeddings()) is not None:
        tables.discard(id(head.weight))  # tied embeddings are also multiplied, as the LM head
    dense = routed = 0
    for name, parameter in model.named_parameters():
        if id(parameter) in tables:
            continue
        if "experts" in name.split("."):
            routed += parameter.numel()
        else:
            dense += parameter.numel()
    if not routed:
        return dense
    config = model.config
    experts = next((count for key in _EXPERTS if (count := getattr(config, key, None))), None)
    per_token = getattr(config, "num_experts_per_tok", None)
    if not experts or not per_token:
        return None
    return dense + routed * int(per_token) // int(experts)


def parameters_of(config: Any) -> int | None:
    """Count N for a transformers config, on a model that is built without memory (meta device).

    None if transformers has no causal language model for it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    plain = copy.deepcopy(config)
    if getattr(plain, "quantization_config", None) is not None:
        del plain.quantization_config  # quantized weights count like others
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(plain)  # type: ignore[no-untyped-call]
        return active_parameters(model)
    except Exception:  # an unknown config can make transformers raise anything
        return None
