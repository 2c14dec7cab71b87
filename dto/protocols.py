"""The interfaces that the stages use: an engine samples tokens, a grader grades answers.

State is token ids. A prompt given as messages is rendered once by the model's chat template (with
one BOS) and is token ids from then on.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypedDict

from dto.records import FinishReason, Grade, IdsFrom

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.usage import ModelShape


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


TokenIds = Sequence[int]
Prompt = TokenIds | Sequence[Message]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. Temperature 0 is greedy; top_p 1, top_k 0 and min_p 0 switch those off.

    The order is vLLM's: subtract the presence penalty from the logits (of greedy requests too),
    apply the temperature, filter by min-p (drop ids less likely than this share of the most likely
    id's probability), by top-k, and by top-p of the rest. (`generate` of transformers applies min-p
    last.) `presence_penalty` applies once to each id that the response already has: those generated
    in this request, and those among the last `written` tokens of the prompt, which belong to the
    same response. An engine whose `Capabilities.presence` is `request` cannot count the latter.

    `seed` is used for one request only (`dto.records.derive`); sample j of n uses seed + j. `stop`
    strings may cross token borders; the token that completes one is kept. `logprobs`: None for
    none, 0 for those of the sampled tokens, k for those of the k most likely tokens as well. They
    are the model's own, before temperature. `banned` tokens are never sampled.
    """

    max_tokens: int
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    written: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    json_schema: Mapping[str, Any] | None = None
    banned: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next piece of a stream: one or several tokens.

    Only the last chunk has a finish reason. `text` is the text that these tokens made readable; an
    incomplete character comes with a later chunk, and a final EOS is left out. `stop` is the stop
    string that ended the request. `cached_tokens` of the `prompt_tokens` came from the prefix
    cache. A request that went wrong has finish reason `failed` and says why in `error`.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    stop: str | None = None
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[Mapping[int, float], ...] | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Completion(Chunk):
    """One sample in one piece; it has no tokens if the request failed.

    `token_ids` include the EOS, or the token that completed a stop string.
    """

    finish_reason: FinishReason
    ids_from: IdsFrom = "sampled"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The features of an engine, known once it serves.

    `token_prompts`: it takes and returns token ids. Otherwise prompts are decoded to text, and the
    ids of completions are encoded from their text (`ids_from`). `messages_only`: it cannot continue
    the model's own text, so it can judge but not serve the stages. `logprobs`: the largest value
    for `Sampling.logprobs`; None if it returns none. `resumable`: its noise depends on the seed and
    the absolute position, so continuing a prefix of a stream under the same seed gives the tokens
    of the uninterrupted stream. `filters`: it supports top_k and min_p. `presence`: a presence
    penalty counts the tokens of the whole `response` or only of the `request`; None if unsupported.
    """

    token_prompts: bool = True
    messages_only: bool = False
    logprobs: int | None = 20
    json_schema: bool = False
    banned: bool = True
    score: bool = True
    resumable: bool = False
    filters: bool = True
    presence: Literal["response", "request"] | None = "response"


class Engine(Protocol):
    """Samples tokens from a model; batching is its own business.

    Engines are async context managers; leaving one frees its resources. An engine charges the usage
    of every request, also of a cancelled one, to `dto.usage` in the caller's task. It raises
    :class:`dto.errors.EngineError` for unsupported features: when it is built, or for a sampling
    option at the first request that uses it.
    """

    model: str
    """The model's name in the tables."""
    tokenizer: PreTrainedTokenizerBase | None
    """None: a hosted model that takes text only."""
    shape: ModelShape | None
    """The sizes that attention FLOPs are computed from; None if the model's config is unknown."""
    context: int
    """Maximum number of tokens of prompt and completion together."""
    capabilities: Capabilities
    """Its features; valid while it serves."""

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        """Sample n completions; some may be `failed`."""
        ...

    def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk]:
        """Stream one sample. Use inside `async with aclosing(...)`: closing frees its slot."""
        ...

    def branched(self) -> AbstractAsyncContextManager[Engine]:
        """An engine that decodes all requests of one response in a single sequence.

        It serves as long as this engine does. Raises EngineError if this engine does not support
        that.
        """
        ...

    async def score(self, prompt: TokenIds, continuation: TokenIds) -> tuple[float, ...]:
        """Logprobs of the continuation's tokens after the prompt, one per token."""
        ...

    async def __aenter__(self) -> Engine:
        """Start serving."""
        ...

    async def __aexit__(self, *exc: object) -> None:
        """Stop serving; pending requests fail."""
        ...


class Graded(NamedTuple):
    """A grade, the graded answer, and the reason.

    There is a reason for `failed` grades, wrong programs, and answers that are wrong because
    comparing them exceeded a limit. `answer` is empty if none was found, and cut at 2,000
    characters.
    """

    grade: Grade
    answer: str
    reason: str = ""


class Grader(Protocol):
    """Grades answers against gold answers: `dto.grading.Grader`, or one of your own.

    If an answer cannot be graded, the grade is `failed`, with a reason.
    """

    async def grade_conclusion(
        self, conclusion: str, gold: str, rule: str, question: str = ""
    ) -> Graded:
        """Grade the text after `</think>`."""
        ...

    async def grade_trial(self, text: str, gold: str, rule: str, question: str = "") -> Graded:
        r"""Grade a trial answer; `text` begins at the inducer's `\boxed` or at its brace."""
        ...

    async def grade_answer(self, answer: str, gold: str, rule: str, question: str = "") -> Graded:
        """Grade an extracted answer."""
        ...

    def final_answer(self, text: str, rule: str) -> str | None:
        """Extract the answer that a text boxes or states; None if there is none."""
        ...

    def same(self, answer: str, other: str, rule: str) -> bool:
        """Whether two answers are equal, without algebra."""
        ...
