"""Tests on a real pretrained LLM, SmolLM2-135M-Instruct, and on it as it overthinks.

`make test-real` fetches the model once and runs them; `make test` does not come here. Without the
model they are skipped, in CI they fail.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmarks.smollm2 import BASE, OVERTHINKS
from benchmarks.word_problems import problems as word_problems
from dto.recipe import ModelSettings
from dto.trajectories import prompt_ids
from tests.engines.served import Served

CACHE = Path(__file__).parents[2] / ".cache"


def folder(name: str) -> Path:
    path = CACHE / name
    if not (path / "config.json").is_file():
        reason = f".cache/{name} is not there: make real"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def load(path: Path) -> Served:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return Served(model.eval(), AutoTokenizer.from_pretrained(path))


@pytest.fixture(scope="session")
def overthinks() -> Path:
    """Folder of the model that thinks too long."""
    return folder(OVERTHINKS)


@pytest.fixture(scope="session")
def smollm2() -> Served:
    """The model as it is published, in float32."""
    return load(folder(BASE))


@pytest.fixture(scope="module")
def nano(overthinks: Path) -> Served:
    """The model of the conformance suite: here the one that thinks too long, in float32."""
    return load(overthinks)


BEGINNINGS = (
    "The sea was calm that morning, and",
    "My grandmother used to say that",
    "In the middle of the old town stands",
    "Dear Anna, thank you for",
    "The three most important things about a garden are the soil,",
    "He opened the door and",
    "Nobody knew why the train",
    "A good teacher never",
    "When the war was over, the farmers of the valley",
    "I have always wanted to",
)


@pytest.fixture(scope="module")
def prompts(nano: Served) -> list[list[int]]:
    """Twenty, of unequal length: beginnings of texts, which may go on in many ways, and questions.

    The model is sure of what it thinks about a question, and its response comes to an end.
    """
    settings = ModelSettings(name=OVERTHINKS)
    result = []
    asked = word_problems(seed=101, count=len(BEGINNINGS))
    for beginning, problem in zip(BEGINNINGS, asked, strict=True):
        result.append(nano.tokenizer.encode(beginning))
        result.append(list(prompt_ids(problem.question, nano.tokenizer, settings)))
    return result
