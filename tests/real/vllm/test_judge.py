"""A real model judges under the JSON schema, and prunes are verified on another.

The thinking is what the one that overthinks was taught, so that there are as many patterns on every
machine; rollouts and conclusions are its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-real")

from benchmarks.smollm2 import BASE, OVERTHINKS
from benchmarks.word_problems import problems as word_problems
from benchmarks.word_problems import response
from dto.context import Context
from dto.engines import open_engine
from dto.grading import Grader
from dto.protocols import Completion
from dto.recipe import Recipe
from dto.records import STAYS, Dropped, Problem, Segment, Trajectory, Verdict
from dto.stages.optimize import finalize
from dto.stages.prune import prune
from dto.trajectories import make_trajectory, prompt_ids
from dto.usage import metered
from tests.real.conftest import folder
from tests.segmenting import segment

pytestmark = pytest.mark.timeout(900)
RESPONSES, LEAST = 6, 6


def settings(model: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "judged",
            "model": {"name": str(model), "dtype": "bfloat16", "context": 512, "slots": 32},
            "judge": {
                "name": str(folder(BASE)), "engine": "vllm", "dtype": "float32", "context": 1536,
                "slots": 16,
            },
            "sample": {"temperature": 0.8, "top_p": 1.0},
            "segment": {"granularity": "cue"},
            "estimate": {
                "threshold": 0.5, "margin": 0.25, "error": 0.1, "cap": 8, "max_tokens": 12,
            },
            "optimize": {"finalizations": 2, "max_tokens": 32},
            "prune": {"judge": "llm", "max_segments": 4, "max_tokens": 320, "temperature": 1.0},
        }
    )  # fmt: skip


class Thought(NamedTuple):
    """A right response with two patterns or more between the first and the last."""

    problem: Problem
    response: Trajectory
    segments: Sequence[Segment]


async def thoughts(ctx: Context) -> list[Thought]:
    rows: list[Thought] = []
    for number, asked in enumerate(word_problems(seed=103, count=40)):
        problem = Problem(f"p{number}", "words", "train", asked.question, str(asked.answer))
        ids = ctx.tokenizer.encode(response(asked, Random(number)), add_special_tokens=False)
        eos = ctx.tokenizer.eos_token_id
        trajectory = await make_trajectory(
            problem,
            Completion((*ids, eos), "", "stop", ids_from="encoded"),
            model=OVERTHINKS,
            sample=0,
            seed=0,
            prompt_ids=prompt_ids(problem.question, ctx.tokenizer, ctx.recipe.model),
            tokenizer=ctx.tokenizer,
            grader=ctx.grader,
        )
        segments = segment(trajectory, ctx.tokenizer, ctx.recipe.segment)
        right = trajectory.grade == "correct" and not isinstance(segments, Dropped)
        if right and len(segments) >= 4:
            rows.append(Thought(problem, trajectory, segments))
    return rows[:RESPONSES]


async def verdicts_on(thought: Thought, ctx: Context) -> list[Verdict]:
    """On a response that leaves at its end, so that all its patterns can be judged."""
    whole = await finalize(*thought, ctx, seed=1)
    if isinstance(whole, Dropped):
        return []
    result = await prune(*thought, whole, ctx)
    gone = {each.segment for each in result.verdicts if each.pruned}
    between = range(1, len(thought.segments) - 1)
    assert [each.segment for each in result.verdicts] == list(between)
    assert set(result.kept) == {*whole.kept} - gone
    assert result.tokens_after < whole.tokens_after if gone else result.kept == whole.kept
    return list(result.verdicts)


async def test_verdicts_are_readable_and_prunes_are_verified(
    overthinks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = settings(overthinks)
    assert recipe.judge is not None
    async with (
        open_engine(recipe.model) as policy,
        Grader(workers=1) as grader,
        open_engine(recipe.judge) as judge,
    ):
        assert judge.capabilities.json_schema
        ctx = Context(recipe, policy, grader, judge)
        asked = await thoughts(ctx)
        with metered("judge") as judging:
            found = await asyncio.gather(*(verdicts_on(thought, ctx) for thought in asked))
    verdicts = [verdict for each in found for verdict in each]
    kinds = Counter(verdict.verdict for verdict in verdicts)
    proposed = [verdict for verdict in verdicts if verdict.verdict not in STAYS]
    kept = sum(verdict.pruned for verdict in proposed)
    readable = len(verdicts) - kinds["unjudged"]
    with capsys.disabled():
        print(
            f"\njudge SmolLM2-135M: {readable} of {len(verdicts)} verdicts readable "
            f"({dict(kinds)}); of {len(proposed)} prunes {kept} kept, {len(proposed) - kept} "
            f"undone; {judging.requests} requests, {judging.generated} tokens"
        )
    assert len(verdicts) >= LEAST and readable > 0
    assert judging.requests == sum(map(bool, found)) and judging.failed == 0
    for verdict in proposed:  # what is restored says why
        assert verdict.pruned or "restored" in verdict.reason, verdict
