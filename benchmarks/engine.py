"""Throughput of the transformers engine against `model.generate`, in one process.

    python benchmarks/engine.py [--json] [--cpu-time] [--model nano] [--repetitions 3]

The same prompts of unequal length, the same sampling settings and token limit. `generate` runs 64
of them as one padded batch and computes every row until the longest ends; counted are the useful
tokens, up to each row's end of sequence. The engine serves the same 64, and then 1,000, each in a
coroutine of its own, all alive at once. Repetitions alternate between the arms; each figure is a
median with its range, each ratio is taken within one repetition. Exit code 1 when a median ratio is
below 1. On a machine that others use too, `--cpu-time` counts seconds of this process alone.
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
from dto.engines.transformers import TransformersEngine
from dto.nano import chain_problems
from dto.prompts import render
from dto.protocols import Sampling
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
    """Useful tokens of `model.generate`, all prompts as one left-padded batch."""
    pad = engine.tokenizer.pad_token_id
    width = max(map(len, prompts))
    output = engine.hf_model.generate(
        torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
        max_new_tokens=limit,
        do_sample=True,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        top_k=0,
        pad_token_id=pad,
    )
    return useful(output[:, width:].tolist(), engine.end_ids)


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    engine = open_engine(ModelSettings(name=options.model))
    assert isinstance(engine, TransformersEngine)
    many = unequal_prompts(engine, COROUTINES)
    few, limit = many[:BATCH], options.max_tokens
    arms: dict[str, Callable[[int], int]] = {
        f"generate, {BATCH} as one batch": lambda limit: generate(engine, few, limit),
        f"engine, {BATCH} coroutines": lambda limit: serve(engine, few, limit),
        f"engine, {COROUTINES:,} coroutines": lambda limit: serve(engine, many, limit),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for run in arms.values():
        run(4)  # warm up
    for _ in range(options.repetitions):
        for name, run in arms.items():
            start = clock()
            tokens = run(limit)
            rates[name].append(tokens / (clock() - start))
    base, some, every = rates.values()
    ratios = {
        f"engine {BATCH} / generate": [e / g for e, g in zip(some, base, strict=True)],
        f"engine {COROUTINES:,} / generate": [e / g for e, g in zip(every, base, strict=True)],
        f"engine {COROUTINES:,} / engine {BATCH}": [
            e / s for e, s in zip(every, some, strict=True)
        ],
    }
    if options.json:
        print(json.dumps({"tokens_per_second": rates, "ratios": ratios}, indent=2))
    else:
        lengths = [len(prompt) for prompt in few]
        print(
            f"{options.model}, {torch.get_num_threads()} thread(s), prompts of {min(lengths)} to "
            f"{max(lengths)} tokens, at most {limit} new ones, {options.repetitions} repetitions, "
            f"{'CPU' if options.cpu_time else 'wall'} seconds"
        )
        for name, values in (rates | ratios).items():
            digits, unit = (2, "") if name in ratios else (0, " tokens/s")
            print(
                f"{name:32}{statistics.median(values):10,.{digits}f}"
                f"   ({min(values):,.{digits}f} to {max(values):,.{digits}f}){unit}"
            )
    return 0 if min(map(statistics.median, ratios.values())) >= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
