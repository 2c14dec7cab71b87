"""Are exits found with fewer rollouts, and are they the right ones?

    python benchmarks/rollouts.py [--reference FILE] [--trajectories 200] [--model nano]

Trajectories of the embedded model, one a problem, at T = 1.0. The truth p_ref of every boundary is
the success rate of 1,024 rollouts of its own (ten minutes of a core for 200 trajectories); it is
appended to the reference file, keyed by weights, sampling and token ids, and not computed again.
The estimators are then run on fresh rollouts, with seeds of their own, as `dto run` runs them:

    sequential    the recipe's default, stopping at its first pass
    fixed 16      M = 16 at each boundary up to the first pass (2505.21765 stops there too)
    fixed 16 all  M = 16 at every boundary
    fixed 64 (a, b)  two independent sets of M = 64, stopping at their first pass

An exit is early-wrong where p_ref < T - 0.10, and late-wrong where an earlier boundary (any, where
no exit was found) has p_ref > T + 0.10; both are shares of all trajectories with a boundary, with
Clopper-Pearson intervals. Ratios of rollouts come with bootstrap intervals over trajectories. Exit
code 1 when the sequential test misses a requirement: both shares at most 5 %, and at most half of
the rollouts of fixed 16.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.engines import open_engine
from dto.grading import Grader
from dto.nano import chain_problems
from dto.recipe import Recipe, resolve
from dto.records import Dropped, ExitEstimate, Problem, Segment, Trajectory, content_id
from dto.rollouts import roll_out
from dto.sequential import clopper_pearson
from dto.stages.estimate import estimate
from dto.stages.sample import sample
from dto.statistics import bootstrap
from tests.segmenting import segment

ZONE = 0.10
REFERENCE_ROLLOUTS = 1024
WIDTH = 64  # trajectories under way
REQUIRED_SHARE = 0.05
REQUIRED_RATIO = 0.50


class Case(NamedTuple):
    """A trajectory with its boundaries and their true success rates."""

    problem: Problem
    trajectory: Trajectory
    segments: list[Segment]
    rates: list[float]


class Found(NamedTuple):
    """What an estimator made of a trajectory: boundary of its exit, or None, and what it cost."""

    exit: int | None
    rollouts: int


def recipe(model: str, seed: int, **settings: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "rollouts",
            "seed": seed,
            "model": {"name": model, "family": "nano"},
            "sample": {"samples": 1, "temperature": 1.0, "top_p": 1.0, "max_tokens": 512},
            "estimate": settings,
        }
    )


async def trajectories(ctx: Context, count: int) -> list[tuple[Problem, Trajectory, list[Segment]]]:
    """The first `count` samples that have a boundary."""
    problems = chain_problems("train", count + count // 4, 0)
    rows = await gather_bounded((sample(problem, ctx) for problem in problems), WIDTH)
    found = []
    for problem, (row,) in zip(problems, rows, strict=True):
        if isinstance(row, Trajectory):
            segments = segment(row, ctx.tokenizer, ctx.recipe.segment)
            if not isinstance(segments, Dropped):
                found.append((problem, row, segments))
    return found[:count]


async def with_reference(
    found: Sequence[tuple[Problem, Trajectory, list[Segment]]], ctx: Context, file: Path
) -> list[Case]:
    """p_ref of every boundary, from the file as far as it goes."""
    weights = sha256((Path(resolve(ctx.recipe.model.name)) / "model.safetensors").read_bytes())
    salt = f"{weights.hexdigest()} {ctx.recipe.sample} {ctx.recipe.estimate.max_tokens}"
    known: dict[str, float] = {}
    if file.exists():
        known = dict(json.loads(line) for line in file.read_text().splitlines())

    async def rate(problem: Problem, row: Trajectory, boundary: Segment) -> float:
        prefix = row.prompt_ids + row.token_ids[: boundary.exit]
        key = content_id(salt, str(prefix))
        if key not in known:
            seed = ctx.seed(boundary.id, "reference")
            known[key] = (await roll_out(prefix, problem, ctx, seed, REFERENCE_ROLLOUTS)).p
            with file.open("a") as lines:
                lines.write(json.dumps([key, known[key]]) + "\n")
        return known[key]

    boundaries = [(problem, row, part) for problem, row, parts in found for part in parts]
    flat = iter(await gather_bounded(rate(*boundary) for boundary in boundaries))
    return [Case(*each, [next(flat) for _ in each[2]]) for each in found]


async def run(cases: Sequence[Case], ctx: Context) -> list[list[ExitEstimate]]:
    rows = await gather_bounded((estimate(*case[:3], ctx) for case in cases), WIDTH)
    return [[] if isinstance(row, Dropped) else row for row in rows]


def found(estimates: Sequence[ExitEstimate], scan: bool = True) -> Found:
    """Exit and cost; with `scan` no boundary after the exit is paid for."""
    exit = next((row.boundary for row in estimates if row.decision == "above"), None)
    paid = estimates if exit is None or not scan else estimates[: exit + 1]
    return Found(exit, sum(row.rollouts for row in paid))


def early_wrong(case: Case, exit: int | None, threshold: float) -> bool:
    return exit is not None and case.rates[exit] < threshold - ZONE


def late_wrong(case: Case, exit: int | None, threshold: float) -> bool:
    return any(rate > threshold + ZONE for rate in case.rates[:exit])


def share(flags: Sequence[bool]) -> str:
    low, high = clopper_pearson(sum(flags), len(flags))
    return f"{sum(flags) / len(flags):6.1%} [{low:.1%}, {high:.1%}]"


def ratio(ours: Sequence[Found], theirs: Sequence[Found]) -> str:
    spent_P2 = np.array(
        [[a.rollouts, b.rollouts] for a, b in zip(ours, theirs, strict=True)], float
    )
    low, high = bootstrap(spent_P2, lambda totals_R2: totals_R2[:, 0] / totals_R2[:, 1])
    ours_total, theirs_total = spent_P2.sum(0)
    return f"{ours_total / theirs_total:.3f} [{low:.3f}, {high:.3f}]"


async def measure(model: str, count: int, reference: Path) -> bool:
    start = monotonic()

    def say(text: str) -> None:
        print(f"{monotonic() - start:6.0f} s  {text}", file=sys.stderr)

    base = recipe(model, 0)
    async with open_engine(base.model) as engine, Grader() as grader:
        picked = await trajectories(Context(base, engine, grader), count)
        say(f"{len(picked)} trajectories, {sum(len(row[2]) for row in picked)} boundaries")
        cases = await with_reference(picked, Context(base, engine, grader), reference)
        say("reference done")
        everywhere = {"method": "fixed", "rollouts": 16, "first_pass_only": False}
        settings = {
            "sequential": recipe(model, 1),
            "fixed 16": recipe(model, 2, **everywhere),
            "fixed 64 a": recipe(model, 3, method="fixed", rollouts=64),
            "fixed 64 b": recipe(model, 4, method="fixed", rollouts=64),
        }
        estimates = {}
        for name, chosen in settings.items():
            estimates[name] = await run(cases, Context(chosen, engine, grader))
            say(f"{name} done")

    threshold = base.estimate.threshold
    results = {name: [found(row) for row in rows] for name, rows in estimates.items()}
    results["fixed 16 all"] = [found(row, scan=False) for row in estimates["fixed 16"]]
    decisions = [row.decision for rows in estimates["sequential"] for row in rows]
    boundaries = sum(len(case.rates) for case in cases)
    print(f"{len(cases)} trajectories, {boundaries} boundaries, T = {threshold}")
    print(f"{'':14}{'exits':>6}{'rollouts':>10}  {'early-wrong':24}{'late-wrong':24}")
    for name, rows in results.items():
        early = [
            early_wrong(case, row.exit, threshold) for case, row in zip(cases, rows, strict=True)
        ]
        late = [
            late_wrong(case, row.exit, threshold) for case, row in zip(cases, rows, strict=True)
        ]
        exits = sum(row.exit is not None for row in rows)
        total = sum(row.rollouts for row in rows)
        print(f"{name:14}{exits:6}{total:10,}  {share(early):24}{share(late):24}")
        if name == "sequential":
            wrong = max(sum(early), sum(late)) / len(cases)
    ours = results["sequential"]
    print("undecided boundaries, sequential:", share([row == "undecided" for row in decisions]))
    print("rollouts, sequential / fixed 16:    ", ratio(ours, results["fixed 16"]))
    print("rollouts, sequential / fixed 16 all:", ratio(ours, results["fixed 16 all"]))
    both = zip(results["fixed 64 a"], results["fixed 64 b"], strict=True)
    print("M = 64 agrees with itself:          ", share([a.exit == b.exit for a, b in both]))
    cost = sum(row.rollouts for row in ours) / sum(row.rollouts for row in results["fixed 16"])
    met = wrong <= REQUIRED_SHARE and cost <= REQUIRED_RATIO
    print("requirements", "met" if met else "MISSED")
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reference", type=Path, default=Path("rollouts-reference.jsonl"))
    parser.add_argument("--trajectories", type=int, default=200)
    parser.add_argument("--model", default="nano")
    arguments = parser.parse_args()
    work = measure(arguments.model, arguments.trajectories, arguments.reference)
    sys.exit(0 if asyncio.run(work) else 1)


if __name__ == "__main__":
    main()
