"""What does a decided boundary cost, and does it grow with the trajectory?

    python -m benchmarks.rollouts_prefix [--engine vllm] [--trajectories 40]

Rollouts at a boundary read prompt and thinking so far, which the rollouts before them have read
already. Three arms on the same engine:

    shared    boundary after boundary, as `dto estimate` goes; prefixes come from the cache
    at once   the same, all boundaries of a trajectory at the same time
    alone     no prefix cache, and every rollout reads its prompt for itself

Two tables. Cost: trajectories that the model sampled, the recipe's sequential test at every
boundary; prompt tokens that were sent, those that were computed, tokens that were generated, and
seconds, per decided boundary. Growth: trajectories of 1, 2, 4 and 8 times so many tokens, a
boundary every so many, and as many rollouts at each; computed prompt tokens, and their number per
token of the trajectory, which is constant where the cost is linear in new tokens and grows where it
is prefix times rollouts. Longer trajectories than the model writes are several in a row.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from benchmarks.overlap import emptied, opened
from dto.concurrency import gather_bounded
from dto.context import Context
from dto.engines import open_engine
from dto.grading import Grader
from dto.nano import chain_problems
from dto.protocols import Engine
from dto.recipe import Recipe
from dto.records import Dropped, Problem, Segment, Trajectory
from dto.rollouts import roll_out
from dto.stages.estimate import estimate
from dto.stages.sample import sample
from dto.usage import metered
from tests.segmenting import segment

ARMS = ("shared", "at once", "alone")
LENGTHS = (1, 2, 4, 8)
SPACING = 24  # tokens between boundaries, growth
WIDTH = 16  # trajectories under way
CONTEXT = 1024

Case = tuple[Problem, Trajectory, list[Segment]]


class Cost(NamedTuple):
    """Of one run of an arm."""

    decided: int
    sent: int
    computed: int
    generated: int
    seconds: float


def recipe(options: argparse.Namespace, alone: bool, **settings: Any) -> Recipe:
    model = {
        "name": options.model,
        "family": options.family,
        "engine": options.engine,
        "context": CONTEXT,
    }
    if alone and options.engine == "transformers":
        model["cache_bytes"] = 1
    return Recipe.model_validate(
        {
            "name": "prefix",
            "model": model,
            "sample": {"samples": 1, "temperature": 1.0, "top_p": 1.0, "max_tokens": 512},
            "estimate": settings,
        }
    )


@asynccontextmanager
async def serving(chosen: Recipe, alone: bool) -> AsyncIterator[Engine]:
    """The recipe's engine, to be emptied before use; `alone`: one that shares nothing."""
    if not alone:
        engine = open_engine(chosen.model)
        async with opened(engine):
            yield engine
    elif chosen.model.engine == "vllm":
        from dto.engines import vllm

        def uncached(*arguments: Any) -> dict[str, Any]:
            return shared(*arguments) | {"enable_prefix_caching": False}

        shared = vllm.serving_arguments
        with patch("dto.engines.vllm.serving_arguments", uncached):
            engine = open_engine(chosen.model)
            async with opened(engine):
                yield engine
    else:
        from dto.engines.batch import Batch
        from dto.engines.sampling import Sample

        class ReadAlone(Batch):
            def admit(self, samples: Sequence[Sample]) -> list[Sample]:
                return [ended for one in samples for ended in super(ReadAlone, self).admit([one])]

        with patch("dto.engines.transformers.Batch", ReadAlone):
            yield open_engine(chosen.model)


