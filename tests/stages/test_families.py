"""The stages on every family's tags, from the sample to the version that is trained on."""

from __future__ import annotations

from typing import Any, cast

import pytest
from transformers import PreTrainedTokenizerBase

from dto.context import Context, without_engine
from dto.drqa.batch import batch
from dto.drqa.label import _labelled
from dto.drqa.records import Chain
from dto.grading import Grader
from dto.protocols import Sampling
from dto.recipe import Recipe, SegmentSettings
from dto.records import Dropped, OptimizedTrajectory, Segment, Span, Trajectory
from dto.stages.estimate import estimate
from dto.stages.optimize import optimize
from dto.stages.sample import sample
from dto.tags import think_tags
from dto.training.pairs import critiques
from dto.trajectories import read_response
from tests.exits.test_families import PROBLEM, STEPS, written_by
from tests.families import FAMILIES, tokenizer_of
from tests.segmenting import segment

CHAIN = Chain("c", "p", "vanilla", 1, 0, 1, "s", Span(0, 1), "It is 2.", 5, 5, "2", "correct")


def context(name: str, requests: list[tuple[str, Sampling]]) -> Context:
    recipe = Recipe.model_validate(
        {
            "name": "test", "model": FAMILIES[name].settings,
            "sample": {"samples": 1, "max_tokens": 400, "presence_penalty": 0.5, "top_k": 20},
            "estimate": {"method": "fixed", "rollouts": 2}, "optimize": {"finalizations": 1},
        }
    )  # fmt: skip
    return Context(recipe, written_by(name, requests), Grader(workers=1))


@pytest.mark.parametrize("name", FAMILIES)
async def test_a_version_is_closed_by_the_models_own_tokens(name: str) -> None:
    requests: list[tuple[str, Sampling]] = []
    ctx = context(name, requests)
    tags, tokenizer = ctx.tags, ctx.tokenizer
    [row] = await sample(PROBLEM, ctx)
    assert isinstance(row, Trajectory) and row.grade == "correct"
    segments = segment(row, tokenizer, SegmentSettings(granularity="cue"))
    assert isinstance(segments, list) and all(isinstance(each, Segment) for each in segments)
    tiled = "".join(row.text[slice(*each.chars)] for each in segments)
    assert tiled.strip() == "\n\n".join(STEPS)
    estimates = await estimate(PROBLEM, row, segments, ctx)
    assert isinstance(estimates, list) and estimates[0].decision == "above"
    version = await optimize(PROBLEM, row, segments, estimates, ctx)
    assert isinstance(version, OptimizedTrajectory)
    assert version.text.count(tags.close) == 1 and version.answer == "2"
    assert tags.close not in version.text[slice(*version.thinking)]
    assert "</think>" not in version.text.replace(tags.close, "")
    if tags.close_ids:
        size, ids = len(tags.close_ids), version.token_ids
        places = [i for i in range(len(ids)) if ids[i : i + size] == tags.close_ids]
        assert len(places) == 1
    for said, sampling in requests:
        assert (sampling.top_k, sampling.presence_penalty) == (20, 0.5)
        assert sampling.written == len(tags.encode(tokenizer, said))


def bare(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Context:
    return without_engine(recipe, cast(Any, None), tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_judge_that_does_not_think_and_a_verdict_that_is_imitated(name: str) -> None:
    recipe = Recipe.model_validate(
        {"name": "x", "model": FAMILIES[name].settings, "label": {"thinking": False}}
    )
    tokenizer = tokenizer_of(name)
    tags = think_tags(tokenizer, recipe.model)
    quiet = _labelled(PROBLEM, CHAIN, "concise", "train", bare(recipe, tokenizer))
    asked, _, end = quiet.prompt.partition("boxed{}.")
    assert end.count(tags.close) == 1 and end.rstrip().endswith(tags.close), asked
    settings = recipe.label.model_copy(update={"thinking": True})
    recipe = recipe.model_copy(update={"label": settings})
    row = _labelled(PROBLEM, CHAIN, "concise", "train", bare(recipe, tokenizer))
    [made] = critiques([row], recipe.model, tokenizer, 10_000)
    assert not isinstance(made, Dropped)
    reading = read_response(tokenizer, made.prompt_ids, made.response_ids, tags)
    assert reading.closed and reading.foreign is None
    assert f"\\boxed{{{row.label}}}" in reading.text[slice(*reading.conclusion)]
    assert reading.text.count(tags.open) == (0 if FAMILIES[name].opens else 1)


async def test_samples_and_batches_in_foreign_tags_are_dropped() -> None:
    ctx = context("r1", [])
    said = "[THINK]It is 2.[/THINK]\n\n1. \\boxed{2}\n2. \\boxed{2}"
    ctx.engine._script = lambda text, sampling: [said]  # type: ignore[attr-defined]
    [row] = await sample(PROBLEM, ctx)
    together = await batch([PROBLEM, PROBLEM], 0, ctx)
    for each in (row, together):
        assert isinstance(each, Dropped) and each.reason == "foreign_tags"
        assert 'set model.think to ["[THINK]", "[/THINK]"]' in each.detail
