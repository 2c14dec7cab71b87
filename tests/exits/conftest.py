"""A model that says what it is told to, one token a byte, so that tokens can be counted by eye."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dto.context import Context
from dto.engines.base import Completion, Prompt, Sampling
from dto.exits import ExitedResponse, answer
from dto.flops import ModelShape
from dto.grading import Grader
from dto.prompts import render
from dto.recipe import ExitSettings, Recipe
from dto.records import Problem
from dto.trajectories import prompt_ids

CLOSE = render("early_close")
INDUCERS = (render("trial_closed"), render("trial_inside"))
CONCLUSION = "\\boxed{2}"


@dataclass
class Writer:
    """An engine with one main response, trials that depend on what was thought, and a conclusion.

    `trial` gives a trial's text and the probability of each of its tokens; `fails` says of which
    prompts the request goes wrong; `unsure` lists the characters of the main response at which two
    tokens are equally likely.
    """

    tokenizer: PreTrainedTokenizerFast
    main: str
    trial: Callable[[str], tuple[str, float]] = lambda kept: ("2}", 0.0)
    conclusion: str = CONCLUSION
    fails: Callable[[str], bool] = lambda text: False
    unsure: tuple[int, ...] = ()
    ends: bool = True
    context: int = 100_000
    resumable: bool = True
    model: str = "writer"
    shape: ModelShape | None = field(default_factory=lambda: ModelShape(1, 1, 1))
    generated: int = 0
    requests: list[tuple[str, Sampling]] = field(default_factory=list)

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        assert n == 1
        assert sampling.max_tokens > 0
        text = self.tokenizer.decode(list(prompt))
        text = text[text.index("<think>\n") + len("<think>\n") :]
        self.requests.append((text, sampling))
        if self.fails(text):
            return [Completion((), "", "failed", len(prompt), error="engine on fire")]
        reply, probability = self._reply(text)
        ids = self.tokenizer.encode(reply, add_special_tokens=False)
        if self.ends:
            ids.append(self.tokenizer.eos_token_id)
        taken: list[int] = []
        stop, finish = None, "stop"
        for token in ids:
            taken.append(token)
            so_far = self.tokenizer.decode(taken)
            stop = next((each for each in sampling.stop if so_far.endswith(each)), None)
            if stop is not None:
                break
            if len(taken) == sampling.max_tokens and token != self.tokenizer.eos_token_id:
                finish = "length"
                break
        self.generated += len(taken)
        tops = None
        if sampling.logprobs:
            even = {0: math.log(0.5), 1: math.log(0.5)}
            tops = tuple(
                even if len(text) + index in self.unsure else {0: 0.0}
                for index in range(len(taken))
            )
        return [
            Completion(
                tuple(taken),
                self.tokenizer.decode([t for t in taken if t != self.tokenizer.eos_token_id]),
                finish,  # type: ignore[arg-type]
                len(prompt),
                stop=stop,
                logprobs=None
                if sampling.logprobs is None
                else (math.log(probability or 1e-9),) * len(taken),
                top_logprobs=tops,
            )
        ]

    def _reply(self, text: str) -> tuple[str, float]:
        for inducer in INDUCERS:
            if inducer in text:
                kept, _, said = text.partition(inducer)
                whole, probability = self.trial(kept)
                assert whole.startswith(said)
                return whole[len(said) :], probability
        if self.main.startswith(text):
            return self.main[len(text) :], 1.0
        assert text.endswith(CLOSE), text
        return self.conclusion, 1.0


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate(["<bos>", "<eos>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
    )
    return made


@pytest.fixture
def problem() -> Problem:
    return Problem("p" * 16, "toy", "test", "1 + 1?", "2")


@dataclass
class Outcome:
    """A response, the engine that gave it, and its parts as text."""

    response: ExitedResponse
    engine: Writer

    def text(self, part: str) -> str:
        return str(self.engine.tokenizer.decode(list(getattr(self.response, part))))


Respond = Callable[..., Any]


@pytest.fixture
def respond(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> Respond:
    """One response of a Writer under an exit; keywords beside those of the Writer: `exit` settings,
    `max_tokens`."""

    async def make(
        main: str, exit: dict[str, Any] | None = None, max_tokens: int = 1000, **writer: Any
    ) -> Outcome:
        engine = Writer(tokenizer, main, **writer)
        ctx = Context(Recipe(name="test"), engine, Grader(workers=1))
        prompt = prompt_ids(problem.question, tokenizer, ctx.recipe.model)
        settings = ExitSettings.model_validate({"name": "exit", **(exit or {})})
        sampling = Sampling(max_tokens, temperature=1.0, top_p=1.0, seed=11)
        return Outcome(await answer(problem, prompt, settings, ctx, sampling), engine)

    return make
