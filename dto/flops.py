"""FLOPs of a model, from its config and its parameters.

Attention FLOPs are the cost that 2505.21765 (section 4) reports. One query position t attends to
t + 1 keys; in each of L layers and H heads of width D the scores q·k and the sum over values take
one multiply and one add per key and channel each:

    attention(t) = 4 · L · H · D · (t + 1)

Model FLOPs count everything else too, by the usual rule (2001.08361, section 2.1): each of the N
parameters that take part in a token's forward pass multiplies and adds once:

    forward(t) = 2 · N + attention(t)

N leaves out the tables that a token only looks a row up in (embeddings of tokens and positions) and
has the LM head, tied or not. Of a mixture of experts it has the share of the experts that a token
is sent to. An upper bound for tokens that are read: an engine computes the LM head of the last of
them alone. Training takes a forward pass and a backward pass of twice its FLOPs: 6 · N a token.
Adapters (LoRA) need no gradients of the frozen weights: 4 · N, their own parameters, a percent or
so, left out. Gradient checkpointing computes the forward pass a second time, and a reference model
(DPO, O1-Pruner, GRPO with a divergence) one of its own: 2 · N more each. Cached prefixes cost
nothing again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from math import nan
from typing import Any

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the formulas need; `parameters` is N, None where it is not known."""

    layers: int
    heads: int
    head_dim: int
    parameters: int | None = None

    @staticmethod
    def from_config(config: Any, parameters: int | None = None) -> ModelShape:
        """Read it from a transformers config (grouped-query heads count as query heads)."""
        heads = int(config.num_attention_heads)
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        return ModelShape(int(config.num_hidden_layers), heads, head_dim, parameters)

    @staticmethod
    def of_model(model: Any) -> ModelShape:
        """Of a loaded causal language model: its real parameters are counted."""
        return ModelShape.from_config(model.config, active_parameters(model))


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


def attention_flops(shape: ModelShape | None, start: int, end: int) -> float:
    """FLOPs of the attention at positions start … end-1, given that all earlier keys are cached.

    Sum over t of 4·L·H·D·(t + 1); nan when the shape is not known.
    """
    if shape is None:
        return nan
    keys = (end * (end + 1) - start * (start + 1)) // 2
    return float(4 * shape.layers * shape.heads * shape.head_dim * keys)


def forward_flops(shape: ModelShape | None, start: int, end: int) -> float:
    """Model FLOPs of positions start … end-1, given that all earlier keys are cached.

    Sum over t of 2·N + 4·L·H·D·(t + 1); nan when the shape or the parameters are not known.
    """
    if shape is None or shape.parameters is None:
        return nan
    return 2.0 * shape.parameters * (end - start) + attention_flops(shape, start, end)


def training_flops(
    shape: ModelShape,
    lengths: Iterable[int],
    *,
    adapters: bool = False,
    checkpointing: bool = False,
    reference: bool = False,
) -> tuple[float, float]:
    """Attention FLOPs and model FLOPs of training on sequences of these lengths in tokens.

    Forward and backward pass are three forward passes; where `adapters` are trained alone, two, but
    for the attention, which has no weights. `checkpointing` and a `reference` model add a forward
    pass each.
    """
    tokens, attention = 0, 0.0
    for length in lengths:
        tokens += length
        attention += attention_flops(shape, 0, length)
    again = checkpointing + reference
    attention *= 3 + again
    if shape.parameters is None:
        return attention, nan
    return attention, 2.0 * shape.parameters * tokens * ((2 if adapters else 3) + again) + attention
