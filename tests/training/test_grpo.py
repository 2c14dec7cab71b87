"""What a step of GRPO on judging does to the weights, against its definition."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from dto.context import Context
from dto.drqa.judging import Judgement, Pick
from dto.drqa.records import LabelledChain
from dto.tables import read
from dto.training import grpo
from dto.training.weights import load
from tests.training.conftest import RunFolder
from tests.training.test_judging import with_labels
from tests.training.test_losses import logprobs

KL = 0.5
GROUPS: dict[str, list[tuple[Pick, tuple[int, ...]]]] = {
    "mixed": [("correct", (5, 6)), ("wrong", (7, 8, 9)), ("unreadable", (10,)), ("failed", ())],
    "flat": [("wrong", (5, 6)), ("wrong", (7,)), ("wrong", (8, 9)), ("wrong", (11,))],
}
REWARDS = {"correct": 1.0, "wrong": 0.0, "unreadable": -0.5}


def advantages(picks: list[Pick]) -> list[float]:
    """Reward less mean over standard deviation; a failed judgement has no part in it."""
    rewards = [REWARDS[pick] for pick in picks if pick != "failed"]
    scale = stdev(rewards) + 1e-4
    return [0.0 if pick == "failed" else (REWARDS[pick] - fmean(rewards)) / scale for pick in picks]


def test_a_step_follows_the_definition(
    run: RunFolder,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradient of -advantage · ratio + kl · divergence, a mean over all tokens of responses.

    TRL's own: the divergence is weighed by the ratio, too, by which its gradient is unbiased
    (2512.02556). Flat groups and failed responses move the weights by their divergence alone.
    """
    training = with_labels(
        run, tokenizer, group=4, batch_size=8, kl=KL, no_letter=-0.5, temperature=1.0
    )
    rows = list(read(run.path / "label" / "rows.parquet", LabelledChain))
    kinds = dict(zip((rows[1].id, rows[2].id), GROUPS, strict=True))

    async def scripted(row: LabelledChain, ctx: Context) -> list[Judgement]:
        return [Judgement(row.id, ids, "A", pick) for pick, ids in GROUPS[kinds[row.id]]]

    monkeypatch.setattr(grpo, "judge", scripted)
    model, _ = load(training.recipe)
    args = grpo.config(training.recipe, tmp_path)
    trainer = grpo.OnlineTrainer(model, args, tokenizer, rows, [1, 2], training.recipe)
    with torch.no_grad():  # away from the reference, or the divergence has no gradient
        for each in model.parameters():
            wave = torch.sin(torch.arange(each.numel(), dtype=torch.float32))
            each.add_(0.05 * wave.view_as(each))
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
            policy = logprobs(model, *side)
            with torch.no_grad():
                base = logprobs(reference, *side)
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
