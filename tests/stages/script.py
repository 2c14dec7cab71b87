"""A scripted engine whose replies depend on the request's number and the sample's index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerFast

from dto.protocols import Completion, Sampling, TokenIds
from dto.usage import ModelShape
from tests.engines.scripted import ScriptedEngine

EXIT = " Wait, I suddenly got the final answer to the whole problem. Final Answer: \\boxed{"
"""d_exit behind a full stop, where it comes without its ellipsis."""
FAIL = "\x00"
"""A scripted reply that fails."""
CUT = "\x01"
"""At the end of a scripted reply: it ran out of tokens there."""

Script = Callable[[str, int, int], str]
"""(prompt as text, request number, sample index) -> reply."""


class Scripted(ScriptedEngine):
    """Replies of a `Script`; a token costs one nat of logprob."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, script: Script, **kwargs: Any) -> None:
        settings = {"context": 100_000, "resumable": True, "shape": ModelShape(1, 1, 1), **kwargs}
        super().__init__(self._replies, tokenizer, **settings)
        self.script = script
        self.scored: list[tuple[str, int]] = []

    @property
    def calls(self) -> list[tuple[str, Sampling, int]]:
        """What was asked for, as text."""
        return [(self.tokenizer.decode(list(ids)), *rest) for ids, *rest in self.requests]

    def _replies(self, text: str, sampling: Sampling) -> list[str | Completion]:
        number, n = len(self.requests) - 1, self.requests[-1][2]
        return [self._fate(self.script(text, number, index)) for index in range(n)]

    def _fate(self, reply: str) -> str | Completion:
        if reply == FAIL:
            return Completion((), "", "failed", 0, error="engine on fire")
        if not reply.endswith(CUT):
            return reply
        ids = self.tokenizer.encode(reply.removesuffix(CUT), add_special_tokens=False)
        return Completion(tuple(ids), reply.removesuffix(CUT), "length", 0)

    async def score(self, prompt: TokenIds, continuation: TokenIds) -> tuple[float, ...]:
        self.scored.append((self.tokenizer.decode(list(prompt)), len(continuation)))
        return (-1.0,) * len(continuation)
