"""An engine that speaks a real vocabulary, and every policy on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path as FilePath
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dto.context import Context
from dto.exits import ExitedResponse, answer
from dto.grading import Grader
from dto.protocols import Completion, Prompt, Sampling
from dto.recipe import (
    ModelSettings,
    Recipe,
)
from dto.records import Problem
from dto.settings import open_policy
from tests.exits.conftest import Writer
from tests.vocabularies import NAMES, vocabulary

ROOT = FilePath(__file__).parents[2]
NANO = "nano"
ALL = (*NAMES, NANO)
RECIPE = Recipe(name="test", model=ModelSettings(family="default"))


@cache
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    if name == NANO:
        return AutoTokenizer.from_pretrained(ROOT / "dto" / "nano" / "weights" / "nano")
    return vocabulary(name).tokenizer


def encode(name: str, text: str) -> list[int]:
    return list(tokenizer(name).encode(text, add_special_tokens=False))


def decode(name: str, ids: Sequence[int]) -> str:
    return str(tokenizer(name).decode(list(ids)))


def context(name: str, engine: Any) -> Context:
    return Context(RECIPE, engine, Grader(workers=1))


@dataclass
class Speaker(Writer):
    """A Writer of a real vocabulary that keeps the ids of what it is asked."""

    asked: list[tuple[int, ...]] = field(default_factory=list)

    def _completion(self, prompt: Prompt, sampling: Sampling) -> Completion:
        text = self.tokenizer.decode(list(prompt))
        at = text.rindex("<think>") + len("<think>")
        at += text.startswith("\n", at)
        self.asked.append(tuple(prompt)[self.prompt_length(text[:at]) :])
        return super()._completion(encode_as(self.tokenizer, "<think>\n" + text[at:]), sampling)

    def prompt_length(self, text: str) -> int:
        return len(encode_as(self.tokenizer, text))

    def _reply(self, text: str) -> tuple[str, float]:
        head, box, said = text.rpartition("\\boxed")
        if box and head.endswith(("**Final Answer**\n", "is ", ":** ")) and "}" not in said:
            whole, probability = self.trial(head)
            return whole.removeprefix(said), probability
        if "```python" in text:
            return "print(8)\n```", 0.99
        if "</think>" in text.removeprefix(self.main):
            return self.conclusion, 1.0
        assert self.main.startswith(text), text
        return self.main[len(text) :], 1.0


def sure_in_a_display(kept: str) -> tuple[str, float]:
    return "{8}", 0.99 if "[" in kept else 0.5


def encode_as(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


THINKING = (
    "So that is \\( x = 8 \\).\n\nWait, is \\[ 5 + 3 = 8 \\]\n\nWait, so \\boxed{8}\n\n"
    'Alternatively, he asks "is it 8?"\n\nHmm, 好的。\n\nWait, it is 8.\n'
)
LONG = "so " * 400
EXITS: dict[str, dict[str, object]] = {
    "deer": {"policy": "deer", "monitor": "cue", "threshold": 0.9},
    "deer closed": {"policy": "deer", "inducer": "closed", "threshold": 0.9},
    "deer pro": {"policy": "deer", "mode": "pro", "threshold": 0.9},
    "deer entropy": {"policy": "deer", "monitor": "paragraph", "threshold": 0.9},
    "consistency": {"policy": "consistency", "monitor": "cue", "agree": 2},
    "code": {"policy": "code", "threshold": 0.9, "trial_tokens": 5},
    "entropy": {"policy": "entropy", "smoothing": 0.5, "variance": 1.0, "monitor": "paragraph"},
    "budget": {"policy": "budget", "budget": 13, "grace": 20},
    "static": {"policy": "static", "fraction": 0.5},
    "no_thinking": {"policy": "no_thinking"},
}


async def respond(
    name: str, exit: dict[str, object], main: str, **writer: Any
) -> tuple[ExitedResponse, Speaker]:
    words = vocabulary(name)
    engine = Speaker(words.tokenizer, main, trial=sure_in_a_display, **writer)
    message = [{"role": "user", "content": "5 + 3?"}]
    prompt = words.tokenizer.apply_chat_template(
        message, add_generation_prompt=True, return_dict=True, **words.template
    )["input_ids"]
    if not words.opens:
        prompt += encode(name, "<think>\n")
    ctx = context(name, engine)
    problem = Problem("p" * 16, "toy", "test", "5 + 3?", "8")
    sampling = Sampling(400, temperature=1.0, top_p=1.0, seed=1)
    settings = open_policy({"name": "exit", **exit})
    return await answer(problem, prompt, settings, ctx, sampling), engine
