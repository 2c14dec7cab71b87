"""What a step of GRPO on judging does to the weights, against its definition."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from dto.context import Context
from dto.drqa.records import LabelledChain
from dto.errors import DtoError
from dto.records import Problem
from dto.tables import read
from dto.training import dev, grpo
from dto.training.dev import Judgement, Pick
from dto.training.fit import fit
from dto.training.weights import load
from tests.training.conftest import RunFolder, make_run
from tests.training.test_judging import with_labels
from tests.training.test_losses import BASE, logprobs

KL = 0.5
GROUPS: dict[str, list[tuple[Pick, tuple[int, ...]]]] = {
    "mixed": [("correct", (5, 6)), ("wrong", (7, 8, 9)), ("unreadable", (10,)), ("failed", ())],
    "flat": [("wrong", (5, 6)), ("wrong", (7,)), ("wrong", (8, 9)), ("wrong", (11,))],
}
REWARDS = {"correct": 1.0, "wrong": 0.0, "unreadable": -0.5}


def perturb(model: Any) -> None:
    """Change all weights a little, the same way each time."""
    with torch.no_grad():
        for each in model.parameters():
            wave = torch.sin(torch.arange(each.numel(), dtype=torch.float32))
            each.add_(0.05 * wave.view_as(each))


def advantages(picks: list[Pick]) -> list[float]:
    """Reward less mean over standard deviation; a failed judgement has no part in it."""
    rewards = [REWARDS[pick] for pick in picks if pick != "failed"]
    scale = stdev(rewards) + 1e-4
    return [0.0 if pick == "failed" else (REWARDS[pick] - fmean(rewards)) / scale for pick in picks]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_step_follows_the_definition(
    temperature: float,
    run: RunFolder,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradient of -advantage · ratio + kl · divergence, a mean over all tokens of responses.

    TRL's own: the divergence is weighed by the ratio, too, by which its gradient is unbiased
    (2512.02556). Flat groups and failed responses move the weights by their divergence alone.
    Probabilities are those at the temperature that is sampled at.
    """
    training = with_labels(
        run, tokenizer, group=4, batch_size=8, kl=KL, no_letter=-0.5, temperature=temperature
    )
    rows = list(read(run.path / "label" / "rows.parquet", LabelledChain))
    kinds = dict(zip((rows[1].id, rows[2].id), GROUPS, strict=True))

    async def scripted(row: LabelledChain, ctx: Context) -> list[Judgement]:
        return [Judgement(row.id, ids, "A", pick) for pick, ids in GROUPS[kinds[row.id]]]

    monkeypatch.setattr(grpo, "judge", scripted)
    model, _ = load(training.recipe)
    args = grpo.OnlineTrainer.config(training.recipe, tmp_path)
    trainer = grpo.OnlineTrainer(training.recipe, model, args, tokenizer, rows, [1, 2])
    perturb(model)  # away from the reference, or the divergence has no gradient
    model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.current_gradient_accumulation_steps = 1  # else `train` sets it
    loss = trainer.compute_loss(model, batch)
    model.zero_grad()
    loss.backward()
    found = [each.grad.clone() for each in model.parameters() if each.grad is not None]

    reference, _ = load(training.recipe)
    end = int(tokenizer.eos_token_id)
    terms = []
    for row in rows[1:3]:
        group = GROUPS[kinds[row.id]]
        own = advantages([pick for pick, _ in group])
        for advantage, (_, ids) in zip(own, group, strict=True):
            side = (row.prompt_ids, ids or (end,))
            policy = logprobs(model, *side, temperature)
            with torch.no_grad():
                base = logprobs(reference, *side, temperature)
            ratio = torch.exp(policy - policy.detach())
            divergence = torch.exp(base - policy) - (base - policy) - 1
            terms.append(ratio * (KL * divergence - advantage))
    expected = torch.cat(terms).mean()
    model.zero_grad()
    expected.backward()
    wanted = [each.grad for each in model.parameters() if each.grad is not None]
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)
    assert max(float(each.abs().max()) for each in wanted) > 1e-3
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("method", ["grpo", "drqa"])
def test_what_is_trained_on_is_sampled_from_what_is_trained(
    method: str,
    run: RunFolder,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No top-p and the like, and the temperature of the loss; measurements keep the recipe's."""
    narrow = {"top_p": 0.8, "temperature": 0.7, "top_k": 3, "min_p": 0.1, "presence_penalty": 0.5}
    known = {key: narrow[key] for key in narrow if key in type(run.recipe.sample).model_fields}
    training = with_labels(run, tokenizer, method=method)
    sample = training.recipe.sample.model_copy(update=known)
    recipe = training.recipe.model_copy(update={"sample": sample})
    rows: list[Any] = list(
        read(run.path / "label" / "rows.parquet", LabelledChain)
        if method == "drqa"
        else read(run.path / "problems" / "rows.parquet", Problem)
    )
    seen: list[Any] = []
    original = grpo.respond

    def watched(model: Any, words: Any, asked: Any, recipe: Any, **options: Any) -> Any:
        seen.append(recipe.sample)
        return original(model, words, asked, recipe, **options)

    monkeypatch.setattr(grpo, "respond", watched)
    model, _ = load(recipe)
    trainer = grpo.OnlineTrainer(
        recipe, model, grpo.OnlineTrainer.config(recipe, tmp_path), tokenizer, rows, [1, 2]
    )
    trainer._responses([rows[1].id] * 2, trainer)
    (used,) = seen
    off = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0}
    assert {key: getattr(used, key) for key in known if key != "temperature"} == {
        key: off[key] for key in known if key != "temperature"
    }
    assert used.temperature == trainer.temperature == 0.7
    measured = dev.sampled(recipe, 2).sample
    assert {key: getattr(measured, key) for key in known} == known


