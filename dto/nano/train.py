"""Train the embedded model: from nothing to a folder that transformers loads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dto.nano.examples import ANSWER, CLOSE, INDUCERS, SYSTEM, Example, ExampleWriter
from dto.nano.tokenizer import CONTEXT, train_tokenizer
from dto.prompts import render
from dto.seeds import derive

STEPS = 2400
BATCH_TOKENS = 4096  # with padding
BUCKET = 16  # batches whose examples are sorted by length together
PEAK_LEARNING_RATE = 3e-3
WARMUP = 100
FACTS_ALONE = 0.10  # of the steps, at the beginning
FACTS_LATER = 0.12  # of the batches, afterwards
IGNORE = -100

Progress = Callable[[int, int, float], None]  # step, steps, loss


def build_tokenizer(seed: int) -> PreTrainedTokenizerBase:
    """The tokenizer, learned from a sample of the corpus and of what the model is asked with."""
    random = Random(derive(seed, "nano", "tokenizer"))
    untrained = train_tokenizer([])
    writer = ExampleWriter(untrained, random, "train")
    examples = writer.examples(overthinks=True)
    texts = [untrained.decode(next(examples).ids) for _ in range(3000)]
    shown = [render(*key) for key in INDUCERS] + [render("solve", question=""), CLOSE, ANSWER]
    return train_tokenizer([*texts, *(shown + list(SYSTEM)) * 300])


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 of about 0.7 M parameters."""
    torch.manual_seed(derive(seed, "nano", "initialise") % 2**32)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def batches(examples: Iterator[Example], budget: int = BATCH_TOKENS) -> Iterator[list[Example]]:
    """Batches of at most `budget` tokens with padding, of examples of like length."""
    random = Random(0)
    while True:
        pool: list[Example] = []
        tokens = 0
        while tokens < BUCKET * budget:
            pool.append(next(examples))
            tokens += len(pool[-1].ids)
        pool.sort(key=lambda example: len(example.ids))
        bucket: list[list[Example]] = [[]]
        for example in pool:
            if (len(bucket[-1]) + 1) * len(example.ids) > budget:
                bucket.append([])
            bucket[-1].append(example)
        random.shuffle(bucket)
        yield from bucket


def collate(batch: list[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and weights, [batch, longest], padded on the right (causal: no mask is needed)."""
    longest = max(len(example.ids) for example in batch)
    ids = torch.full((len(batch), longest), pad)
    learn = torch.zeros((len(batch), longest))
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        learn[row, : len(example.learn)] = torch.tensor(example.learn)
    return ids, learn


def loss_of(model: PreTrainedModel, ids: torch.Tensor, learn: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy of the tokens that are to be learned."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    weights = learn[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1), reduction="none"
    )
    return (losses * weights.reshape(-1)).sum() / weights.sum()


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = min(WARMUP, steps // 5 + 1)
    if step < warmup:
        return PEAK_LEARNING_RATE * (step + 1) / warmup
    return PEAK_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train_nano(
    out: Path,
    *,
    overthinks: bool,
    seed: int = 0,
    steps: int | None = None,
    progress: Progress | None = None,
) -> float:
    """Train a model and its tokenizer into `out`; returns the mean loss of the last tenth.

    Deterministic for a seed on one machine. The control (`overthinks=False`) has the same
    tokenizer, size and error rates, and stops after its first pass.
    """
    steps = STEPS if steps is None else steps
    tokenizer = build_tokenizer(seed)
    model = build_model(tokenizer, seed)
    model.train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=PEAK_LEARNING_RATE,
        betas=(0.9, 0.98),
    )
    writer = ExampleWriter(tokenizer, Random(derive(seed, "nano", "corpus")), "train")
    corpus = batches(writer.examples(overthinks=overthinks))
    facts = batches(iter(writer.facts, None))
    choice = Random(derive(seed, "nano", "curriculum"))
    losses: list[float] = []
    for step in range(steps):
        alone = step < FACTS_ALONE * steps
        source = facts if alone or choice.random() < FACTS_LATER else corpus
        ids, learn = collate(next(source), int(tokenizer.pad_token_id))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = loss_of(model, ids, learn)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step + 1, steps, losses[-1])
    save(model, tokenizer, out)
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write the folder: bf16 weights, configuration, tokenizer."""
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
