"""Does a question wait for its trials? Latency of the forms of early exit, side by side.

    python -m benchmarks.overlap [--engine vllm] [--concurrency 1 64] [--repetitions 3]

The same questions in every arm, each one timed from its prompt to its last token:

    plain        no exit
    sequential   the main path stops at each transition and waits for the trial
    overlapped   the main path is a stream that never waits, trials are requests of their own
    branches     main path and trials are one sequence, decoded together (transformers only; one
                 response at a time, so above concurrency 1 only with `--all-forms`)

for three exits: `paragraph` (a trial after closing, above 0.9) and `cue` (inside, above 0.95) leave
early; `shadow` is `paragraph` without ever leaving, so that every trial is one that loses.

So many questions are under way at once, each next one starts when one ends. The arms alternate,
from repetition to repetition in another order, each from an empty prefix cache, and the questions
are other ones in each repetition. Shown are median and range over the repetitions; ratios are taken
within one repetition. Tokens are per question: those of the row, and those that were generated
beyond it and thrown away (on vLLM an upper bound). Trials are graded while the clock runs, final
answers are not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import numpy as np

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.engines import open_engine
from dto.exits import answer
from dto.grading import Grader
from dto.nano import chain_problems
from dto.protocols import Engine, Sampling
from dto.recipe import Recipe
from dto.records import Problem
from dto.settings import ExitPolicy, open_policy
from dto.trajectories import prompt_ids
from dto.usage import metered

CONTEXT = 1024
WARM_UP = 2  # questions
PARAGRAPH = {"policy": "deer", "monitor": "paragraph", "inducer": "closed", "threshold": 0.9}
EXITS: dict[str, dict[str, Any]] = {
    "paragraph": PARAGRAPH,
    "cue": {"policy": "deer", "monitor": "cue", "inducer": "inside", "threshold": 0.95},
    "shadow": PARAGRAPH | {"shadow": True},
}
FORMS: dict[str, Any] = {"sequential": False, "overlapped": True, "branches": "branches"}


class Served(NamedTuple):
    """One run of an arm: percentiles of seconds per question, and tokens per question."""

    p50: float
    p95: float
    tokens: float
    wasted: float


@asynccontextmanager
async def opened(engine: Engine) -> AsyncIterator[None]:
    """Enter an engine that is entered once; one of transformers is entered for each run."""
    async with AsyncExitStack() as stack:
        if not hasattr(engine, "hf_model"):
            await stack.enter_async_context(engine)
        yield


@asynccontextmanager
async def emptied(engine: Any) -> AsyncIterator[None]:
    """An engine with an empty prefix cache: that of transformers lives while it is entered."""
    if hasattr(engine, "hf_model"):
        async with engine:
            yield
    else:
        await engine._llm.reset_prefix_cache()
        yield


async def serve(
    exit: ExitPolicy, problems: Sequence[Problem], width: int, ctx: Context, temperature: float
) -> Served:
    """Answer all questions, `width` of them at a time."""
    seconds: list[float] = []

    async def one(problem: Problem) -> int:
        prompt = prompt_ids(problem.question, ctx.tokenizer, ctx.recipe.model)
        seed = ctx.seed(problem.id, "benchmark")
        sampling = Sampling(CONTEXT - len(prompt), temperature=temperature, top_p=1.0, seed=seed)
        start = time.perf_counter()
        response = await answer(problem, prompt, exit, ctx, sampling)
        seconds.append(time.perf_counter() - start)
        if response.exit_reason == "failed":
            raise RuntimeError(f"{exit.name}: {response.error}")
        return len(response.thinking_ids) + response.answer_tokens + response.trial_tokens

    async with emptied(ctx.engine):
        with metered() as usage:
            tokens = sum(await gather_bounded(map(one, problems), width))
    p50, p95 = np.percentile(seconds, [50, 95])
    count = len(problems)
    return Served(float(p50), float(p95), tokens / count, (usage.generated - tokens) / count)


def arms(names: Sequence[str], engine: str) -> dict[str, ExitPolicy]:
    """The exits to run, by name."""
    made = {"plain": ExitPolicy(name="plain")}
    for name in names:
        for form, overlap in FORMS.items():
            if form != "branches" or engine == "transformers":
                settings = {"name": form, "overlap": overlap} | EXITS[name]
                made[f"{name} {form}"] = open_policy(settings)
    return made


async def measure(options: argparse.Namespace) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "overlap",
            "model": {
                "name": options.model,
                "family": options.family,
                "engine": options.engine,
                "context": CONTEXT,
            },
        }
    )
    exits = arms(options.exits, options.engine)
    runs: dict[tuple[int, str], list[Served]] = {}
    engine = open_engine(recipe.model)
    async with opened(engine), Grader() as grader:
        ctx = Context(recipe, engine, grader)
        for exit in exits.values():
            await serve(exit, chain_problems("dev", WARM_UP, 0), WARM_UP, ctx, options.temperature)
        for repetition in range(options.repetitions):
            shift = repetition % len(exits)
            order = [*exits][shift:] + [*exits][:shift]
            for width in options.concurrency:
                count = options.questions if width == 1 else 2 * width
                problems = chain_problems("test", count, repetition)
                for arm in order:
                    if width > 1 and exits[arm].overlap == "branches" and not options.all_forms:
                        continue
                    made = await serve(exits[arm], problems, width, ctx, options.temperature)
                    runs.setdefault((width, arm), []).append(made)
    for width in options.concurrency:
        report(width, {arm: runs[width, arm] for arm in exits if (width, arm) in runs})


def report(width: int, made: dict[str, list[Served]]) -> None:
    """Print one concurrency's tables."""
    print(f"\nconcurrency {width}")
    print(f"{'':24}{'p50, ms':>20}{'p95, ms':>20}{'tokens':>8}{'wasted':>8}")
    for arm, served in made.items():
        columns = [spread([1000 * s[i] for s in served], 0) for i in (0, 1)]
        tokens, wasted = (statistics.fmean(s[i] for s in served) for i in (2, 3))
        print(f"{arm:24}{columns[0]:>20}{columns[1]:>20}{tokens:8.0f}{wasted:8.1f}")
    print(f"{'':46}{'p50':>20}{'p95':>20}")
    for arm in made:
        name, _, form = arm.partition(" ")
        against = {"sequential": ["plain"], "": []}.get(form, ["plain", f"{name} sequential"])
        for other in against:
            pairs = list(zip(made[other], made[arm], strict=True))
            ratios = [spread([one[i] / two[i] for one, two in pairs], 2) for i in (0, 1)]
            print(f"{other + ' / ' + arm:46}{ratios[0]:>20}{ratios[1]:>20}")


def spread(values: Sequence[float], digits: int) -> str:
    """Median and range."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--family", default="nano", help="folder of prompts/")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--exits", nargs="+", choices=EXITS, default=["paragraph", "shadow"])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--questions", type=int, default=24, help="at concurrency 1")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--all-forms", action="store_true")
    parser.add_argument("--repetitions", type=int, default=3)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
