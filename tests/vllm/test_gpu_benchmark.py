"""The parts of `benchmarks.gpu` that need vLLM run, on its CPU build."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

from benchmarks.gpu import ERROR, Scale, part_of
from dto.settings import TrainSettings

TINY = Scale("cpu", tiny=True)


def test_stages_are_compared_with_generate() -> None:
    (case,) = part_of("vllm").cases
    sample, estimate = part_of("vllm").run(case, TINY)
    assert (sample["work"], estimate["work"]) == ("sample", "estimate")
    for row in (sample, estimate):
        assert min(row["ours, tokens/s"], row["LLM.generate, tokens/s"]) > 0
        assert "(" in row["ours ÷ LLM.generate"] and "(" in row["ours ÷ LLM.generate, no seeds"]


@pytest.mark.skipif("engine" not in TrainSettings.model_fields, reason="no train.engine yet")
def test_a_training_is_measured_by_both_engines() -> None:
    (case,) = part_of("dev").cases
    rows = list(part_of("dev").run(case, TINY))
    assert [row["train.engine"] for row in rows][-1] == "vllm ÷ transformers"
    assert all(row["tokens/s"] > 0 and ERROR not in row for row in rows)
