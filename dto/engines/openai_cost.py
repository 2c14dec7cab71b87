"""What a request to a server has cost, also one that was given up half-way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from dto.engines.openai_wire import Counts
from dto.protocols import Sampling
from dto.usage import ModelShape, Usage, attention_flops, charge, forward_flops

ABORT_TOKENS = 32
"""What a server may still generate for a stream between its closing here and its end there.

An allowance, since nobody reports it: vLLM stops within a few steps of the connection's end.
"""


@dataclass(slots=True)
class Cost:
    """Grows with the reply.

    `prompt`, `cached` and `begun` are of each sample, `generated` and `kept` of all together.
    `begun`: the server was asked, and did not refuse. `ended`: it generates no more.
    """

    prompt: int
    cached: int = 0
    generated: int = 0
    kept: int = 0
    failed: bool = False
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    def count(self, counts: Counts | None) -> None:
        """Take over what the server counted, where it did."""
        if counts is not None:
            self.prompt = counts.prompt or self.prompt
            self.cached = counts.cached
            self.generated = max(self.generated, counts.generated)

    def charge(self, shape: ModelShape | None, sampling: Sampling, n: int, unseen: int) -> None:
        """Charge n samples to the ledger.

        Of a request that was given up, `unseen` further tokens of each sample, at most those that
        were asked for, count as generated: an upper bound.
        """
        usage = Usage(requests=n, failed=n * self.failed)
        if self.begun.is_set():
            if not self.ended:
                most = max(self.generated, n * sampling.max_tokens)
                self.generated = min(self.generated + n * unseen, most)
            usage.prompt, usage.cached = n * self.prompt, n * self.cached
            usage.generated, usage.wasted = self.generated, max(0, self.generated - self.kept)
            end = self.prompt + max(0, -(-self.generated // n) - 1)
            usage.attention_flops = n * attention_flops(shape, self.cached, end)
            usage.model_flops = n * forward_flops(shape, self.cached, end)
        charge(usage)
