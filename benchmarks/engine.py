"""Throughput of the transformers engine against `model.generate`, in one process.

    python benchmarks/engine.py [--json] [--model nano] [--repetitions 5]

The same prompts of unequal length, the same sampling settings and token limit. `generate` runs them
as padded batches and computes every row until the longest of its batch ends; counted are the useful
tokens, up to each row's end of sequence. Repetitions alternate between all the arms; each figure is a
median with its range, each ratio that of one repetition's neighbours. Exit code 1 when a median ratio
is below 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

from dto.engines import open_engine
from dto.engines.base import Sampling
from dto.engines.transformers import TransformersEngine
from dto.nano.corpus import chain_problems
from dto.prompts import render
from dto.recipe import ModelSettings

TEMPERATURE, TOP_P = 1.0, 0.95
BATCH, COROUTINES = 64, 1000


def unequal_prompts(engine: TransformersEngine, count: int) -> list[list[int]]:
    """Chat prompts of the embedded model's own questions; some hold the start of an answer too."""
    rng = random.Random(0)
    tokenizer = engine.tokenizer
    prompts = []
    for problem in chain_problems("test", count, seed=0):
        question = render("solve", "nano", question=problem.question)
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer.encode(text, add_special_tokens=False)
        begun = tokenizer.encode(problem.question, add_special_tokens=False)
        prompts.append(ids + begun[: rng.randrange(len(begun))])
    return prompts


def useful(rows: Sequence[Sequence[int]], end_ids: frozenset[int]) -> int:
    """Tokens up to each row's end of sequence, which is counted."""
    return sum(
        next((i + 1 for i, token in enumerate(row) if token in end_ids), len(row)) for row in rows
    )


def generate(engine: TransformersEngine, prompts: list[list[int]], limit: int) -> int:
    """Useful tokens of `model.generate`, in batches of BATCH, longest prompts together."""
    model, pad = engine.hf_model, engine.tokenizer.pad_token_id
    total = 0
    ordered = sorted(prompts, key=len) if len(prompts) > BATCH else prompts
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in batch])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=limit,
                do_sample=True,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                top_k=0,
                pad_token_id=pad,
            )
        total += useful(output[:, width:].tolist(), engine.end_ids)
    return total


def serve(engine: TransformersEngine, prompts: list[list[int]], limit: int) -> int:
    """Useful tokens of the engine, one coroutine per prompt, all alive at once."""

    async def main() -> int:
        async with engine:
            rows = await asyncio.gather(
                *(
                    engine.complete(
                        prompt,
                        Sampling(limit, temperature=TEMPERATURE, top_p=TOP_P, seed=index),
                    )
                    for index, prompt in enumerate(prompts)
                )
            )
        return sum(len(row[0].token_ids) for row in rows)

    return asyncio.run(main())


def rate(run: Callable[[], int]) -> float:
    """Tokens per second of one run."""
    start = time.perf_counter()
    return run() / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    engine = open_engine(ModelSettings(name=options.model))
    assert isinstance(engine, TransformersEngine)
    many = unequal_prompts(engine, COROUTINES)
    few, limit = many[:BATCH], options.max_tokens
    arms: dict[str, Callable[[], int]] = {
        f"generate, {BATCH} as one batch": lambda: generate(engine, few, limit),
        f"engine, {BATCH} concurrent": lambda: serve(engine, few, limit),
        f"generate, {COROUTINES} in batches of {BATCH}": lambda: generate(engine, many, limit),
        f"engine, {COROUTINES} live coroutines": lambda: serve(engine, many, limit),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for name in list(arms)[:2]:
        arms[name]()  # warm up
    for _ in range(options.repetitions):
        for name, run in arms.items():
            rates[name].append(rate(run))
    few_generate, few_engine, many_generate, many_engine = rates.values()
    ratios = {
        f"engine / generate, {BATCH}": [e / g for g, e in zip(few_generate, few_engine)],
        f"engine / generate, {COROUTINES}": [e / g for g, e in zip(many_generate, many_engine)],
        f"engine {COROUTINES} / engine {BATCH}": [m / f for f, m in zip(few_engine, many_engine)],
    }
    if options.json:
        print(json.dumps({"tokens_per_second": rates, "ratios": ratios}, indent=2))
    else:
        lengths = [len(prompt) for prompt in few]
        print(
            f"{options.model}, {torch.get_num_threads()} thread(s), prompts of {min(lengths)} to "
            f"{max(lengths)} tokens, ≤ {limit} new ones, {options.repetitions} repetitions"
        )
        for name, values in (rates | ratios).items():
            middle = statistics.median(values)
            digits = 2 if name in ratios else 0
            print(
                f"{name:40} {middle:10,.{digits}f}"
                f"   ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
                f"{'' if name in ratios else ' tokens/s'}"
            )
    return 0 if min(map(statistics.median, ratios.values())) >= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
