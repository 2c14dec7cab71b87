"""Parts of `benchmarks.gpu` that sample on vLLM: beside a training, and the stages of a run.

The model has the published shape of R1-Distill-Qwen-1.5B, its vocabulary, and random weights, so
that nearly every response takes all the tokens that it may. A tiny one is nano.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu import ERROR, GIB, Part, Row, Scale, free, reason
from benchmarks.gpu_training import config_of, prepared

MODEL = "R1-Distill-Qwen-1.5B"
ENGINES = ("vllm", "transformers")
REPETITIONS = 3


def model_folder(folder: Path, scale: Scale, *, weights: bool) -> str:
    """A folder with configuration and tokenizer, and random weights if asked for; tiny: nano."""
    if scale.tiny:
        return "nano"
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from tests.vocabularies import R1, vocabulary

    words = vocabulary(R1)
    config = config_of(MODEL, scale)
    generation = GenerationConfig(eos_token_id=list(words.end_ids))
    config.dtype = torch.bfloat16
    if weights:
        torch.manual_seed(0)
        with torch.device(scale.device):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        del model
        free(scale.device)
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(folder)
    generation.save_pretrained(folder)
    words.tokenizer.save_pretrained(folder)
    return str(folder)


# Part `dev`.


def dev(case: str, scale: Scale) -> Iterator[Row]:
    """Two steps of SimPO with a dev measurement after each, by either engine in this process.

    The rate counts the tokens of these two measurements and their seconds, in which weights are
    handed over; vLLM's start is not counted. The memory is that of the whole GPU, with vLLM's core.
    """
    from dto.training.fit import fit
    from dto.training.train import json_lines

    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        name = model_folder(Path(folder, "model"), scale, weights=True)
        model = {"name": name, "dtype": "float32" if scale.tiny else "bfloat16"}
        model |= {"engine": "vllm", "context": 512 if scale.tiny else 4096, "slots": 128}
        for engine in ENGINES:
            settings: dict[str, Any] = {"engine": engine, "engine_gpus": []}
            settings |= {"dev_samples": 1 if scale.tiny else 16, "gradient_checkpointing": True}
            try:
                run = prepared(Path(folder, engine), scale, model, 1024, **settings)
                with gpu_memory(scale) as memory:
                    start = time.perf_counter()
                    fit(run.path, run.recipe)
                    seconds = time.perf_counter() - start
            except Exception as error:
                yield {"train.engine": engine, ERROR: reason(error)}
                continue
            efforts = json_lines(run.path / "train" / "effort.jsonl")[1:]
            tokens = sum(effort["usage"].get("generated", 0) for effort in efforts)
            spent = sum(effort["dev_seconds"] for effort in efforts)
            rates[engine] = tokens / spent
            yield {
                "train.engine": engine,
                "tokens a measurement": tokens // len(efforts),
                "seconds a measurement": spent / len(efforts),
                "tokens/s": rates[engine],
                "seconds in all": seconds,
                **({"most memory used, GiB": max(memory) / GIB} if memory else {}),
            }
            free(scale.device)
    if len(rates) == len(ENGINES):
        yield {"train.engine": "vllm ÷ transformers", "tokens/s": rates["vllm"] / rates[ENGINES[1]]}


@contextmanager
def gpu_memory(scale: Scale) -> Iterator[list[int]]:
    """Read four times a second how much of the GPU's memory all processes use."""
    used: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        import torch

        while not ended.wait(0.25):
            left, total = torch.cuda.mem_get_info()
            used.append(total - left)

    thread = threading.Thread(target=watch, daemon=True)
    if scale.device != "cpu":
        thread.start()
    try:
        yield used
    finally:
        ended.set()
        if scale.device != "cpu":
            thread.join()


# Part `vllm`.

WORKS = ("sample", "estimate")
ARMS = ("ours", "seeds", "no seeds")


@dataclass
class Recorded:
    """An engine that notes what it is asked for, and the tokens that it samples."""

    engine: Any
    requests: list[tuple[Any, Any, int]] = field(default_factory=list)
    tokens: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def complete(self, prompt: Any, sampling: Any, n: int = 1) -> Any:
        """Sample as the engine does."""
        self.requests.append((prompt, sampling, n))
        completions = await self.engine.complete(prompt, sampling, n)
        self.tokens += sum(len(each.token_ids) for each in completions)
        return completions


def vllm(case: str, scale: Scale) -> Iterator[Row]:
    """Each work by our stage on our engine, and its very requests by one `LLM.generate`.

    Each has a core of its own, both alive. Repetitions alternate between them, and a ratio is taken
    within one. `no seeds` is `LLM.generate` without a seed for each request: the stages need seeds,
    and vLLM's sampler may pay for them.
    """
    with tempfile.TemporaryDirectory() as folder:
        name = model_folder(Path(folder), scale, weights=False)
        yield from asyncio.run(stages(name, scale))


