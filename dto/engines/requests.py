"""A request under way: what the asyncio side asks, and what the worker fills in.

The worker alone appends; the asyncio side reads lists up to a length that it has read before, so
neither waits for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dto.protocols import Sampling
from dto.records import FinishReason
from dto.text import StopReader


@dataclass(slots=True, eq=False)
class Request:
    """One call: n samples of a prompt, or the score of a continuation.

    `changed` is called on the event loop when a sample has finished, and after each token when
    `streaming`. `limit` is the most tokens that one sample may have. A score has one sample, whose
    `logprobs` are those of `continuation`.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    limit: int
    changed: Callable[[], None]
    streaming: bool = False
    continuation: tuple[int, ...] = ()
    cancelled: bool = False
    samples: list[Sample] = field(default_factory=list)

    @property
    def length(self) -> int:
        """The most tokens that prompt and one sample may have together."""
        return len(self.prompt) + self.limit


@dataclass(slots=True, eq=False)
class Sample:
    """One sample of a request. `pieces` has one text per token when there is a reader.

    `present` are the ids that a presence penalty counts, in the order they came; none without one.
    `finish` is set last, when everything else is final. `started` counts the tokens whose
    computation has begun, so it is one ahead of `token_ids` during a step.
    """

    request: Request
    seed: int
    reader: StopReader | None = None
    cached_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[Mapping[int, float]] = field(default_factory=list)
    stop: str | None = None
    error: str = ""
    finish: FinishReason | None = None
    started: int = 0
    present: dict[int, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sampling = self.request.sampling
        if sampling.presence_penalty and sampling.written:
            self.present = dict.fromkeys(self.request.prompt[-sampling.written :])

    def see(self, token: int) -> None:
        """Count a token that was generated."""
        if self.request.sampling.presence_penalty:
            self.present[token] = None

    def fail(self, reason: str) -> None:
        """End as failed."""
        self.error = reason
        self.finish = "failed"
