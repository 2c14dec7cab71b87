"""vLLM beside a training of a real model: after a hand-over it answers as that model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-real")

from benchmarks.smollm2 import BASE
from dto.recipe import Recipe
from dto.records import Problem
from dto.training.beside import Beside, HandedEngine
from dto.training.dev import measure
from dto.training.weights import load
from tests.real.conftest import BEGINNINGS, folder
from tests.vllm.test_beside import change

ROWS = [Problem(f"p{n}", "words", "dev", text, "1") for n, text in enumerate(BEGINNINGS[:4])]


@pytest.mark.timeout(300)
def test_greedy_output_follows_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head is tied: both the embeddings and the head have to follow."""
    recipe = Recipe.model_validate(
        {
            "name": "beside",
            "model": {"name": str(folder(BASE)), "context": 512, "slots": 16},
            "sample": {"temperature": 0.0, "max_tokens": 12},
            "train": {"engine": "vllm", "dev_samples": 1},
        }
    )
    model, tokenizer = load(recipe)
    assert model.config.tie_word_embeddings

    def greedy(beside: Beside | None = None) -> list[Any]:
        return [row.token_ids for row in measure(model, tokenizer, ROWS, recipe, beside=beside)[0]]  # type: ignore[union-attr]  # fmt: skip

    with Beside(recipe, model, tmp_path) as beside:
        before = greedy()
        change(model, 0, 0.05)
        expected = greedy()
        assert expected != before

        async def keep(self: HandedEngine, folder: Path) -> None:
            """Take nothing."""

        with monkeypatch.context() as patch:
            patch.setattr(HandedEngine, "take", keep)
            assert greedy(beside) == before
        assert greedy(beside) == expected
