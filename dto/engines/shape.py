"""What the FLOPs of a model are computed from (`dto.usage`): read from its config, or counted."""

from __future__ import annotations

import copy
from typing import Any

from dto.usage import ModelShape

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
    """Parameters that take part in a token's forward pass (N above), of a transformers model.

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
