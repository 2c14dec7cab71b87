"""Mixed precision and gradient checkpointing with a model that answers in mid-training."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from dto.engines.models import load_model
from dto.errors import DtoError
from dto.runs.reader import RunReader
from dto.training import dev
from dto.training import fit as fitting
from dto.training.fit import fit
from dto.training.pairs import Demonstration
from dto.training.trainers import SimPOTrainer, fuse
from dto.training.weights import answering, keep, load, with_adapters
from dto.trajectories import prompt_ids
from tests.training.conftest import LONG, RunFolder, make_run
from tests.training.test_judging import with_labels
from tests.training.test_losses import BASE

METHODS = ("simpo", "dpo", "sft", "o1_pruner", "grpo", "drqa", "cft", "sft_batch")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "rank"), [*((method, 0) for method in METHODS), ("simpo", 2), ("grpo", 2)]
)
def test_training_survives_its_dev_evaluations(
    method: str,
    rank: int,
    run: RunFolder,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two checkpoints are measured after steps in bfloat16, and training goes on between them."""
    if rank:
        pytest.importorskip("peft", reason="peft is not installed")
    precisions: list[bool] = []
    original = dev.respond

    def watched(model: Any, *args: Any, **kwargs: Any) -> Any:
        precisions.append("forward" in vars(model) and hasattr(model, "_original_forward"))
        return original(model, *args, **kwargs)

    monkeypatch.setattr(dev, "respond", watched)
    settings = {
        "method": method, "bf16": True, "gradient_checkpointing": True, "lora_rank": rank,
        "evaluations": 2, "dev_samples": 1, "epochs": 1, "group": 2, "batch_size": 4,
        "learning_rate": 1e-4, "collapse_points": 200.0, "collapse_truncated": 1.0,
    }  # fmt: skip
    if method == "sft_batch":
        response = tuple(tokenizer.encode(LONG, add_special_tokens=False))
        found = [Demonstration(str(n), (5, 6, n), response) for n in range(12)]
        monkeypatch.setattr(fitting, "batch_answers", lambda *args: found)
    labelled = method in ("drqa", "cft", "sft_batch")
    training = (
        with_labels(run, tokenizer, **settings) if labelled else run.with_training(**settings)
    )
    result = fit(training.path, training.recipe, base=BASE)
    lines = (run.path / "train" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert len(steps) == 3 and 0 < steps[1] < steps[2] == result["steps"]
    assert precisions[-2:] == [True, True]  # the wrapper is back for the steps after


def test_what_trainers_put_before_a_model_is_off_while_it_answers(
    run: RunFolder, tokenizer: PreTrainedTokenizerBase
) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    ids = torch.tensor([[5, 6, 7]])
    model, _ = load(run.recipe)
    fuse(model)
    wrapped = vars(model)["forward"]
    with answering(model, run.recipe) as plain:
        assert plain is model and "forward" not in vars(model)
    assert vars(model)["forward"] is wrapped

    recipe = run.with_training(lora_rank=2).recipe
    adapted = with_adapters(model, recipe)
    with torch.no_grad():
        for name, each in adapted.named_parameters():
            if "lora_B" in name:
                each.fill_(0.05)
    fuse(adapted)
    adapted.eval()
    with torch.no_grad(), answering(adapted, recipe) as copy:
        before = adapted(ids).logits
        assert copy is not model
        for each in adapted.parameters():
            each.zero_()
        torch.testing.assert_close(copy(ids).logits, before, atol=1e-4, rtol=1e-4)


def test_adapters_on_a_base_in_bfloat16_are_measured_as_they_are_kept(
    run: RunFolder, tmp_path: Path
) -> None:
    """The base has half the memory and no update; adapters are float32 until they are merged."""
    pytest.importorskip("peft", reason="peft is not installed")
    recipe = run.with_training(lora_rank=2, bf16=True).recipe
    adapted = with_adapters(load(recipe)[0], recipe)
    kinds = {each.requires_grad: each.dtype for each in adapted.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    with torch.no_grad():
        for name, each in adapted.named_parameters():
            if "lora_B" in name:
                each.copy_(0.01 * torch.randn(each.shape))
    adapted.save_pretrained(tmp_path / "checkpoint")
    keep(recipe, tmp_path / "checkpoint", tmp_path / "model")
    kept = load_model(str(tmp_path / "model"), dtype=torch.bfloat16).state_dict()
    base = load(recipe)[0].state_dict()
    with answering(adapted, recipe) as plain:
        measured = plain.state_dict()
    assert all(torch.equal(kept[name], measured[name]) for name in kept)
    assert any(not torch.equal(kept[name], base[name]) for name in kept)
    full = run.with_training(lora_rank=0, bf16=True).recipe
    assert load(full)[0].dtype == torch.float32  # an update is smaller than bfloat16 can hold


def test_adapters_need_linear_layers(run: RunFolder) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    recipe = run.with_training(lora_rank=2).recipe
    model: Any = load(recipe)[0]
    for layer in model.model.layers:
        layer.self_attn = layer.mlp = torch.nn.Identity()
    with pytest.raises(DtoError, match=r"train.lora_rank = 2: .* has no linear layers") as caught:
        with_adapters(model, recipe)
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_is_not_installed_is_one_line(run: RunFolder) -> None:
    recipe = run.with_training(optimizer="adamw_8bit").recipe
    with pytest.raises(DtoError, match=r"'adamw_8bit' needs bitsandbytes .* or set it to adamw"):
        SimPOTrainer.config(recipe, run.path)


@pytest.mark.slow
def test_several_visible_gpus_change_nothing(
    run: RunFolder,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Batch, steps and what was seen are as with one; and a line says how to use the others."""
    original = SimPOTrainer.config
    results, weights = [], []
    for visible in (1, 2):
        folder = make_run(tmp_path / str(visible), tokenizer, model_folder)
        training = folder.with_training(evaluations=1, epochs=1, dev_samples=1)

        def config(*args: Any, visible: int = visible) -> Any:
            made = original(*args)
            assert made.device.type == "cpu"
            made._n_gpu = visible
            return made

        monkeypatch.setattr(SimPOTrainer, "config", staticmethod(config))
        caplog.clear()
        with caplog.at_level(logging.INFO, "dto.train"):
            results.append(fit(training.path, training.recipe, base=BASE))
        assert ("1 of 2 visible GPUs" in caplog.text) == (visible == 2)
        assert ("set train.processes to 2" in caplog.text) == (visible == 2)
        path = training.path / "train" / "history.jsonl"
        weights.append(path.read_text(encoding="utf-8"))
    assert results[0]["steps"] == results[1]["steps"] == 6
    assert results[0]["tokens_trained"] == results[1]["tokens_trained"] > 0
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_what_is_measured_keeps_to_the_context(run: RunFolder) -> None:
    """A response ends at `model.context`, not at the model's own limit."""
    problems = list(RunReader(run.path).problems("dev"))
    model, tokenizer = load(run.recipe)
    prompts = [
        prompt_ids(row.question, tokenizer, run.recipe.model, row.prompt) for row in problems
    ]
    limit = max(map(len, prompts)) + 8
    for context in (limit, None):
        settings = run.recipe.model.model_copy(update={"context": context})
        recipe = run.recipe.model_copy(update={"model": settings})
        groups, _ = dev.respond(model, tokenizer, problems, recipe)
        lengths = [len(row.prompt_ids) + len(row.token_ids) for rows in groups for row in rows]
        assert (max(lengths) <= limit) == (context is not None)


def test_other_gpus_are_left_alone_while_a_model_responds(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process of a training would take memory on all of them, for its random state."""
    touched: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_rng_state", touched.append)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: touched.append(device))
    model, tokenizer = load(run.recipe)
    problem = next(iter(RunReader(run.path).problems("dev")))
    groups, _ = dev.respond(model, tokenizer, [problem], run.recipe)
    assert groups[0] and touched == []