async def stages(name: str, scale: Scale) -> list[Row]:
    """The rows of both works."""
    from benchmarks.sampling import raw_llm
    from dto.context import Context
    from dto.engines import vllm as engines
    from dto.grading import Grader
    from dto.recipe import Recipe

    small = scale.tiny
    recipe = Recipe.model_validate(
        {
            "name": "gpu",
            "model": {
                "name": name, "engine": "vllm", "context": 512 if small else 4096,
                "dtype": "float32" if small else "bfloat16", "gpu_memory": 0.42, "slots": 32,
            },
            "sample": {"samples": 2, "temperature": 1.0, "top_p": 1.0,
                       "max_tokens": 48 if small else 1024},
            "estimate": {"method": "fixed", "rollouts": 16, "max_tokens": 8 if small else 32},
        }
    )  # fmt: skip
    more = {} if small else {"load_format": "dummy"}
    serving = engines.serving_arguments
    engines.serving_arguments = lambda *args: serving(*args) | more
    rates: dict[str, list[dict[str, float]]] = {work: [] for work in WORKS}
    async with engines.VLLMEngine(recipe.model, name) as engine, Grader() as grader:
        llm = raw_llm(recipe.model, **more)
        jobs = await prepare(Context(recipe, engine, grader), 4 if small else 128)
        asked: dict[str, list[Any]] = {}
        for work, job in jobs.items():  # warms up, and tells what is asked for
            watched = Recorded(engine)
            await job(Context(recipe, watched, grader))  # type: ignore[arg-type]
            asked[work] = watched.requests
            replay(llm, watched.requests, recipe.model.context or 0, seeded=True)
        for repetition in range(1 if small else REPETITIONS):
            for work, job in jobs.items():
                found: dict[str, float] = {}
                for arm in ARMS if repetition % 2 else ARMS[::-1]:
                    start = time.perf_counter()
                    if arm == "ours":
                        watched = Recorded(engine)
                        await job(Context(recipe, watched, grader))  # type: ignore[arg-type]
                        tokens = watched.tokens
                    else:
                        context = recipe.model.context or 0
                        tokens = replay(llm, asked[work], context, seeded=arm == "seeds")
                    found[arm] = tokens / (time.perf_counter() - start)
                rates[work].append(found)
    return [summary(work, rates[work]) for work in WORKS]


async def prepare(ctx: Any, problems: int) -> dict[str, Any]:
    """The two works: what they read is sampled, and cut at every fifth of a response."""
    from dto.concurrency import gather_bounded
    from dto.nano import chain_problems
    from dto.records import Dropped, Segment, Span, Trajectory
    from dto.stages.estimate import estimate
    from dto.stages.sample import sample

    asked = list(chain_problems("test", problems, seed=0))
    sampled = await gather_bounded((sample(problem, ctx) for problem in asked), ctx.recipe.window)
    rows: list[tuple[Any, Trajectory, list[Segment]]] = []
    for problem, (trajectory, *_) in zip(asked, sampled, strict=True):
        if isinstance(trajectory, Dropped) or len(trajectory.token_ids) < 5:
            continue  # random tokens may be EOS, or another model's tags
        length = len(trajectory.token_ids)
        cuts = [length * part // 5 for part in range(5)]
        segments = [
            Segment(
                Segment.make_id(trajectory.id, index), trajectory.id, index, Span(start, end),
                Span(0, 0), end, "", "",
            )
            for index, (start, end) in enumerate(itertools.pairwise(cuts))
        ]  # fmt: skip
        rows.append((problem, trajectory, segments))

    async def responses(context: Any) -> None:
        await gather_bounded((sample(problem, context) for problem in asked), ctx.recipe.window)

    async def estimates(context: Any) -> None:
        await gather_bounded((estimate(*row, context) for row in rows), ctx.recipe.window)

    return {"sample": responses, "estimate": estimates}


def replay(
    llm: Any, requests: Sequence[tuple[Any, Any, int]], context: int, *, seeded: bool
) -> int:
    """The tokens of the same requests in one call of `LLM.generate`."""
    from dto.engines.vllm import sampling_params

    prompts, parameters = [], []
    for prompt, sampling, n in requests:
        for index in range(n):
            limit = min(sampling.max_tokens, context - len(prompt))
            own = sampling_params(sampling, sampling.seed + index, limit)
            own.seed = own.seed if seeded else None
            prompts.append({"prompt_token_ids": list(prompt)})
            parameters.append(own)
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)


def summary(work: str, rates: Sequence[dict[str, float]]) -> Row:
    """Medians of the repetitions, and of ratios within one."""

    def ratio(arm: str) -> str:
        ratios = sorted(each["ours"] / each[arm] for each in rates)
        return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"

    return {
        "work": work,
        "ours, tokens/s": statistics.median(each["ours"] for each in rates),
        "LLM.generate, tokens/s": statistics.median(each["seeds"] for each in rates),
        "ours ÷ LLM.generate": ratio("seeds"),
        "ours ÷ LLM.generate, no seeds": ratio("no seeds"),
    }


PARTS = {"dev": Part((MODEL,), dev), "vllm": Part((MODEL,), vllm)}
