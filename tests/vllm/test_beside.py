"""vLLM beside a training: it answers as the model in training does, and is left by nobody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

from dto.errors import EngineError
from dto.nano import chain_problems
from dto.recipe import Recipe, load_recipe
from dto.training import grpo
from dto.training.beside import Beside, HandedEngine
from dto.training.dev import measure
from dto.training.fit import fit
from dto.training.weights import load, with_adapters
from tests.training.conftest import RunFolder, make_run
from tests.training.test_losses import logprobs

PROBLEMS = chain_problems("test", 8, seed=0)
FORCED = {"keep": "last", "collapse_points": 200.0, "collapse_truncated": 1.0}


def recipe_of(rank: int = 0, **train: Any) -> Recipe:
    settings = {"engine": "vllm", "dev_samples": 1, "lora_rank": rank} | train
    return Recipe.model_validate(
        {
            "name": "beside",
            "model": {"name": "nano", "context": 512, "slots": 16},
            "sample": {"temperature": 0.0, "max_tokens": 48},
            "train": settings,
        }
    )


def change(model: Any, seed: int, share: float = 0.3) -> None:
    """Move all trained weights by a share of their spread; half of the adapters begin at 0."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in model.parameters():
            if part.requires_grad:
                scale = share * (float(part.std()) or 1.0)
                part.add_(scale * torch.randn(part.shape, generator=noise))


def greedy(
    model: Any, tokenizer: Any, recipe: Recipe, beside: Beside | None = None
) -> dict[str, tuple[int, ...]]:
    responses, _ = measure(model, tokenizer, PROBLEMS, recipe, beside=beside)
    return {row.problem_id: row.token_ids for row in responses}  # type: ignore[union-attr]


def core(process: psutil.Process) -> Iterator[psutil.Process]:
    for child in process.children(recursive=True):
        try:
            if "EngineCore" in child.name():
                yield child
        except psutil.NoSuchProcess:
            continue


@pytest.mark.parametrize("rank", [0, 4])
def test_after_a_hand_over_it_answers_as_the_model_in_training(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy output is equal, and stays the old one where the weights are not handed over."""
    if rank:
        pytest.importorskip("peft", reason="peft is not installed")
    recipe = recipe_of(rank)
    plain, tokenizer = load(recipe)
    model: Any = with_adapters(plain, recipe)
    with Beside(recipe, model, tmp_path) as beside:
        assert beside._engine is not None and beside._engine.adapters == bool(rank)
        before = greedy(model, tokenizer, recipe)
        assert greedy(model, tokenizer, recipe, beside) == before
        for seed in range(2):
            change(model, seed)
            expected = greedy(model, tokenizer, recipe)
            assert expected != before

            async def keep(self: HandedEngine, folder: Path) -> None:
                """Take nothing."""

            with monkeypatch.context() as patch:
                patch.setattr(HandedEngine, "take", keep)
                assert greedy(model, tokenizer, recipe, beside) == before
            assert greedy(model, tokenizer, recipe, beside) == expected
            before = expected
        if not rank:
            probabilities_are_the_trainers(model, tokenizer, beside, tmp_path)
        assert beside.peak_memory() > 2**27

        (process,) = core(psutil.Process())
        process.kill()
        process.wait()
        with pytest.raises(EngineError, match=r"core for .* has died.*same command") as error:
            greedy(model, tokenizer, recipe, beside)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*handed*"))


def probabilities_are_the_trainers(
    model: Any, tokenizer: Any, beside: Beside, directory: Path
) -> None:
    """GRPO's responses have the trainer's logprobs at the temperature; its weights are 1."""
    recipe = recipe_of(method="grpo", group=4, batch_size=8, temperature=0.7, response_tokens=32)
    args = grpo.OnlineTrainer.config(recipe, directory)
    trainer = grpo.OnlineTrainer(recipe, model, args, tokenizer, PROBLEMS, [0, 1])
    trainer.beside = beside
    model.train()
    batch: Any = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    ratio = batch["importance_sampling_ratio"]
    assert torch.allclose(ratio, torch.ones_like(ratio), atol=1e-2)
    place = int(batch["prompt_mask"][0].sum())
    length = int(batch["completion_mask"][0].sum())
    prompt = tuple(batch["prompt_ids"][0, -place:].tolist())
    ids = tuple(batch["completion_ids"][0, :length].tolist())
    expected = logprobs(model, prompt, ids, 0.7)
    assert torch.allclose(batch["sampling_per_token_logps"][0, :length], expected, atol=1e-3)


def test_a_training_killed_and_resumed_ends_as_one_without_it(tmp_path: Path) -> None:
    """No core is left over, and the weights are those of a training with transformers."""
    nano, tokenizer = load(recipe_of())
    nano.save_pretrained(tmp_path / "nano")
    tokenizer.save_pretrained(tmp_path / "nano")
    plain = make_run(tmp_path / "plain", tokenizer, tmp_path / "nano")
    settings = FORCED | {"evaluations": 2, "epochs": 2, "learning_rate": 1e-4, "dev_samples": 1}
    plain = short(plain).with_training(**settings)
    fit(plain.path, plain.recipe)

    run = short(make_run(tmp_path / "run", tokenizer, tmp_path / "nano"))
    run = run.with_training(**settings, engine="vllm")
    command = [sys.executable, "-m", "dto.training.process", str(run.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 6:"):
            break
    (engine,) = core(psutil.Process(process.pid))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    psutil.wait_procs([engine], timeout=20)
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE

    result = fit(run.path, run.recipe)
    lines = (run.path / "train" / "effort.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 6, 12]  # none is measured again
    assert result["engine_memory"] > 2**27 and result["usage"]["failed"] == 0
    weights = [each.path / "train" / "model" / "model.safetensors" for each in (run, plain)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not (run.path / "train" / "handed").exists()


def short(run: RunFolder) -> RunFolder:
    data = run.recipe.model_dump(mode="json")
    data["model"] |= {"context": 512, "slots": 16}
    path = run.path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return RunFolder(run.path, load_recipe(path))
