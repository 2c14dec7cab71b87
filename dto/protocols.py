"""What the method asks of the rest: tokens of an engine, grades of a grader.

State is token ids; a prompt given as messages is rendered once by the engine's chat template (with
one BOS) and is ids from then on.
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

    In vLLM's order: the presence penalty is taken off the logits, also of a greedy request; what
    the temperature makes of them is filtered by min-p (ids less likely than that share of the most
    likely one's), then by top-k, then by top-p of what is left. (`generate` of transformers applies
    min-p last.) `presence_penalty` counts each id once that was generated so far: in this request,
    and among the last `written` tokens of the prompt, which are of the same response; 0 counts
    those of the request alone. Where an engine's `Capabilities.presence` is `request` it cannot
    count the others.

    `seed` belongs to one request and is used for no other (`dto.records.derive`); sample j of n
    uses seed + j. `stop` strings end a request also when they cross token borders; the token that
    completes one is kept. `logprobs` is None for none, 0 for the sampled tokens' own, k for the k
    most likely at each position as well; they are those of the model, before temperature. `banned`
    tokens are never sampled.
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

    Only the last chunk has a finish reason. `text` is what became readable with these tokens: a
    character that is not complete yet comes with a later chunk; a final EOS is not in it. `stop` is
    the stop string met. `cached_tokens` of the `prompt_tokens` were not computed again. A request
    that went wrong has finish reason `failed`, and says why in `error`.
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
    """What came back for one prompt: all of it in one piece; nothing of a request that failed.

    `token_ids` include the EOS or the token that completed a stop string.
    """

    finish_reason: FinishReason
    ids_from: IdsFrom = "sampled"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, known once it serves.

    Without `token_prompts` it takes and gives text: prompts are decoded, and the ids of completions
    are encoded from their text (`ids_from`); with `messages_only` it goes on from no text of the
    model's, and can judge but not serve the stages. `logprobs` is the most that `Sampling.logprobs`
    may ask for, None for an engine that gives none. `resumable` is true when noise depends on
    (seed, absolute position): a prefix of a stream that is continued under the stream's own seed
    then gives the tokens that the uninterrupted one would have given. `filters`: it takes top_k and
    min_p. `presence` says what a presence penalty counts: the `response` so far, or what the
    `request` generates; None where the engine takes none.
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
    """Everything that needs tokens asks one of these; batching is its own business.

    Engines are async context managers; leaving one frees what it holds. They charge the usage of
    every request to `dto.usage`, in the caller's task, cancelled requests too. What an engine
    cannot do is said by :class:`dto.errors.EngineError` when it is built, or for a sampling option
    at the first request that asks for it.
    """

    model: str
    """Name of the model, as it goes into the tables."""
    tokenizer: PreTrainedTokenizerBase | None
    """None: a hosted model that takes text only."""
    shape: ModelShape | None
    """What attention FLOPs are computed from; None when the model's config is not known."""
    context: int
    """Most tokens of prompt and completion together."""
    capabilities: Capabilities
    """What it can do; to be read while it serves."""

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        """Sample n times; always n completions, some of which may be `failed`."""
        ...

    def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk]:
        """One sample as it grows. Use inside `async with aclosing(...)`: closing frees the slot."""
        ...

    def branched(self) -> AbstractAsyncContextManager[Engine]:
        """An engine for the requests of one response, which decodes them as one sequence.

        It serves while this one does. Raises EngineError where this one cannot do that.
        """
        ...

    async def score(self, prompt: TokenIds, continuation: TokenIds) -> tuple[float, ...]:
        """Logprobs of the continuation's tokens after the prompt (length: that of continuation)."""
        ...

    async def __aenter__(self) -> Engine:
        """Start serving."""
        ...

    async def __aexit__(self, *exc: object) -> None:
        """Stop serving; requests under way fail."""
        ...


class Graded(NamedTuple):
    """A grade, the answer it was given for, and why.

    A reason stands with what is `failed`, with wrong programs, and with answers that are wrong
    because comparing them exceeded a limit. `answer` is empty where there was none, and cut at
    2,000 characters.
    """

    grade: Grade
    answer: str
    reason: str = ""


class Grader(Protocol):
    """Decides whether answers equal gold answers: `dto.grading.Grader`, or one of your own.

    An answer that is wrong is a grade; what the grader could not do is grade `failed`, with a
    reason.
    """

    async def grade_conclusion(
        self, conclusion: str, gold: str, rule: str, question: str = ""
    ) -> Graded:
        """Grade the text after `</think>`, and only that."""
        ...

    async def grade_trial(self, text: str, gold: str, rule: str, question: str = "") -> Graded:
        r"""Grade a trial answer; `text` begins at the inducer's `\boxed` or at its brace."""
        ...

    async def grade_answer(self, answer: str, gold: str, rule: str, question: str = "") -> Graded:
        """Grade an answer that has been extracted already."""
        ...

    def final_answer(self, text: str, rule: str) -> str | None:
        """The answer that a text boxes or states; None: there is none."""
        ...

    def same(self, answer: str, other: str, rule: str) -> bool:
        """Whether two answers are equal, as far as that is seen without algebra."""
        ...
