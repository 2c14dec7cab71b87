"""Losses from labels' log-probabilities alone: those of whole logits, without whole logits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainerCallback,
)
from trl.experimental.cpo import CPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from dto.errors import DtoError
from dto.recipe import Recipe
from dto.training import trainers
from dto.training.fit import make_trainer, trainer_class
from dto.training.pairs import Demonstration, TokenizedPair
from dto.training.weights import with_adapters

STORED = ("simpo", "dpo", "sft", "o1_pruner")
SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "head_dim": 16,
}  # fmt: skip


def qwen(vocabulary: int, tied: bool = True) -> Any:
    config = Qwen2Config(vocab_size=vocabulary, **SMALL, tie_word_embeddings=tied)
    return Qwen2ForCausalLM(config)


KINDS: dict[str, Callable[[int], Any]] = {
    "tied": qwen,
    "untied": lambda size: qwen(size, tied=False),
    "softcapped": lambda size: Gemma2ForCausalLM(
        Gemma2Config(vocab_size=size, **SMALL, final_logit_softcapping=0.5)
    ),
    "scaled": lambda size: CohereForCausalLM(
        CohereConfig(vocab_size=size, **SMALL, logit_scale=0.25)
    ),
    "divided": lambda size: GraniteForCausalLM(
        GraniteConfig(vocab_size=size, **SMALL, logits_scaling=4.0)
    ),
}


class Doubled(Qwen2ForCausalLM):
    """A model whose logits are not those of its head alone."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output


def rows(vocabulary: int, lengths: Sequence[int]) -> list[TokenizedPair]:
    noise = torch.Generator().manual_seed(3)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (count,), generator=noise).tolist())

    return [TokenizedPair(str(n), ids(5 + n), ids(n), ids(2 * n)) for n in lengths]


def recipe_of(method: str, batch: int, **train: Any) -> Recipe:
    settings = {"method": method, "batch_size": batch, "beta": 0.7, "gamma": 0.3, "nll": 2.0}
    data = {"name": "head", "model": {"device": "cpu"}, "train": settings | train}
    return Recipe.model_validate(data | {"sample": {"temperature": 0.6}})


def built(
    model: Any,
    method: str,
    pairs: Sequence[TokenizedPair],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    **train: Any,
) -> tuple[Any, Any]:
    """A trainer of the method and its first batch, all rows."""
    recipe = recipe_of(method, len(pairs), **train)
    torch.manual_seed(7)
    reference = type(model)(model.config)
    monkeypatch.setattr(trainers, "load", lambda recipe: (reference, tokenizer))
    taken: list[Any] = list(pairs)
    if method in ("sft", "o1_pruner"):
        taken = [Demonstration(p.id, p.prompt_ids, p.chosen_ids, 0.5 - len(p.id)) for p in pairs]
    config = trainer_class(method).config(recipe, tmp_path)
    order = list(range(len(taken)))
    trained = with_adapters(model, recipe)
    trainer = make_trainer(recipe, config, trained, tokenizer, taken, order, TrainerCallback())
    trainer.current_gradient_accumulation_steps = 1  # else `train` sets it
    with torch.no_grad():  # away from what is compared with
        for each in trained.parameters():
            wave = torch.sin(torch.arange(each.numel(), dtype=torch.float32))
            each.add_(0.05 * wave.view_as(each))
    trained.train()
    if train.get("gradient_checkpointing"):
        trained.gradient_checkpointing_enable()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    return trainer, batch


def step(trainer: Any, batch: Any) -> tuple[float, list[torch.Tensor]]:
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    return float(loss.detach()), [
        each.grad.clone() for each in trainer.model.parameters() if each.grad is not None
    ]


def assert_equal(found: Any, wanted: Any, tolerance: float = 1e-4) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=tolerance)
    assert len(found[1]) == len(wanted[1]) > 0
    assert max(float(each.abs().max()) for each in wanted[1]) > 1e-4
    for one, other in zip(found[1], wanted[1], strict=True):
        assert float((one - other).norm()) <= tolerance * float(other.norm()) + 1e-7


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


