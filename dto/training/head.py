"""Log-probabilities of labels without whole logits, by the fused head that TRL's trainers have.

Whole logits are [tokens, vocabulary]: with 150,000 ids they are the largest part of a training's
memory. The fused head multiplies tiles of them, forward and, once more, backward. It knows softcaps
and scales by their names in a model's configuration; a model that does something else behind its
backbone would be trained on another loss in silence, so that each head is compared with the whole
logits first.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

import torch
from trl.kernels import chunked_logprob
from trl.trainer import utils
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("dto.train")

CPU_TILE = (512, 8192)
"""Tokens and ids of a tile on a CPU: TRL's tiles, meant for GPUs, are larger than many a batch."""
_PROBE_TOKENS = 8
_TOLERANCE = 1e-3


def fuse(model: PreTrainedModel) -> None:
    """Give a model the fused head: `model(..., labels=…, fused_lm_head=True).log_probs`."""
    add_fused_lm_head(base_of(model))


def base_of(model: Any) -> Any:
    """The language model itself, inside of adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def small_tiles() -> None:
    """Compute on a CPU small tiles of logits, and those of labels alone, as TRL does on a GPU.

    Private details are relied on: two sizes, and the question whether positions without a label are
    left out. A test measures what they are for.
    """
    chunked_logprob.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE = CPU_TILE
    utils.__dict__["_use_triton"] = lambda device: True


def settle(trainer: Any) -> None:
    """Compare the heads of a trainer's models with whole logits, and use these where they differ.

    All models of a training have one architecture: where the first differs, all use whole logits,
    by the same loss, and one line says so.
    """
    temperature = float(getattr(trainer, "temperature", 1.0))
    reason = mismatch(trainer.model, temperature)
    if not reason:
        return
    logger.warning(
        "train: %s: whole logits are computed, which takes some 3 times their memory "
        "(tokens of a batch x vocabulary x 4 bytes): lower train.batch_size if it runs out",
        reason,
    )
    others = (getattr(trainer, name, None) for name in ("ref_model", "base"))
    for model in (base_of(trainer.model), *others):
        if model is not None:
            model.forward = whole(model.forward, temperature)


def mismatch(model: PreTrainedModel, temperature: float = 1.0) -> str:
    """Why the fused head of a model cannot be used; empty where it can."""
    base = base_of(model)
    name = type(base).__name__
    head = base.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        return f"the head of {name} is no plain linear layer ({type(head).__name__})"
    count = int(base.config.get_text_config().vocab_size)
    ids = (torch.arange(_PROBE_TOKENS, device=base.device)[None] * 7919) % count
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    try:
        with torch.no_grad():
            found = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float() / temperature
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        return f"the fused head fails on {name} ({' '.join(str(error).split())[:150]})"
    finally:
        model.train(was_training)
    wanted = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    if ((found - wanted).abs() > _TOLERANCE * (1 + wanted.abs())).any():
        return f"{name} computes other logits than its head alone"
    return ""


def whole(forward: Any, temperature: float) -> Any:
    """A `forward` that answers as one with a fused head does, from the logits of the one given."""

    @functools.wraps(forward)
    def computed(*args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return (
                forward(*args, **kwargs)
                if labels is None
                else forward(*args, labels=labels, **kwargs)
            )
        items = kwargs.pop("num_items_in_batch", None)
        kwargs["use_cache"] = False
        output = forward(*args, **kwargs)
        logits = output.logits[:, :-1].float() / temperature
        labels = labels[:, 1:]
        mask = labels != -100
        logprobs = logits.log_softmax(-1)
        chosen = logprobs.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(~mask, 0)
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1).masked_fill(~mask, 0)
            mean_logits = logits.mean(-1).masked_fill(~mask, 0)
        return FusedCausalLMOutput(
            loss=-chosen.sum() / (mask.sum().clamp(min=1) if items is None else items),
            log_probs=chosen,
            entropy=entropy,
            mean_logits=mean_logits,
            is_top1=(logits.argmax(-1) == labels) & mask,
            label_mask=mask,
            aux_loss=getattr(output, "aux_loss", None),
        )

    return computed
