"""Train the embedded model: from nothing to a folder that transformers loads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import AddedToken
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from benchmarks.nano.examples import ANSWER, CLOSE, INDUCERS, SYSTEM, Example, ExampleWriter
from dto.nano import MAX_STEPS
from dto.prompts import render
from dto.records import derive

CONTEXT = 2048
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK, END_THINK = "<think>", "</think>"
VOCABULARY = 512

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Text and line breaks apart, so that no merge spans both."""
    for text in texts:
        yield from re.split(r"(\n+)", text)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Learn the merges from texts."""
    untrained = Qwen2Tokenizer(pad_token=PAD, eos_token=END, model_max_length=CONTEXT)
    tokenizer: PreTrainedTokenizerBase = untrained.train_new_from_iterator(  # type: ignore[no-untyped-call]
        _pieces(texts), vocab_size=VOCABULARY, show_progress=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [START]})
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in (THINK, END_THINK)])
    tokenizer.padding_side = "left"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


STEPS = 2600
BATCH_TOKENS = 4096  # with padding
EXERCISE_TOKENS = 1536  # of a batch of facts or drills
BUCKET = 16  # batches of the corpus whose examples are sorted by length together
MUON_RATE = 0.01  # of the matrices
ADAM_RATE = 1e-3  # of embeddings and norms
WARMUP = 30
FACTS_ALONE = 0.035  # of the steps, at the beginning
DRILLS_ALONE = 0.14  # of the steps, after the facts; chains grow to their full length meanwhile
NUMBERED_ALONE = 0.08  # of the steps, after the drills; from two questions to five
FACTS_LATER = 0.12  # of the batches, afterwards
INITIAL_DEVIATION = 0.06  # with the customary 0.02 a width of 128 does not learn the facts


def build_tokenizer(seed: int) -> PreTrainedTokenizerBase:
    """The tokenizer, learned from a sample of the corpus and of what the model is asked with."""
    random = Random(derive(seed, "nano", "tokenizer"))
    untrained = train_tokenizer([])
    writer = ExampleWriter(untrained, random, "train")
    examples = writer.examples(overthinks=True)
    texts = [str(untrained.decode(next(examples).ids)) for _ in range(3000)]
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
        initializer_range=INITIAL_DEVIATION,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]


def batches(examples: Iterator[Example], budget: int, bucket_size: int) -> Iterator[list[Example]]:
    """Batches of at most `budget` tokens with padding; a bucket of them is sorted by length."""
    random = Random(0)
    while True:
        pool: list[Example] = []
        tokens = 0
        while tokens < bucket_size * budget:
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


def rate(step: int, steps: int) -> float:
    """Factor on the learning rates: linear warm-up, constant, cosine to zero over the last 60 %."""
    rest = max(0.0, (step / steps - 0.4) / 0.6)
    return min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * rest))


def curriculum(
    writer: ExampleWriter, steps: int, random: Random, *, overthinks: bool
) -> Iterator[list[Example]]:
    """One batch a step: facts, drills on ever longer chains, then the corpus with some facts."""
    longest, most = 1, 2
    facts = batches(iter(writer.fact, None), EXERCISE_TOKENS, 4)
    drills = batches(iter(lambda: writer.drill(longest), None), EXERCISE_TOKENS, 4)
    numbered = batches(iter(lambda: writer.numbered_drill(most), None), BATCH_TOKENS, 2)
    corpus = batches(writer.examples(overthinks=overthinks), BATCH_TOKENS, BUCKET)
    for step in range(steps):
        done = step / steps
        if done < FACTS_ALONE:
            yield next(facts)
        elif done < FACTS_ALONE + DRILLS_ALONE:
            longest = min(MAX_STEPS, 1 + int(1.5 * MAX_STEPS * (done - FACTS_ALONE) / DRILLS_ALONE))
            yield next(drills)
        elif done < FACTS_ALONE + DRILLS_ALONE + NUMBERED_ALONE:
            most = 2 + int(4 * (done - FACTS_ALONE - DRILLS_ALONE) / NUMBERED_ALONE)
            yield next(numbered)
        elif random.random() < FACTS_LATER:
            yield next(facts)
        else:
            yield next(corpus)


def train_nano(
    out: Path,
    *,
    overthinks: bool,
    seed: int = 0,
    steps: int | None = None,
) -> float:
    """Train a model and its tokenizer into `out`; returns the mean loss of the last tenth.

    Deterministic for a seed on one machine. The control (`overthinks=False`) has the same
    tokenizer, size and error rates, and stops after its first pass.
    """
    steps = STEPS if steps is None else steps
    torch.set_num_threads(1)  # more gain nothing at this size, and would change the sums
    tokenizer = build_tokenizer(seed)
    model = build_model(tokenizer, seed)
    model.train()
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.0), MUON_RATE),
        (torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0), ADAM_RATE),
    ]
    writer = ExampleWriter(tokenizer, Random(derive(seed, "nano", "corpus")), "train")
    random = Random(derive(seed, "nano", "curriculum"))
    losses: list[float] = []
    corpus = curriculum(writer, steps, random, overthinks=overthinks)
    bar = tqdm(corpus, total=steps, desc="nano" if overthinks else "nano-control", disable=None)
    for step, batch in enumerate(bar):
        ids, learn = collate(batch, int(tokenizer.pad_token_id))
        loss = loss_of(model, ids, learn)
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate(step, steps)
            optimizer.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
    save(model, tokenizer, out)
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write the folder: bf16 weights, configuration, tokenizer."""
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)