CASES = [
    *(("simpo", kind, {}) for kind in KINDS),
    ("simpo", "tied", {"nll": 0.0}),
    ("simpo", "tied", {"gradient_checkpointing": True}),
    ("simpo", "tied", {"lora_rank": 2}),
    ("simpo", "untied", {"lora_rank": 2, "gradient_checkpointing": True}),
    *((method, kind, {}) for method in STORED[1:] for kind in ("tied", "softcapped")),
    ("dpo", "tied", {"lora_rank": 2}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind", "train"), CASES)
def test_loss_and_gradients_are_those_of_whole_logits(
    method: str,
    kind: str,
    train: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SimPO against TRL's own CPOTrainer; the others against the same loss on whole logits."""
    torch.manual_seed(5)
    model = KINDS[kind](len(tokenizer))
    pairs = rows(len(tokenizer), (3, 9, 14))
    trainer, batch = built(model, method, pairs, tokenizer, tmp_path, monkeypatch, **train)
    found = step(trainer, batch)
    if method == "simpo":
        trainer.get_batch_loss_metrics = lambda *args, **kwargs: CPOTrainer.get_batch_loss_metrics(
            trainer, *args, **kwargs
        )
    else:
        others = (getattr(trainer, name, None) for name in ("ref_model", "base"))
        for each in (trainers.base_of(trainer.model), *others):
            if each is not None:
                each.forward = whole(each.forward, float(getattr(trainer, "temperature", 1.0)))
    assert_equal(found, step(trainer, batch))


def test_under_mixed_precision_the_loss_is_that_of_whole_logits(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = rows(len(tokenizer), (3, 9, 14))
    torch.manual_seed(5)
    trainer, batch = built(
        qwen(len(tokenizer)), "simpo", pairs, tokenizer, tmp_path, monkeypatch, bf16=True
    )
    trainer.model = trainer.accelerator.prepare_model(trainer.model)
    found = step(trainer, batch)
    trainer.get_batch_loss_metrics = lambda *args, **kwargs: CPOTrainer.get_batch_loss_metrics(
        trainer, *args, **kwargs
    )
    wanted = step(trainer, batch)
    assert found[0] == pytest.approx(wanted[0], rel=2e-3)
    for one, other in zip(found[1], wanted[1], strict=True):
        assert float((one - other).norm()) <= 0.05 * float(other.norm()) + 1e-6


class Largest(TorchDispatchMode):
    """The numbers of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [each.numel() for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        self.numbers = max(self.numbers, *sizes, 0)
        return result


@pytest.mark.slow
@pytest.mark.parametrize("method", STORED)
def test_no_tensor_holds_the_logits_of_a_batch(
    method: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forward and backward; and the stock path of SimPO has one, or nothing would be shown."""
    vocabulary = 50_000
    pairs = rows(vocabulary, (150, 150, 150))
    labels = sum(len(p.chosen_ids) for p in pairs)
    model = qwen(vocabulary)
    trainer, batch = built(model, method, pairs, tokenizer, tmp_path, monkeypatch)
    with Largest() as ours:
        trainer.compute_loss(trainer.model, dict(batch)).backward()
    assert ours.numbers <= trainers.CPU_TILE[0] * trainers.CPU_TILE[1] < labels * vocabulary
    if method == "simpo":
        with Largest() as stock:
            CPOTrainer.get_batch_loss_metrics(trainer, model, batch)[0].backward()
        assert stock.numbers > labels * vocabulary


@pytest.mark.slow
@pytest.mark.parametrize("method", STORED)
def test_another_head_is_refused_in_one_line(
    method: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = rows(len(tokenizer), (3, 9))
    config = qwen(len(tokenizer)).config
    built(Qwen2ForCausalLM(config), method, pairs, tokenizer, tmp_path, monkeypatch)
    with pytest.raises(DtoError, match=r"^train: the logits of Doubled differ"):
        built(Doubled(config), method, pairs, tokenizer, tmp_path, monkeypatch)


def test_adapters_on_the_head_are_seen(tokenizer: PreTrainedTokenizerBase) -> None:
    """They are zero at first, so that no comparison of logits would show them."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    for targets, reason in ((["lm_head"], "is not a plain linear layer"), (["q_proj"], "")):
        config = peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
        model = peft.get_peft_model(qwen(len(tokenizer), tied=False), config)
        trainers.fuse(model)
        assert reason in trainers.mismatch(model) and bool(reason) == bool(trainers.mismatch(model))
