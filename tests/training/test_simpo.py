"""What the trainer is given, and the loss that it computes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerBase

from dto.errors import DtoError
from dto.recipe import Recipe
from dto.training.pairs import TokenizedPair
from dto.training.trainers import SimPOTrainer
from tests.training.conftest import LONG, SHORT, tiny_model

R1_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|im_start|>{{ message['content'] }}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ message['content'].split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<think>\n{% endif %}"
)


@pytest.fixture(params=["plain", "adds_bos_and_drops_thinking"])
def any_tokenizer(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedTokenizerBase:
    if request.param == "plain":
        return tokenizer
    changed: Any = copy.deepcopy(tokenizer)
    changed.bos_token = "<|im_start|>"
    changed.chat_template = R1_TEMPLATE
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A",
        special_tokens=[("<|im_start|>", changed.bos_token_id)],
    )
    assert changed("7")["input_ids"][0] == changed.bos_token_id
    return changed  # type: ignore[no-any-return]


def pairs_for(tokenizer: PreTrainedTokenizerBase) -> list[TokenizedPair]:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    def letters(text: str) -> tuple[int, ...]:  # as a model may emit it, not as a text is encoded
        return tuple(token for letter in text for token in ids(letter))

    prompt = ids("Start with 7.<think>\n")
    eos = int(tokenizer.eos_token_id)
    return [
        TokenizedPair("a", prompt, (*ids(SHORT), eos), (*ids(LONG), eos)),
        TokenizedPair("b", prompt + prompt, (*letters("7 plus 5 is 2"), eos), ids(LONG)),
        TokenizedPair("c", prompt, (*ids(SHORT), eos), (*letters(LONG), eos, eos)),
    ]


def trainer_for(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, order: list[int], **train: Any
) -> SimPOTrainer:
    settings: dict[str, Any] = {"batch_size": 2, "beta": 1.5, "gamma": 0.4, "nll": 3.0} | train
    recipe = Recipe.model_validate({"name": "ids", "train": settings})
    args = SimPOTrainer.config(recipe, tmp_path)
    return SimPOTrainer(
        recipe, tiny_model(len(tokenizer)), args, tokenizer, pairs_for(tokenizer), order
    )


def test_collated_ids_are_the_pairs_ids(
    any_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    pairs, order = pairs_for(any_tokenizer), [2, 0, 1, 1, 2]
    trainer = trainer_for(any_tokenizer, tmp_path, order)
    seen: list[TokenizedPair] = []
    for batch in trainer.get_train_dataloader():
        for row in range(len(batch["prompt_input_ids"])):
            sides = []
            for side in ("chosen", "rejected"):
                mask = batch[f"{side}_attention_mask"][row].bool()
                labels = batch[f"{side}_labels"][row]
                response = batch[f"{side}_input_ids"][row][mask & (labels != -100)]
                assert torch.equal(labels[labels != -100], response)
                context = batch[f"{side}_input_ids"][row][mask & (labels == -100)]
                sides.append((tuple(context.tolist()), tuple(response.tolist())))
            assert sides[0][0] == sides[1][0]
            seen.append(
                TokenizedPair(pairs[order[len(seen)]].id, sides[0][0], sides[0][1], sides[1][1])
            )
    assert seen == [pairs[index] for index in order]


def test_text_would_not_have_kept_the_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    chosen = list(pairs_for(tokenizer)[1].chosen_ids)
    text = tokenizer.decode(chosen, skip_special_tokens=False)
    assert tokenizer.encode(text, add_special_tokens=False) != chosen


def test_loss_is_simpo_plus_the_anchor(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    pairs = pairs_for(tokenizer)
    trainer = trainer_for(tokenizer, tmp_path, [0, 1])
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch).detach()

    def logprobs(prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
        ids = torch.tensor([[*prompt, *response]])
        logits = trainer.model(ids).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]

    preference, anchor = [], []
    for pair in pairs[:2]:
        chosen = logprobs(pair.prompt_ids, pair.chosen_ids)
        rejected = logprobs(pair.prompt_ids, pair.rejected_ids)
        preference.append(-logsigmoid(1.5 * (chosen.mean() - rejected.mean()) - 0.4))
        anchor.append(-chosen)
    expected = (torch.stack(preference).mean() + 3.0 * torch.cat(anchor).mean()).detach()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert trainer.mean_loss() == pytest.approx(float(expected), rel=1e-5)
    assert trainer.mean_loss() is None


@pytest.mark.slow
def test_nan_loss_names_the_step(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    trainer = trainer_for(tokenizer, tmp_path, [0, 1, 2, 0, 1, 2], learning_rate=1e30)
    with pytest.raises(DtoError, match=r"loss is nan at step 2 of 3: lower train.learning_rate"):
        trainer.train()
