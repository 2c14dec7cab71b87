"""The conformance suite on the model that thinks too long: fewer tokens, the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.smollm2 import OVERTHINKS
from benchmarks.word_problems import problems as word_problems
from dto.recipe import EvaluateSettings, ModelSettings, Recipe
from dto.records import Problem
from tests.engines.conformance import GREEDY, SAMPLED, Conformance
from tests.real.conftest import CACHE

CONTEXT = 256
MODEL = ModelSettings(
    name=str(CACHE / OVERTHINKS), context=CONTEXT, dtype="float32", slots=16, kv_bytes=2**29
)


class RealConformance(Conformance):
    """To be inherited; the fixtures `nano` and `prompts` come from the conftest here."""

    recipe = Recipe(
        name="conformance",
        model=MODEL,
        evaluate=EvaluateSettings(samples=1, temperature=0.0, max_tokens=64),
    )
    greedy = replace(GREEDY, max_tokens=16)
    sampled = replace(SAMPLED, max_tokens=16)
    requests = 40
    enough = 130
    tolerance = 1e-3  # nats: float32 adds up to 2e-4 over thirty layers

    def problems(self) -> Sequence[Problem]:
        return [
            Problem(f"p{number}", "words", "test", each.question, str(each.answer))
            for number, each in enumerate(word_problems(seed=102, count=1))
        ]
