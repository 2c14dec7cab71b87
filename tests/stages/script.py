"""An engine that answers from a function, for cases that must be exact."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerFast

from dto.engines.base import Chunk, Completion, Prompt, Sampling, TokenIds
from dto.flops import ModelShape

EXIT = "... Wait, I suddenly got the final answer to the whole problem. Final Answer: \\boxed{"
FAIL = "\x00"
"""A scripted reply that fails."""
CUT = "\x01"
"""At the end of a scripted reply: it ran out of tokens there."""

Script = Callable[[str, int, int], str]
"""(prompt as text, request number, sample index) -> reply."""


@dataclass
class Scripted:
    """Replies from a function; a reply that is not cut and meets no stop string ends in EOS."""

    tokenizer: PreTrainedTokenizerFast
    script: Script
    context: int = 100_000
    resumable: bool = True
    model: str = "scripted"
    shape: ModelShape | None = field(default_factory=lambda: ModelShape(1, 1, 1))
    calls: list[tuple[str, Sampling, int]] = field(default_factory=list)
    scored: list[tuple[str, int]] = field(default_factory=list)

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        text = self.tokenizer.decode(list(prompt))
        number = len(self.calls)
        self.calls.append((text, sampling, n))
        return [self._reply(prompt, self.script(text, number, j), sampling) for j in range(n)]

    def _reply(self, prompt: Prompt, reply: str, sampling: Sampling) -> Completion:
        if reply == FAIL:
            return Completion((), "", "failed", len(prompt), error="engine on fire")
        cut = reply.endswith(CUT)
        reply = reply.removesuffix(CUT)
        met = [(reply.index(stop) + len(stop), stop) for stop in sampling.stop if stop in reply]
        if met:
            end, stop = min(met)
            reply = reply[:end]
        ids = tuple(self.tokenizer.encode(reply, add_special_tokens=False))
        if not met and not cut:
            ids = (*ids, self.tokenizer.eos_token_id)
        finish = "length" if cut and not met else "stop"
        done = Completion(ids, reply, finish, len(prompt), stop=stop if met else None)
        if len(ids) > sampling.max_tokens:
            ids = ids[: sampling.max_tokens]
            done = replace(
                done,
                token_ids=ids,
                text=self.tokenizer.decode(list(ids)),
                finish_reason="length",
                stop=None,
            )
        return done

    def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk]:
        raise NotImplementedError

    async def score(self, prompt: TokenIds, continuation: TokenIds) -> tuple[float, ...]:
        self.scored.append((self.tokenizer.decode(list(prompt)), len(continuation)))
        return (-1.0,) * len(continuation)

    async def __aenter__(self) -> Scripted:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass
