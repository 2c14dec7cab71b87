"""An engine of which every request fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from dto.context import Context
from dto.errors import DtoError
from dto.grading import Grader
from dto.nano import chain_problems
from dto.protocols import Completion
from dto.recipe import Recipe, resolve
from dto.records import Trajectory
from dto.runs.stage import Group, Runner
from dto.stages.sample import sample
from tests.engines.scripted import ScriptedEngine


async def test_sampling_from_a_dead_engine_is_an_error_in_one_line(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve("nano"))
    dead = Completion((), "", "failed", 0, error="connection refused")
    engine = ScriptedEngine(lambda prompt, sampling: [dead], tokenizer)
    problems = (Group(row.id, (row,)) for row in chain_problems("train", 60, seed=0))
    async with Grader() as grader:
        context = Context(Recipe(name="r"), engine, grader)
        with (
            Runner(tmp_path / "sample", Trajectory, {}) as stage,
            pytest.raises(DtoError, match=r"groups in a row failed, .* connection refused;"),
        ):
            await stage.feed(problems, lambda row: sample(row, context), window=8)
    assert len(engine.requests) < 60
