"""A model that says what it is told to, one token a byte, so that tokens can be counted by eye."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dto.context import Context
from dto.engines import open_engine
from dto.exits import ExitedResponse, answer
from dto.grading import Grader
from dto.nano import chain_problems
from dto.prompts import render
from dto.protocols import Capabilities, Chunk, Completion, Prompt, Sampling
from dto.recipe import ModelSettings, Recipe
from dto.records import Problem
from dto.settings import ExitPolicy, open_policy
from dto.text import StopReader
from dto.trajectories import prompt_ids
from dto.usage import ModelShape, Usage, charge

CLOSE = render("early_close")
INDUCERS = tuple(
    render(f"trial_{name}") for name in ("closed", "inside", "pro_1", "pro_2", "pro_3", "pro_4")
)
CONCLUSION = "\\boxed{2}"


@dataclass
class Writer:
    """An engine with one main response, trials that depend on what was thought, and a conclusion.

    `trial` gives a trial's text and the probability of each of its tokens; `fails` says of which
    prompts the request goes wrong; `unsure` lists the characters of the main response at which two
    tokens are equally likely. `slow` is how many seconds a token takes that is not streamed.
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
    shape: ModelShape | None = field(default_factory=lambda: ModelShape(1, 1, 1, 1000))
    piece: int = 1
    slow: float = 0.0
    generated: int = 0
    under_way: int = 0
    most_under_way: int = 0
    requests: list[tuple[str, Sampling]] = field(default_factory=list)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(resumable=self.resumable)

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        assert n == 1
        completion = self._completion(prompt, sampling)
        self._begin()
        try:
            await asyncio.sleep(self.slow * len(completion.token_ids))
        finally:
            self.under_way -= 1
        self._charge(prompt, len(completion.token_ids))
        return [completion]

    async def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk]:
        """The response in pieces of `piece` tokens."""
        whole = self._completion(prompt, sampling)
        ids, reader = whole.token_ids, StopReader(self.tokenizer.backend_tokenizer, ())
        delivered = 0
        self._begin()
        try:
            for start in range(0, max(1, len(ids)), self.piece):
                await asyncio.sleep(0)
                part = slice(start, start + self.piece)
                last = start + self.piece >= len(ids)
                eos = self.tokenizer.eos_token_id
                delivered += len(ids[part])
                yield Chunk(
                    ids[part],
                    "".join(reader.read(token)[0] for token in ids[part] if token != eos),
                    whole.finish_reason if last else None,
                    len(prompt),
                    logprobs=whole.logprobs and whole.logprobs[part],
                    top_logprobs=whole.top_logprobs and whole.top_logprobs[part],
                    error=whole.error,
                )
        finally:
            self.under_way -= 1
            self._charge(prompt, delivered)

    def _begin(self) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)

    def _charge(self, prompt: Prompt, tokens: int) -> None:
        self.generated += tokens
        charge(Usage(requests=1, prompt=len(prompt), generated=tokens))

    def _completion(self, prompt: Prompt, sampling: Sampling) -> Completion:
        assert sampling.max_tokens > 0
        text = self.tokenizer.decode(list(prompt))
        text = text[text.index("<think>\n") + len("<think>\n") :]
        self.requests.append((text, sampling))
        if self.fails(text):
            return Completion((), "", "failed", len(prompt), error="engine on fire")
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
        tops = None
        if sampling.logprobs:
            even = {0: math.log(0.5), 1: math.log(0.5)}
            tops = tuple(
                even if len(text) + index in self.unsure else {0: 0.0}
                for index in range(len(taken))
            )
        return Completion(
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
    `max_tokens`, a list that the Writer is added to, and a `policy` instead of `exit`."""

    async def make(
        main: str,
        exit: dict[str, Any] | None = None,
        max_tokens: int = 1000,
        engines: list[Writer] | None = None,
        policy: ExitPolicy | None = None,
        **writer: Any,
    ) -> Outcome:
        engine = Writer(tokenizer, main, **writer)
        if engines is not None:
            engines.append(engine)
        ctx = Context(Recipe(name="test"), engine, Grader(workers=1))
        prompt = prompt_ids(problem.question, tokenizer, ctx.recipe.model)
        policy = policy or open_policy({"name": "exit", **(exit or {})})
        sampling = Sampling(max_tokens, temperature=1.0, top_p=1.0, seed=11)
        return Outcome(await answer(problem, prompt, policy, ctx, sampling), engine)

    return make


@dataclass
class Embedded:
    """The embedded model, and its responses to the same six problems and seeds."""

    ctx: Context

    async def responses(self, max_tokens: int = 400, **exit: Any) -> list[ExitedResponse]:
        settings = open_policy({"name": "exit", **exit})
        model, tokenizer = self.ctx.recipe.model, self.ctx.tokenizer
        return await asyncio.gather(
            *(
                answer(
                    problem,
                    prompt_ids(problem.question, tokenizer, model),
                    settings,
                    self.ctx,
                    Sampling(max_tokens, temperature=1.0, top_p=1.0, seed=seed),
                )
                for seed, problem in enumerate(chain_problems("test", 6, seed=3))
            )
        )


@pytest.fixture
async def embedded() -> AsyncIterator[Embedded]:
    recipe = Recipe(name="test", model=ModelSettings(name="nano", family="nano"))
    async with open_engine(recipe.model) as engine, Grader(workers=1) as grader:
        yield Embedded(Context(recipe, engine, grader))
