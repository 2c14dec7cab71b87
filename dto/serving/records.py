"""What a caller sees of a response: events while it is written, and their sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dto.exits.path import ExitedResponse
from dto.records import Trial


class Thinking(NamedTuple):
    """Text of the thinking, as it is generated.

    The last words before an exit may be withdrawn again: `Left.position` and `Reply` say what was
    kept.
    """

    text: str


class Tried(NamedTuple):
    """A trial answer: what the model would answer now, and how sure it is (0 to 1)."""

    trial: Trial


class Left(NamedTuple):
    """The thinking is over.

    `reason`: `closed` (by the model itself), `policy`, `budget` or `asked` (`answer_now`).
    `position` counts the tokens of the response before it. `confidence` is that of the trial at
    which the policy left; None without one. `closing` is the text that closes the thinking.
    """

    reason: str
    position: int
    confidence: float | None = None
    closing: str = ""


class Answering(NamedTuple):
    """Text of the answer, as it is generated. With `anew` it replaces all text before it."""

    text: str
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one response.

    `prompt` and `inserted` were read, the others generated: `thinking` and `answer` are in the
    response; `trial` and `withdrawn` are not (tokens that an exit took back); `wasted` ones were
    generated for requests that were then cancelled.
    """

    prompt: int
    thinking: int
    trial: int
    answer: int
    inserted: int
    withdrawn: int
    wasted: int

    @property
    def generated(self) -> int:
        """All tokens that the model generated."""
        return self.thinking + self.trial + self.answer + self.withdrawn + self.wasted


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole response: the sum of its events.

    `answer` is what a user reads, `boxed` the final answer that it boxes or states (None if there
    is none). `seconds_to_answer` is the time to the first token of the answer; None if none came.
    `response` has every token id. A failed response has finish reason `failed` and says why in
    `error`.
    """

    thinking: str
    answer: str
    boxed: str | None
    exit_reason: str
    finish_reason: str
    confidence: float | None
    trials: tuple[Trial, ...]
    tokens: Tokens
    seconds: float
    seconds_to_answer: float | None
    response: ExitedResponse
    error: str = ""

    def __str__(self) -> str:
        return self.answer


Event = Thinking | Tried | Left | Answering | Reply
"""What a stream yields; a :class:`Reply` comes last."""
