"""A real model judges the thinking of another under the JSON schema, and prunes are verified."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-real")

from benchmarks.smollm2 import BASE
from benchmarks.word_problems import problems as word_problems
from dto.context import Context
from dto.engines import open_engine
from dto.grading import Grader
from dto.ledger import metered
from dto.recipe import Recipe
from dto.records import STAYS, Dropped, Problem, Trajectory, Verdict
from dto.stages.optimize import finalize
from dto.stages.prune import prune
from dto.stages.sample import sample
from dto.stages.segment import segment
from tests.real.conftest import folder

PROBLEMS, LEAST = 8, 6


def settings(model: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "judged",
            "model": {"name": str(model), "dtype": "bfloat16", "context": 512, "slots": 32},
            "judge": {
                "name": str(folder(BASE)), "engine": "vllm", "dtype": "float32", "context": 1536,
                "slots": 16,
            },
            "sample": {"samples": 1, "temperature": 0.8, "top_p": 1.0, "max_tokens": 150},
            "estimate": {
                "threshold": 0.5, "margin": 0.25, "error": 0.1, "cap": 8, "max_tokens": 12,
            },
            "optimize": {"finalizations": 2, "max_tokens": 32},
            "prune": {"judge": "llm", "max_segments": 4, "max_tokens": 240},
        }
    )  # fmt: skip


async def verdicts_on(problem: Problem, sampled: Trajectory, ctx: Context) -> list[Verdict]:
    """On a response that leaves at its end, so that all its patterns can be judged."""
    segments = segment(sampled, ctx.tokenizer, ctx.recipe.segment)
    if isinstance(segments, Dropped) or len(segments) < 3:
        return []
    whole = await finalize(problem, sampled, segments, ctx, seed=1)
    if isinstance(whole, Dropped):
        return []
    result = await prune(problem, sampled, segments, whole, ctx)
    gone = {each.segment for each in result.verdicts if each.pruned}
    assert [each.segment for each in result.verdicts] == list(range(1, len(segments) - 1))
    assert set(result.kept) == {*whole.kept} - gone
    assert result.tokens_after < whole.tokens_after if gone else result.kept == whole.kept
    return list(result.verdicts)


async def test_verdicts_are_readable_and_prunes_are_verified(
    overthinks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = settings(overthinks)
    assert recipe.judge is not None
    problems = [
        Problem(f"p{number}", "words", "train", each.question, str(each.answer))
        for number, each in enumerate(word_problems(seed=103, count=PROBLEMS))
    ]
    async with (
        open_engine(recipe.model) as policy,
        Grader(workers=1) as grader,
        open_engine(recipe.judge) as judge,
    ):
        assert judge.capabilities.json_schema
        ctx = Context(recipe, policy, grader, judge)
        sampled = await asyncio.gather(*(sample(problem, ctx) for problem in problems))
        with metered("judge") as judging:
            found = await asyncio.gather(
                *(
                    verdicts_on(problem, row, ctx)
                    for problem, rows in zip(problems, sampled, strict=True)
                    for row in rows
                    if isinstance(row, Trajectory)
                )
            )
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
