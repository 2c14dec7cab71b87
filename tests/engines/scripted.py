"""An engine that reads its answers from a table, for tests that must be exact."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from dto.engines.shared import encode_prompt, unbranched
from dto.errors import EngineError
from dto.prompts import Arguments
from dto.protocols import Capabilities, Chunk, Completion, Prompt, Sampling, TokenIds
from dto.records import FinishReason
from dto.text import StopReader
from dto.usage import ModelShape, Usage, charge

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Answers = Sequence[str | Completion]
Script = Mapping[str, Answers] | Callable[[str, Sampling], Answers]


class ScriptedEngine:
    """Answers by the text of the prompt.

    The script is a table from the prompt's text, or a function of it and of the sampling. Sample j
    of a request is answer j, starting again where there are fewer. A text is encoded, ends with EOS
    and obeys `max_tokens` and the stops like a sampled one; its tokens are certain (logprob 0). A
    completion comes back as it is, with the true number of prompt tokens. `requests` lists what was
    asked for.
    """

    def __init__(
        self,
        script: Script,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "scripted",
        context: int = 2048,
        shape: ModelShape | None = None,
        resumable: bool = False,
        template: Arguments | None = None,
    ) -> None:
        """Raises EngineError for a tokenizer without EOS, which texts end with."""
        if tokenizer.eos_token_id is None:
            raise EngineError(f"scripted engine {name!r}: its tokenizer needs an EOS token")
        self.model = name
        self.tokenizer: PreTrainedTokenizerBase | None = tokenizer
        self.shape = shape
        self.context = context
        self.capabilities = Capabilities(logprobs=1000, resumable=resumable)
        self.requests: list[tuple[tuple[int, ...], Sampling, int]] = []
        self._tokenizer = tokenizer
        self._script = script
        self._template = dict(template or {})

    async def __aenter__(self) -> ScriptedEngine:
        """Nothing to start."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Nothing to stop."""

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        """The first n answers. Raises EngineError for a prompt that the script does not hold."""
        ids = encode_prompt(prompt, self._tokenizer, self.model, self._template)
        completions = self._answers(ids, sampling, n)
        await asyncio.sleep(0)
        tokens = sum(len(completion.token_ids) for completion in completions)
        failed = sum(completion.finish_reason == "failed" for completion in completions)
        charge(Usage(requests=n, failed=failed, prompt=n * len(ids), generated=tokens))
        return completions

    async def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk]:
        """The first answer, token by token."""
        ids = encode_prompt(prompt, self._tokenizer, self.model, self._template)
        (completion,) = self._answers(ids, sampling, 1)
        tokens = completion.token_ids
        reader = StopReader(self._tokenizer.backend_tokenizer, ())
        read = delivered = 0
        try:
            for index in range(max(1, len(tokens))):
                await asyncio.sleep(0)
                last = index + 1 >= len(tokens)
                text = completion.text[read:] if last else reader.read(tokens[index])[0]
                read += len(text)
                delivered = min(index + 1, len(tokens))
                part = slice(index, index + 1)
                logprobs, top = completion.logprobs, completion.top_logprobs
                yield Chunk(
                    token_ids=tokens[part],
                    text=text,
                    finish_reason=completion.finish_reason if last else None,
                    prompt_tokens=len(ids),
                    stop=completion.stop if last else None,
                    logprobs=None if logprobs is None else logprobs[part],
                    top_logprobs=None if top is None else top[part],
                    error=completion.error if last else "",
                )
        finally:
            failed = int(completion.finish_reason == "failed")
            charge(Usage(requests=1, failed=failed, prompt=len(ids), generated=delivered))

    def branched(self) -> NoReturn:
        """Not here: raises EngineError."""
        raise unbranched(self.model)

    async def score(self, prompt: TokenIds, continuation: TokenIds) -> tuple[float, ...]:
        """All tokens are certain."""
        charge(Usage(requests=1, prompt=len(prompt) + len(continuation)))
        return (0.0,) * len(continuation)

    def _answers(self, ids: tuple[int, ...], sampling: Sampling, n: int) -> list[Completion]:
        self.requests.append((ids, sampling, n))
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
        if callable(self._script):
            answers = self._script(text, sampling)
        else:
            answers = self._script.get(text, ())
        if not answers:
            raise EngineError(f"scripted engine {self.model!r}: no answer to {text[-200:]!r}")
        chosen = [answers[index % len(answers)] for index in range(n)]
        return [
            replace(answer, prompt_tokens=len(ids))
            if isinstance(answer, Completion)
            else self._completion(answer, len(ids), sampling)
            for answer in chosen
        ]

    def _completion(self, answer: str, prompt_tokens: int, sampling: Sampling) -> Completion:
        eos = self._tokenizer.eos_token_id
        if prompt_tokens >= self.context:
            error = f"prompt has {prompt_tokens:,} tokens, context is {self.context:,}"
            return Completion((), "", "failed", prompt_tokens, error=error)
        limit = min(sampling.max_tokens, self.context - prompt_tokens)
        reader = StopReader(self._tokenizer.backend_tokenizer, sampling.stop)
        tokens: list[int] = []
        stop: str | None = None
        finish: FinishReason = "length"
        for token in (*self._tokenizer.encode(answer, add_special_tokens=False), eos)[:limit]:
            tokens.append(token)
            if token != eos:
                stop = reader.read(token)[1]
            if token == eos or stop is not None or token in sampling.stop_token_ids:
                finish = "stop"
                break
        shown = tokens[:-1] if tokens[-1] == eos else tokens
        return Completion(
            token_ids=tuple(tokens),
            text=str(self._tokenizer.decode(shown, skip_special_tokens=False)),
            finish_reason=finish,
            prompt_tokens=prompt_tokens,
            stop=stop,
            logprobs=None if sampling.logprobs is None else (0.0,) * len(tokens),
            top_logprobs=tuple({token: 0.0} for token in tokens) if sampling.logprobs else None,
        )
