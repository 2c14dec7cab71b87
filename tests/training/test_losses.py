"""DPO, SFT, O1-Pruner and GRPO: the ids that they see are those that were sampled."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerBase

from dto.engines.models import shape_of_model
from dto.recipe import Recipe
from dto.records import Dropped, Problem, Trajectory
from dto.runs.reader import RunReader
from dto.tables import read, write
from dto.training import grpo, trainers
from dto.training.dev import DevScore
from dto.training.fit import fit
from dto.training.flops import training_flops
from dto.training.pairs import (
    Demonstration,
    TokenizedPair,
    chosen_sides,
    load_weighted,
    within_budget,
)
from dto.training.weights import load
from tests.training.conftest import LONG, SHORT, RunFolder, tiny_model


def encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def letters(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """As a model may emit it, not as a text is encoded."""
    return tuple(token for letter in text for token in encoded(tokenizer, letter))


@pytest.fixture
def pairs(tokenizer: PreTrainedTokenizerBase) -> list[TokenizedPair]:
    prompt, eos = encoded(tokenizer, "Start with 7.<think>\n"), int(tokenizer.eos_token_id)
    short, long = encoded(tokenizer, SHORT), encoded(tokenizer, LONG)
    return [
        TokenizedPair("a", prompt, (*short, eos), (*long, eos)),
        TokenizedPair("b", prompt + prompt, (*letters(tokenizer, "7 plus 5 is 2"), eos), long),
        TokenizedPair("c", prompt, (*short, eos), (*letters(tokenizer, LONG), eos, eos)),
    ]


def recipe_of(**train: Any) -> Recipe:
    return Recipe.model_validate({"name": "ids", "train": {"batch_size": 2, **train}})


def logprobs(
    model: Any, prompt: tuple[int, ...], response: tuple[int, ...], temperature: float = 1.0
) -> torch.Tensor:
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def test_dpo(
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[TokenizedPair],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, base = tiny_model(len(tokenizer)), tiny_model(len(tokenizer))
    with torch.no_grad():
        next(policy.parameters()).mul_(1.5)
    recipe = recipe_of(method="dpo", beta=0.3)
    monkeypatch.setattr(trainers, "load", lambda recipe: (base, tokenizer))
    args = trainers.StoredDPOTrainer.config(recipe, tmp_path)
    order = [2, 1, 0]
    trainer = trainers.StoredDPOTrainer(recipe, policy, args, tokenizer, pairs, order)
    batch = next(iter(trainer.get_train_dataloader()))
    wanted = [pairs[index] for index in order[:2]]
    sides = [(row.prompt_ids, row.chosen_ids) for row in wanted]
    sides += [(row.prompt_ids, row.rejected_ids) for row in wanted]
    for row, (prompt, response) in enumerate(sides):
        mask = batch["attention_mask"][row].bool()
        assert tuple(batch["input_ids"][row][mask].tolist()) == prompt + response
        loss_on = batch["completion_mask"][row].bool()
        assert tuple(batch["input_ids"][row][loss_on].tolist()) == response
    loss = float(trainer.compute_loss(trainer.model, batch).detach())
    ratios = [
        (logprobs(policy, *side).sum() - logprobs(base, *side).sum()).detach() for side in sides
    ]
    margins = torch.stack(ratios[:2]) - torch.stack(ratios[2:])
    assert loss == pytest.approx(float(-logsigmoid(0.3 * margins).mean()), rel=1e-4)


def test_sft(
    tokenizer: PreTrainedTokenizerBase, pairs: list[TokenizedPair], tmp_path: Path
) -> None:
    rows = [row for row in chosen_sides(pairs) if isinstance(row, Demonstration)]
    assert [row.id for row in rows] == ["a", "b"]  # c has the chosen side of a
    recipe = recipe_of(method="sft")
    args = trainers.StoredSFTTrainer.config(recipe, tmp_path)
    model = tiny_model(len(tokenizer))
    trainer = trainers.StoredSFTTrainer(recipe, model, args, tokenizer, rows, [1, 0, 1])
    batch = next(iter(trainer.get_train_dataloader()))
    for number, index in enumerate([1, 0]):
        labels = batch["labels"][number]
        assert tuple(labels[labels != -100].tolist()) == rows[index].response_ids
        start = int((labels != -100).nonzero()[0])
        assert tuple(batch["input_ids"][number][:start].tolist()) == rows[index].prompt_ids
    loss = float(trainer.compute_loss(trainer.model, batch).detach())
    parts = [logprobs(model, row.prompt_ids, row.response_ids) for row in rows]
    assert loss == pytest.approx(float(-torch.cat(parts).detach().mean()), rel=1e-4)


def test_o1_pruner_is_clipped_against_the_base(
    tokenizer: PreTrainedTokenizerBase, pairs: list[TokenizedPair], tmp_path: Path
) -> None:
    rows = [
        Demonstration("a", pairs[0].prompt_ids, pairs[0].chosen_ids, 1.5),
        Demonstration("b", pairs[1].prompt_ids, pairs[1].chosen_ids, -0.5),
    ]
    model = tiny_model(len(tokenizer))
    recipe = Recipe.model_validate(
        {"name": "x", "sample": {"temperature": 1.0}, "train": {"batch_size": 2}}
    )
    args = grpo.PrunerTrainer.config(recipe, tmp_path)
    trainer = grpo.PrunerTrainer(recipe, model, args, tokenizer, rows, [1, 0])
    base = tiny_model(len(tokenizer))
    with torch.no_grad():
        next(model.parameters()).mul_(1.2)
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss = float(trainer.compute_loss(model, batch).detach())
    total, tokens = 0.0, 0
    for row in rows:
        side = (row.prompt_ids, row.response_ids)
        ratio = (logprobs(model, *side) - logprobs(base, *side)).exp()
        clipped = ratio.clamp(0.8, 1.2)
        total -= float(torch.min(ratio * row.weight, clipped * row.weight).sum().detach())
        tokens += len(row.response_ids)
    assert loss == pytest.approx(total / tokens, rel=1e-3)
    assert not math.isclose(loss, -sum(r.weight * len(r.response_ids) for r in rows) / tokens)


def test_weights_are_those_of_the_problem(run: RunFolder) -> None:
    table = run.path / "sample" / "rows.parquet"
    first, second, *others = read(table, Trajectory)
    broken = replace(first, grade="failed", reason="engine on fire")
    longer = replace(second, id=f"{second.problem_id}/001", token_ids=second.token_ids * 3)
    lost = replace(longer, id=f"{second.problem_id}/002", grade="failed")
    write(table, Trajectory, [broken, second, longer, lost, *others])
    dropped, short, long, gone, *rest = load_weighted(RunReader(run.path), 256, 2.0)
    assert dropped == Dropped(first.id, "failed", "engine on fire")
    assert isinstance(gone, Dropped) and gone.reason == "failed"
    assert isinstance(short, Demonstration) and isinstance(long, Demonstration)
    assert (short.weight, long.weight) == pytest.approx((1.0, 2 / 3 - 1))  # both right: by length
    assert [row.id for row in rest] == [row.id for row in others]
    assert all(isinstance(row, Demonstration) and row.weight == 0.0 for row in rest)  # one each


def test_a_budget_is_never_exceeded_and_nearly_used() -> None:
    tokens = [40 + 7 * (index % 13) for index in range(50)]
    for budget in (39, 1000, 10_000):
        order = within_budget(tokens, tokens, budget=budget, batch_size=4, seed=0)
        spent = sum(tokens[index] for index in order)
        assert spent <= budget < spent + max(tokens) * 1.01 + (budget < 40) * 100
    assert within_budget([], [], budget=9, batch_size=4, seed=0) == []


BASE = DevScore(0, 0.0, 0.0, 0.1, 40.0, 0.0, 12, 0, None)


@pytest.mark.slow
def test_grpo_trains_on_what_it_sampled_within_its_budget(run: RunFolder, monkeypatch: Any) -> None:
    seen: list[tuple[list[Any], list[Any], Any]] = []
    original = grpo.OnlineTrainer._responses

    def watched(self: Any, asked: list[str], trainer: Any) -> dict[str, list[Any]]:
        made = original(self, asked, trainer)
        seen.append((asked, made["prompt_ids"], made["completion_ids"]))
        return made

    monkeypatch.setattr(grpo.OnlineTrainer, "_responses", watched)
    budget = 4000
    training = run.with_training(
        method="grpo", group=2, batch_size=4, policy_tokens=budget, evaluations=2, dev_samples=1
    )
    result = fit(training.path, training.recipe, base=BASE)
    spent = sum(
        len(prompt) + 2 * len(response)
        for _, prompts, responses in seen
        for prompt, response in zip(prompts, responses, strict=True)
    )
    assert result["policy_tokens"] == spent
    lengths = [
        len(prompt) + len(response)
        for _, prompts, responses in seen
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    assert result["tokens_trained"] == sum(lengths)
    shape = shape_of_model(load(training.recipe)[0])
    flops = (result["attention_flops_trained"], result["model_flops_trained"])
    assert flops == pytest.approx(training_flops(shape, lengths))
    assert budget / 2 < spent <= budget * 1.1
    assert result["steps"] == len(seen) > 2
    assert result["usage"]["generated"] >= sum(len(r) for _, _, rows in seen for r in rows)
    problems = {row.id: row for row in read(run.path / "problems" / "rows.parquet", Problem)}
    for asked, prompts, _ in seen:
        assert asked[0] == asked[1] != asked[2] == asked[3]
        assert {problems[name].split for name in asked} == {"train"}
        assert prompts[0] == prompts[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "sft", "o1_pruner"])
def test_fit_is_within_the_budget_and_uses_a_known_base(run: RunFolder, method: str) -> None:
    training = run.with_training(
        method=method, policy_tokens=3000, evaluations=1, dev_samples=1, learning_rate=1e-4
    )
    result = fit(training.path, training.recipe, run.path / "grid" / "0", BASE)
    assert 2500 < result["tokens_trained"] == result["policy_tokens"] <= 3000
    shape = shape_of_model(load(training.recipe)[0])
    # forward, backward for two, and what the base says of the same tokens
    forwards = 4 if method in ("dpo", "o1_pruner") else 3
    linear = forwards * 2 * shape.parameters * result["tokens_trained"]
    assert result["model_flops_trained"] == linear + result["attention_flops_trained"]
    assert result["attention_flops_trained"] > 0
    assert result["usage"]["model_flops"] > result["usage"]["attention_flops"] > 0  # dev responses
    history = (run.path / "grid" / "0" / "history.jsonl").read_text().splitlines()
    assert len(history) == 2 and '"tokens_mean": 40.0' in history[0]
    assert not (run.path / "train").exists()


@pytest.mark.slow
def test_lora_trains_few_weights_and_keeps_a_plain_model(run: RunFolder) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    training = run.with_training(
        method="simpo", lora_rank=2, evaluations=1, epochs=1, dev_samples=1
    )
    result = fit(training.path, training.recipe, base=BASE)
    assert result["steps"] == 6
    linear = 4 * shape_of_model(load(training.recipe)[0]).parameters * result["tokens_trained"]
    assert result["model_flops_trained"] == linear + result["attention_flops_trained"]
    kept = run.path / "train" / "model"
    assert (kept / "model.safetensors").exists() and not (kept / "adapter_config.json").exists()


def test_lora_without_peft_is_one_line(run: RunFolder, monkeypatch: Any) -> None:
    import sys

    from dto.errors import DtoError

    monkeypatch.setitem(sys.modules, "peft", None)
    training = run.with_training(method="sft", lora_rank=2)
    with pytest.raises(DtoError, match=r"lora_rank = 2 needs peft"):
        fit(training.path, training.recipe, base=BASE)
