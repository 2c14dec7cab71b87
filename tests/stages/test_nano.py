"""The stages on the embedded model and the real engine."""

import asyncio

import pytest

from dto.context import Context
from dto.engines import open_engine
from dto.grading import Grader
from dto.nano import chain_problems
from dto.prompts import render
from dto.recipe import Recipe, resolve
from dto.records import Dropped, OptimizedTrajectory, PreferencePair
from dto.stages.estimate import estimate
from dto.stages.optimize import optimize
from dto.stages.pair import preference_pairs
from dto.stages.prune import prune
from dto.stages.sample import sample
from tests.segmenting import segment

pytestmark = pytest.mark.slow

RECIPE = Recipe.model_validate(
    {
        "name": "nano",
        "model": {"name": "nano", "family": "nano", "context": 1024},
        "sample": {"samples": 2, "temperature": 1.0, "top_p": 1.0, "max_tokens": 320},
        "estimate": {"threshold": 0.5, "cap": 16, "error": 0.1},
        "prune": {"rollouts": 4},
        "optimize": {"max_tokens": 64},
    }
)


async def walk(problem, ctx):
    """All stages of one problem."""
    rows = {"sample": await sample(problem, ctx), "segment": [], "estimate": [], "version": []}
    for trajectory in rows["sample"]:
        segments = segment(trajectory, ctx.tokenizer, ctx.recipe.segment)
        if isinstance(segments, Dropped):
            continue
        estimates = await estimate(problem, trajectory, segments, ctx)
        version = await optimize(problem, trajectory, segments, estimates, ctx)
        rows["segment"].append(segments)
        rows["estimate"] += estimates
        if isinstance(version, OptimizedTrajectory):
            rows["version"].append(await prune(problem, trajectory, segments, version, ctx))
    rows["pair"] = preference_pairs(
        problem, rows["sample"], rows["version"], ctx.tokenizer, ctx.recipe.pair
    )
    return rows


async def serve(work):
    async with open_engine(RECIPE.model) as engine, Grader(workers=1) as grader:
        return await work(Context(RECIPE, engine, grader))


@pytest.fixture(scope="module")
def problems():
    return chain_problems("train", 6, 3)


@pytest.fixture(scope="module")
def together(problems):
    """The rows of each problem, all computed at once."""

    async def work(ctx):
        return await asyncio.gather(*(walk(problem, ctx) for problem in problems))

    return asyncio.run(serve(work))


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve("nano"))


def test_rows_do_not_depend_on_what_runs_beside_them(problems, together):
    async def work(ctx):
        return [await walk(problem, ctx) for problem in problems[::-1]]

    alone = asyncio.run(serve(work))[::-1]
    assert repr(alone) == repr(together)  # nan equals nan


def test_the_loop_yields_every_kind_of_row(together):
    assert sum(len(rows["estimate"]) for rows in together) >= len(together)
    assert any(rows["version"] for rows in together)
    assert any(isinstance(row, PreferencePair) for rows in together for row in rows["pair"])


def test_optimized_is_a_prefix_of_the_sample_then_finalize_then_the_models_own(together, tokenizer):
    finalize = tokenizer.encode(render("finalize", "nano"), add_special_tokens=False)
    for rows in together:
        trajectories = {row.id: row for row in rows["sample"]}
        segments = {parts[0].trajectory_id: parts for parts in rows["segment"]}
        for version in rows["version"]:
            parts = segments[version.id]
            sampled = trajectories[version.id].token_ids
            kept = [token for i in version.kept[:-1] for token in sampled[slice(*parts[i].tokens)]]
            last = parts[version.exit]
            head = [*kept, *sampled[last.tokens.start : last.exit], *finalize]
            assert list(version.token_ids[: len(head)]) == head
            assert tokenizer.decode(version.token_ids).startswith(version.text)
            assert version.text.count("</think>") == 1 and "\\boxed" in version.text
            assert version.tokens_after == len(version.token_ids)
            assert 0 < version.pass_rate <= 1
            assert version.verified_p > 0.5 or version.kept == tuple(range(version.exit + 1))


def test_estimates_stop_at_their_first_pass(together):
    for rows in together:
        by_trajectory = {}
        for row in rows["estimate"]:
            by_trajectory.setdefault(row.trajectory_id, []).append(row)
        for estimates in by_trajectory.values():
            assert [row.boundary for row in estimates] == list(range(len(estimates)))
            assert all(row.decision != "above" for row in estimates[:-1])
            assert all(0 < row.rollouts <= 16 and row.tokens >= row.rollouts for row in estimates)
