"""Sampling and rollouts on the vllm engine against raw `LLM.generate`, each with its own core.

    python -m benchmarks.sampling [--json] [--cpu-time] [--repetitions 5] [--problems 96]

Same model, engine arguments, prompts and seeds: `sample` is 2 responses to each question,
`rollouts` are 8 short answers after the first half of each response. `generate` gets all prompts in
one call and decodes no text; the engine gets each from a coroutine of its own, all alive at once.
The raw core is a child process that holds the model, as ours is. Repetitions alternate between the
two, and which comes first alternates as well; a ratio is taken within one repetition, figures are
medians with their range. On a machine that others use too, `--cpu-time` counts CPU seconds of this
process and the core in place of wall seconds. Exit code 1 when a median ratio is below 0.9.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dto.engines.vllm import VLLMEngine, environment, model_arguments, serving_arguments
from dto.nano import chain_problems
from dto.protocols import Sampling
from dto.recipe import ModelSettings, resolve
from dto.trajectories import prompt_ids

SETTINGS = ModelSettings(engine="vllm", context=1024)
SAMPLES, ROLLOUTS = 2, 8
SAMPLE = Sampling(max_tokens=320, temperature=1.0, top_p=1.0)
ROLLOUT = Sampling(max_tokens=24, temperature=1.0, top_p=1.0)
REQUIRED = 0.9

Prompts = list[tuple[int, ...]]


def raw_llm(settings: ModelSettings = SETTINGS, **more: Any) -> Any:
    """`LLM` with the arguments of our engine, and others."""
    from vllm import LLM
    from vllm.platforms import current_platform
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    on_cpu = current_platform.is_cpu()
    options = model_arguments(settings, resolve(settings.name), on_cpu)
    options |= serving_arguments(settings, on_cpu, settings.context or 0) | more
    if not on_cpu:
        return LLM(**options)
    with environment(on_cpu):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # a core of its own, the model in it
        return LLM(**options, distributed_executor_backend=UniProcExecutor)


def generate(llm: Any, prompts: Prompts, sampling: Sampling, n: int) -> int:
    """Tokens of one call."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            n=n,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=index * n,
            detokenize=False,
        )
        for index in range(len(prompts))
    ]
    asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    outputs = llm.generate(asked, params, use_tqdm=False)
    return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)


async def serve(engine: VLLMEngine, prompts: Prompts, sampling: Sampling, n: int) -> int:
    """Tokens of as many coroutines as there are prompts."""
    done = await asyncio.gather(
        *(
            engine.complete(prompt, replace(sampling, seed=index * n), n)
            for index, prompt in enumerate(prompts)
        )
    )
    return sum(len(sample.token_ids) for samples in done for sample in samples)


def wall() -> float:
    """Seconds on the clock."""
    return time.perf_counter()


def cpu() -> float:
    """CPU seconds of this process and its children; the core that is not asked sleeps."""
    import psutil

    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


async def measure(
    problems: int, repetitions: int, clock: Callable[[], float]
) -> dict[str, list[list[float]]]:
    """For each work the tokens per second of raw and ours, a pair for each repetition."""
    rates: dict[str, list[list[float]]] = {"sample": [], "rollouts": []}
    async with VLLMEngine(SETTINGS, "nano") as engine:
        llm = raw_llm()
        assert engine.tokenizer is not None
        prompts = [
            prompt_ids(problem.question, engine.tokenizer, SETTINGS)
            for problem in chain_problems("test", problems, seed=0)
        ]
        responses = await asyncio.gather(*(engine.complete(p, SAMPLE) for p in prompts))
        halves = [
            prompt + response.token_ids[: len(response.token_ids) // 2]
            for prompt, (response,) in zip(prompts, responses, strict=True)
        ]
        works = {"sample": (prompts, SAMPLE, SAMPLES), "rollouts": (halves, ROLLOUT, ROLLOUTS)}
        for repetition in range(-1, repetitions):  # the first warms up
            for name, work in works.items():
                pair = [0.0, 0.0]
                for arm in (0, 1) if repetition % 2 else (1, 0):
                    start = clock()
                    tokens = await serve(engine, *work) if arm else generate(llm, *work)
                    pair[arm] = tokens / (clock() - start)
                if repetition >= 0:
                    rates[name].append(pair)
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--problems", type=int, default=96)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rates = asyncio.run(
        measure(options.problems, options.repetitions, cpu if options.cpu_time else wall)
    )
    if options.json:
        print(json.dumps(rates))
    met = True
    for name, pairs in rates.items():
        ratios = [ours / raw for raw, ours in pairs]
        met &= statistics.median(ratios) >= REQUIRED
        if not options.json:
            for label, values, digits in (
                ("LLM.generate, tokens/s", [raw for raw, _ in pairs], 0),
                ("engine, tokens/s", [ours for _, ours in pairs], 0),
                ("ratio", ratios, 2),
            ):
                print(
                    f"{name:9}{label:24}{statistics.median(values):10,.{digits}f}"
                    f"   ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
                )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
