"""The embedded model in memory, and prompts of unequal length for it."""

from __future__ import annotations

import pytest
import torch

from dto.nano import chain_problems
from dto.recipe import resolve
from tests.engines.served import Served


@pytest.fixture(scope="session")
def nano() -> Served:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve("nano")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Served(model.eval(), AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="session")
def prompts(nano: Served) -> list[list[int]]:
    """Eighty prompts of 10 to 90 tokens."""
    result = []
    for index, problem in enumerate(chain_problems("test", 80, seed=0)):
        text = nano.tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.question}],
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = nano.tokenizer.encode(text, add_special_tokens=False)
        extra = nano.tokenizer.encode(problem.question, add_special_tokens=False)
        result.append(ids + extra[: 3 * (index % 9)])
    return result
