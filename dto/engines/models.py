"""Tokenizers and models: loading them, and the shape that FLOPs are computed from (`dto.usage`).

Whoever needs one does it here: an engine, a stage without an engine, training.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from dto.errors import EngineError
from dto.recipe import resolve
from dto.source import Source
from dto.usage import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dto.recipe import ModelSettings


def load_tokenizer(
    model: ModelSettings, name: str | None = None, *, title: str = "", local: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe's model, or of the model `name` (a trained one's folder).

    `local`: only where nothing has to be fetched for it. Raises EngineError, which calls it
    `title`, where it cannot be loaded or has no fast version.
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
    """The causal language model of an embedded name, a folder or a Hub id, on the CPU.

    Raises EngineError, which calls it `title`, where it cannot be loaded.
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
    """Model and tokenizer for the transformers engine, on the device that serves.

    `auto` is CUDA where there is one, else the CPU; and the checkpoint's own dtype on a GPU,
    float32 on a CPU, which computes it faster and bit for bit the same in any batch. Raises
    EngineError, naming `name`, when they cannot be loaded.
    """
    import torch

    device, dtype = settings.device, settings.dtype
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EngineError(f"model.device = {device!r}: torch finds no GPU here; leave it at auto")
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
        f"{title} cannot be loaded: {reason} — give nano, nano-control, a folder with config.json, "
        "tokenizer and weights, or a Hub id"
    )


_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def shape_of_config(config: Any, parameters: int | None = None) -> ModelShape:
    """Of a transformers config (grouped-query heads count as query heads)."""
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return ModelShape(int(config.num_hidden_layers), heads, head_dim, parameters)


def shape_of_model(model: Any) -> ModelShape:
    """Of a loaded causal language model: its real parameters are counted."""
    return shape_of_config(model.config, active_parameters(model))


def active_parameters(model: Any) -> int | None:
    """Parameters that take part in a token's forward pass: N of `dto.usage`.

    None for a mixture of experts whose config does not tell how many there are, and how many a
    token is sent to.
    """
    from torch import nn

    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    if (head := model.get_output_embeddings()) is not None:
        tables.discard(id(head.weight))  # tied: what looks rows up is multiplied with as well
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
    sent_to = getattr(config, "num_experts_per_tok", None)
    if not experts or not sent_to:
        return None
    return dense + routed * int(sent_to) // int(experts)


def parameters_of(config: Any) -> int | None:
    """N of a transformers config: of a model that is laid out as it says, without any memory.

    None where transformers has no causal language model for it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    plain = copy.deepcopy(config)
    if getattr(plain, "quantization_config", None) is not None:
        del plain.quantization_config  # weights of fewer bits count the same
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(plain)  # type: ignore[no-untyped-call]
        return active_parameters(model)
    except Exception:  # whatever a config that it does not know makes transformers raise
        return None