async def sampled(ctx: Context, count: int) -> list[Case]:
    """The first trajectories of the model that have boundaries."""
    cases: list[Case] = []
    problems = chain_problems("train", count + count // 4 + 2, 0)
    async with emptied(ctx.engine):
        rows = await gather_bounded((sample(problem, ctx) for problem in problems), WIDTH)
    for problem, (row,) in zip(problems, rows, strict=True):
        if isinstance(row, Trajectory):
            segments = segment(row, ctx.tokenizer, ctx.recipe.segment)
            if not isinstance(segments, Dropped):
                cases.append((problem, row, segments))
    return cases[:count]


async def spent(ctx: Context, jobs: Sequence[Awaitable[int]]) -> Cost:
    """Run jobs, each of which says how many boundaries it decided, from an empty prefix cache."""
    async with emptied(ctx.engine):
        with metered() as usage:
            start = time.perf_counter()
            decided = sum(await gather_bounded(jobs, WIDTH))
            seconds = time.perf_counter() - start
    return Cost(decided, usage.prompt, usage.prompt - usage.cached, usage.generated, seconds)


async def decide(case: Case, ctx: Context, at_once: bool) -> int:
    """The sequential test at every boundary of a trajectory."""
    problem, row, segments = case
    groups = [segments] if at_once else [[part] for part in segments]
    decided = 0
    for group in groups:
        found = await estimate(problem, row, group, ctx)
        assert not isinstance(found, Dropped)
        decided += sum(each.decision != "undecided" for each in found)
    return decided


async def roll(
    problem: Problem, prompt: Sequence[int], thinking: Sequence[int], ctx: Context, at_once: bool
) -> int:
    """The recipe's number of rollouts at evenly spaced boundaries."""
    cuts = range(SPACING, len(thinking) + 1, SPACING)
    count = ctx.recipe.estimate.rollouts

    async def one(cut: int) -> int:
        seed = ctx.seed(problem.id, "growth", cut)
        await roll_out((*prompt, *thinking[:cut]), problem, ctx, seed, count)
        return 1

    return sum(await gather_bounded(map(one, cuts), len(cuts) if at_once else 1))


async def measure(options: argparse.Namespace) -> None:
    costs: dict[str, Cost] = {}
    growth: dict[tuple[str, int], Cost] = {}
    settings = {
        "cost": {"first_pass_only": False},
        "growth": {"method": "fixed", "rollouts": options.rollouts, "max_tokens": 8},
    }
    base = options.tokens // SPACING * SPACING
    async with Grader() as grader:
        cases: list[Case] = []
        for arm in ARMS:
            alone, at_once = arm == "alone", arm == "at once"
            recipes = {name: recipe(options, alone, **each) for name, each in settings.items()}
            async with serving(recipes["cost"], alone) as engine:
                cost, grown = (Context(each, engine, grader) for each in recipes.values())
                cases = cases or await sampled(cost, options.trajectories)
                jobs = [decide(case, cost, at_once) for case in cases]
                costs[arm] = await spent(cost, jobs)
                for times in LENGTHS:
                    jobs = []
                    for index in range(options.growth):
                        joined = [i for case in cases[index:] for i in case[1].token_ids[:-1]]
                        problem, row, _ = cases[index]
                        thinking = joined[: base * times]
                        jobs.append(roll(problem, row.prompt_ids, thinking, grown, at_once))
                    growth[arm, times] = await spent(grown, jobs)
    report(options, base, costs, growth)


def report(
    options: argparse.Namespace,
    base: int,
    costs: dict[str, Cost],
    growth: dict[tuple[str, int], Cost],
) -> None:
    """Print both tables."""
    print(f"{options.engine}, {options.trajectories} trajectories; per decided boundary")
    print(f"{'':10}{'decided':>9}{'sent':>10}{'computed':>10}{'generated':>11}{'ms':>8}")
    for arm, cost in costs.items():
        sent, computed, generated = (n / cost.decided for n in cost[1:4])
        ms = 1000 * cost.seconds / cost.decided
        print(f"{arm:10}{cost.decided:9}{sent:10.0f}{computed:10.0f}{generated:11.1f}{ms:8.1f}")
    for arm in ARMS[:-1]:
        one, two = costs["alone"], costs[arm]
        computed, seconds = one.computed / two.computed, one.seconds / two.seconds
        print(f"alone / {arm}: computed {computed:.1f}, seconds {seconds:.2f}")
    print(
        f"\ngrowth, {options.growth} trajectories, a boundary every {SPACING} tokens, "
        f"{options.rollouts} rollouts at each; computed prompt tokens (per token), seconds"
    )
    print(f"{'tokens':10}" + "".join(f"{arm:>30}" for arm in ARMS))
    for times in LENGTHS:
        cells = []
        for arm in ARMS:
            cost = growth[arm, times]
            rate = cost.computed / (options.growth * base * times)
            cells.append(f"{cost.computed:,} ({rate:.1f}), {cost.seconds:.2f} s")
        print(f"{base * times:<10}" + "".join(f"{cell:>30}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--family", default="nano", help="folder of prompts/")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--trajectories", type=int, default=40)
    parser.add_argument("--growth", type=int, default=4, help="trajectories of the second table")
    parser.add_argument("--rollouts", type=int, default=16, help="at each boundary of that one")
    parser.add_argument("--tokens", type=int, default=96, help="of its shortest trajectory")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