def test_a_response_that_ends_in_any_end_of_sequence_has_ended(
    run: RunFolder, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Models have several; the tokenizer names one, with which shorter responses are padded."""
    training = run.with_training(method="grpo", group=2, batch_size=8)
    model, _ = load(training.recipe)
    others = list(range(0, len(tokenizer), 3))
    model.generation_config.eos_token_id = [int(tokenizer.eos_token_id), *others]
    rows = [row for row in read(run.path / "problems" / "rows.parquet", Problem)][:4]
    args = grpo.OnlineTrainer.config(training.recipe, tmp_path)
    words = copy.deepcopy(tokenizer)
    trainer = grpo.OnlineTrainer(training.recipe, model, args, words, rows, [0, 1, 2, 3])
    model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    ends = {int(tokenizer.eos_token_id), *others}
    last = []
    for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True):
        response = ids[mask.bool()].tolist()
        assert not ends & set(response[:-1])
        last.append(response[-1])
    assert set(last) <= ends and set(last) - {int(tokenizer.eos_token_id)}
    assert trainer._metrics["train"]["completions/clipped_ratio"] == [0.0]


def steps_of(run: RunFolder) -> list[dict[str, Any]]:
    """The rows of `steps.jsonl` without their speed."""
    rows = [json.loads(line) for line in (run.path / "train" / "steps.jsonl").open()]
    return [{key: row[key] for key in row if key != "tokens_per_second"} for row in rows]


def by_place(settings: Any) -> Callable[[Sequence[Any]], list[float]]:
    """A reward that differs in each group, so that each step changes the weights."""
    return lambda responses: [float(place) for place in range(len(responses))]


class Killed(BaseException):
    """A kill -9, to the files of a training."""


BUDGET = {"learning_rate": 1e-3, "epochs": 9, "policy_tokens": 5_000}


@pytest.mark.slow(seconds=7)
@pytest.mark.parametrize(
    ("method", "settings", "killed_at"),
    [
        ("grpo", {"learning_rate": 1e-3}, 0.45),
        ("drqa", {"lora_rank": 2, "learning_rate": 1e-2}, 0.8),
        ("grpo", BUDGET, 0.6),
        ("grpo", BUDGET, 1.0),
    ],
    ids=["grpo", "drqa-lora", "budget", "ended"],
)
def test_a_killed_training_goes_on_where_it_was(
    method: str,
    settings: dict[str, Any],
    killed_at: float,
    run: RunFolder,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its samples, learning rates, spent tokens and files are those of one without a kill."""
    monkeypatch.setattr(grpo, "reward_of", by_place)
    monkeypatch.setattr(grpo, "judging", lambda picks, no_letter: by_place(None)(picks))
    common = {"method": method, "keep": "last", "collapse_truncated": 1.0, "collapse_points": 200.0}
    settings = common | {"warmup_steps": 2, "evaluations": 4, "epochs": 1} | settings
    whole = with_labels(
        make_run(tmp_path / "whole", tokenizer, model_folder), tokenizer, **settings
    )
    expected = fit(whole.path, whole.recipe, base=BASE)
    training = with_labels(run, tokenizer, **settings)
    sampled: list[int] = []
    deaths = [round(killed_at * expected["steps"])]
    original = grpo.OnlineTrainer._responses

    def watched(self: Any, *args: Any) -> Any:
        if self.state.global_step in deaths:
            deaths.clear()
            raise Killed
        sampled.append(self.state.global_step)
        return original(self, *args)

    monkeypatch.setattr(grpo.OnlineTrainer, "_responses", watched)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        if killed_at == 1.0:
            patch.setattr("dto.training.fit._result", Mock(side_effect=Killed))
        fit(training.path, training.recipe, base=BASE)
    done = [json.loads(line)["step"] for line in (run.path / "train/history.jsonl").open()][-1]
    sampled.clear()
    result = fit(training.path, training.recipe, base=BASE)
    assert sampled == [*range(done, expected["steps"])] and done > 0
    for name in ("history.jsonl", "model/model.safetensors"):
        one, other = (each.path / "train" / name for each in (training, whole))
        assert one.read_bytes() == other.read_bytes()
    assert steps_of(training) == steps_of(whole)
    base = load_file(model_folder / "model.safetensors")
    kept = load_file(whole.path / "train" / "model" / "model.safetensors")
    assert any(not torch.equal(kept[name], base[name]) for name in base)
    clocks = {"peak_memory", "train_seconds", "dev_seconds", "seconds"}
    assert {key: result[key] for key in result.keys() - clocks} == {
        key: expected[key] for key in expected.keys() - clocks
    }


@pytest.mark.slow
def test_a_reward_that_fails_stops_the_training_in_one_line(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "def short(responses):\n    return [float(response.tokens) for response in responses[1:]]\n"
    )
    (tmp_path / "short_rewards.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    training = run.with_training(
        method="grpo", group=2, batch_size=4, reward="short_rewards:short", reward_settings={}
    )
    with pytest.raises(
        DtoError, match=r"'short_rewards:short' returned \[\d+\.0\] for 2 responses"
    ):
        fit(training.path, training.recipe)
