"""A step of every method on a real model: bfloat16, gradient checkpointing, LoRA, dev responses.

What a loss is, other tests say on a tiny model; here it has to be computed, and to move weights.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoTokenizer

from dto.drqa.records import BatchResponse, Chain, LabelledChain
from dto.recipe import Recipe, load_recipe
from dto.records import Span, Trajectory
from dto.tables import read, write
from dto.training import grpo
from dto.training.dev import DevScore
from dto.training.fit import fit
from tests.training.conftest import DEV, SHORT, RunFolder, make_run
from tests.training.test_judging import with_labels

ROWS = 24  # that a run of tests/training has of whatever is trained on
BASE = DevScore(0, 0.0, 0.0, 0.0, 8.0, 1.0, DEV, 0, None)  # known: one evaluation less
LORA = ("simpo", "dpo", "sft", "o1_pruner", "grpo", "drqa", "cft", "sft_batch")
SHORTLY: dict[str, Any] = {
    "bf16": True,
    "gradient_checkpointing": True,
    "lora_rank": 4,
    "learning_rate": 1e-2,
    "batch_size": 2,
    "group": 2,
    "evaluations": 1,
    "dev_samples": 1,
    "keep": "last",
    "collapse_points": 100.0,
    "collapse_truncated": 1.0,
}


def prepared(path: Path, model: Path, method: str, steps: int, **changes: Any) -> RunFolder:
    """A run that is trained for so many steps, on tables of tests/training in real tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    run = make_run(path, tokenizer, model)
    data = run.recipe.model_dump(mode="json")
    data["sample"]["max_tokens"] = 4
    (run.path / "recipe.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    run = RunFolder(run.path, load_recipe(run.path / "recipe.yaml"))
    labelled = method in ("drqa", "cft", "sft_batch")
    if labelled:
        run = with_labels(run, tokenizer)
    rows = 16 if labelled else ROWS  # a third of the chains is held out
    if method == "sft_batch":
        chains(run, tokenizer)
        rows = 8  # the concise ones alone
    if method == "o1_pruner":
        second_samples(run, tokenizer)
        rows = 2 * ROWS
    settings = SHORTLY | {"method": method} | changes
    asked = settings["batch_size"] // (settings["group"] if method in ("grpo", "drqa") else 1)
    return run.with_training(**settings, epochs=steps * asked / rows)


def second_samples(run: RunFolder, tokenizer: Any) -> None:
    """Another sample of each problem, a shorter one: weights go by the difference."""
    table = run.path / "sample" / "rows.parquet"
    ids = (*tokenizer.encode(SHORT, add_special_tokens=False), tokenizer.eos_token_id)
    rows = list(read(table, Trajectory))
    rows += [
        replace(row, id=Trajectory.make_id(row.problem_id, 1), sample=1, token_ids=ids)
        for row in rows
    ]
    write(table, Trajectory, sorted(rows, key=lambda row: row.id))


def chains(run: RunFolder, tokenizer: Any) -> None:
    """The tables that `sft_batch` reads beside the labels: each chain has its batch prompt."""
    ids = tuple(tokenizer.encode(SHORT, add_special_tokens=False))
    table = run.path / "label" / "rows.parquet"
    labels = [replace(row, origin="batch", k=2) for row in read(table, LabelledChain)]
    write(table, LabelledChain, labels)
    cut, sampled = [], []
    for number, row in enumerate(labels):
        source = BatchResponse.make_id(number, (row.problem_id, "other"))
        cut.append(
            Chain(
                row.id, row.problem_id, "batch", 2, 0, 1, source, Span(0, 5), row.chain, 5, 5,
                row.answer, "correct",
            )
        )  # fmt: skip
        none = Span(0, 0)
        sampled.append(
            BatchResponse(
                source, (row.problem_id, "other"), 2, "m", number, 0, (1,), ids, "sampled", SHORT,
                none, none, none, "stop", ("correct", "wrong"), ("2", ""), ("", ""),
            )
        )  # fmt: skip
    for stage, record, rows in (("chain", Chain, cut), ("batch", BatchResponse, sampled)):
        (run.path / stage).mkdir()
        write(run.path / stage / "rows.parquet", record, sorted(rows, key=lambda row: row.id))  # type: ignore[attr-defined]


def history(run: RunFolder) -> list[dict[str, Any]]:
    lines = (run.path / "train" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def moved(run: RunFolder, base: Path) -> list[str]:
    """Names of the kept weights that are not the base's, in bfloat16 both."""
    kept = run.path / "train" / "model" / "model.safetensors"
    with safe_open(kept, "pt") as after, safe_open(base / "model.safetensors", "pt") as before:
        names = set(after.keys()) & set(before.keys())
        assert names
        return [
            name
            for name in names
            if not torch.equal(after.get_tensor(name), before.get_tensor(name).bfloat16())
        ]


def fitted(run: RunFolder, recipe: Recipe, base: DevScore | None) -> dict[str, Any]:
    result = fit(run.path, recipe, base=base)
    assert not result["collapsed"] and result["tokens_trained"] > 0
    return result


@pytest.fixture
def rewarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards in turn: of four tokens none can be right, and equal rewards have no gradient."""
    original = grpo.OnlineTrainer._rewards

    def in_turn(self: Any, *args: Any, **kwargs: Any) -> list[float | None]:
        return [float(number % 2) for number, _ in enumerate(original(self, *args, **kwargs))]

    monkeypatch.setattr(grpo.OnlineTrainer, "_rewards", in_turn)


@pytest.mark.parametrize("method", LORA)
def test_a_step_with_lora(method: str, overthinks: Path, tmp_path: Path, rewarded: None) -> None:
    run = prepared(tmp_path / "run", overthinks, method, steps=1)
    result = fitted(run, run.recipe, BASE)
    assert (result["steps"], result["kept_step"]) == (1, 1)
    last = history(run)[-1]
    assert last["step"] == 1 and last["responses"] == DEV and last["tokens_mean"] > 0
    assert math.isfinite(last["loss"])
    projections = [name for name in moved(run, overthinks) if "_proj." in name]
    assert len(projections) == 30 * 7  # all linear layers of all blocks
    if result["judging"] is not None:
        assert [result["judging"][when]["step"] for when in ("before", "after")] == [0, 1]
        assert result["judging"]["after"]["responses"] == 8


def test_steps_on_all_weights_with_an_evaluation_between_them(
    overthinks: Path, tmp_path: Path
) -> None:
    """No adapters: what is measured in the middle is the very model that is being trained."""
    changes = {"lora_rank": 0, "learning_rate": 1e-3, "evaluations": 2}
    run = prepared(tmp_path / "run", overthinks, "simpo", steps=2, **changes)
    result = fitted(run, run.recipe, None)
    assert (result["steps"], result["kept_step"]) == (2, 2)
    rows = history(run)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["responses"] == DEV and row["failed"] == 0 for row in rows)
    assert all(math.isfinite(row["loss"]) for row in rows[1:])
    assert any("_proj." in name for name in moved(run, overthinks))
