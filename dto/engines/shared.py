"""Shared by all engines: checks of requests, their cost, and the text of a response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dto.errors import DtoError, EngineError
from dto.prompts import Arguments, render_chat
from dto.protocols import Capabilities, Chunk, Completion, Prompt, Sampling
from dto.records import IdsFrom
from dto.text import first_stop
from dto.usage import ModelShape, Usage, attention_flops, charge, forward_flops

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(slots=True)
class Cost:
    """Token counts of one request so far.

    `prompt` and `cached` are per sample, `generated` and `kept` the sums over all samples. `kept`
    tokens are part of a result, the others are wasted. `begun`: the request was accepted. `ended`:
    no more tokens will be generated.
    """

    prompt: int = 0
    cached: int = 0
    generated: int = 0
    kept: int = 0
    failed: bool = False
    begun: bool = False
    ended: bool = False

    def charge(
        self, shape: ModelShape | None, n: int = 1, *, most: int = 0, unseen: int = 0
    ) -> None:
        """Charge n samples to `dto.usage`.

        For an aborted request, `unseen` further tokens of each sample count as generated, up to
        `most` per sample: an upper bound. The last token of a sample is generated but not read.
        """
        usage = Usage(requests=n, failed=n * self.failed)
        if self.begun:
            if not self.ended:
                self.generated = min(self.generated + n * unseen, max(self.generated, n * most))
            usage.prompt, usage.cached = n * self.prompt, n * self.cached
            usage.generated, usage.wasted = self.generated, max(0, self.generated - self.kept)
            end = max(self.cached, self.prompt - (-self.generated // n) - 1)
            usage.attention_flops = n * attention_flops(shape, self.cached, end)
            usage.model_flops = n * forward_flops(shape, self.cached, end)
        charge(usage)


def check(sampling: Sampling, can: Capabilities, engine: str) -> None:
    """Raises EngineError for what an engine cannot do; `engine` says which it is."""
    if sampling.max_tokens < 1:
        raise EngineError(f"max_tokens is {sampling.max_tokens}: ask for at least one token")
    most = -1 if can.logprobs is None else can.logprobs
    if sampling.logprobs is not None and sampling.logprobs > most:
        raise EngineError(
            f"logprobs is {sampling.logprobs}: {engine} gives {'none' if most < 0 else most} — use "
            "another engine or a vLLM server, or a policy that needs fewer"
        )
    if sampling.json_schema is not None and not can.json_schema:
        raise EngineError(
            f"{engine} does not hold a model to a JSON schema: use vllm, or openai with a server "
            "that does"
        )
    if sampling.banned and not can.banned:
        raise EngineError(f"{engine} cannot ban tokens: use transformers, vllm or a vLLM server")
    if sampling.stop_token_ids and not can.token_prompts:
        raise EngineError(f"{engine} takes text, and no stop_token_ids: use a vLLM server")
    if (sampling.top_k or sampling.min_p) and not can.filters:
        raise EngineError(
            f"{engine} takes text, neither top_k nor min_p (here {sampling.top_k} and "
            f"{sampling.min_p:g}): set both to 0, or use a vLLM server"
        )
    if sampling.presence_penalty and can.presence is None:
        raise EngineError(
            f"{engine} takes no presence_penalty (here {sampling.presence_penalty:g}): set it to 0"
        )


def check_score(
    prompt: Sequence[int], continuation: Sequence[int], context: int, spare: int = 0
) -> None:
    """Raise EngineError if both and `spare` tokens exceed the context, or the prompt is empty."""
    if not prompt or len(prompt) + len(continuation) + spare > context:
        raise EngineError(
            f"score: {len(prompt):,} + {len(continuation):,} tokens (and {spare} spare ones) do "
            f"not fit into a context of {context:,}, or the prompt is empty: shorten them or raise "
            "model.context"
        )


def unfit(prompt: Sequence[object], context: int) -> str:
    """The reason why a prompt cannot be used (it is empty or fills the context), or empty."""
    if not prompt:
        return "the prompt is empty: send at least one token"
    if len(prompt) >= context:
        return (
            f"prompt has {len(prompt):,} tokens, context is {context:,}: shorten it or raise "
            "model.context"
        )
    return ""


def unbranched(model: str) -> EngineError:
    """The error of an engine that cannot decode a response and its trials as one sequence."""
    return EngineError(
        f"overlap: branches needs the transformers engine, but {model!r} is served by another: set "
        "model.engine to transformers, or overlap to true"
    )


def failure(prompt: Sequence[int], error: str, n: int = 1) -> Chunk:
    """Charge n requests that failed before they began; return the chunk that each of them gets."""
    charge(Usage(requests=n, failed=n))
    return Chunk((), "", "failed", len(prompt), error=error)


def completion_of(chunk: Chunk, ids_from: IdsFrom = "sampled") -> Completion:
    """Make a completion from its only chunk; a failed one keeps no tokens."""
    assert chunk.finish_reason is not None, "the chunk is not the last one"
    fields: dict[str, Any] = {name: getattr(chunk, name) for name in Chunk.__slots__}
    if chunk.finish_reason == "failed":
        fields |= {"token_ids": (), "text": "", "logprobs": None, "top_logprobs": None}
    return Completion(**fields, ids_from=ids_from)


def stop_met(reason: object, text: str, stops: Sequence[str]) -> str | None:
    """The stop string that vLLM reports; if the text has several, the one that begins first."""
    if not isinstance(reason, str):
        return None
    first = first_stop(text, stops)
    return first[1] if first else reason


def end_ids(eos: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """All ids that end a response: `eos` of a generation config, and the tokenizer's EOS."""
    ids = eos if isinstance(eos, list) else [eos]
    return frozenset(int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None)


def response_text(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], end_ids: frozenset[int]
) -> str:
    """The text of a response without its final EOS."""
    if ids and ids[-1] in end_ids:
        ids = ids[:-1]
    text: str = tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
    return text


def encode_prompt(
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    template: Arguments | None = None,
) -> tuple[int, ...]:
    """Convert a prompt to ids; messages go through the chat template, which adds the only BOS.

    `template` holds the template's arguments. Raises EngineError for messages if the tokenizer has
    no chat template, or one that cannot render them.
    """
    messages = [part for part in prompt if not isinstance(part, int)]
    if not messages:
        return tuple(part for part in prompt if isinstance(part, int))
    try:
        return render_chat(messages, tokenizer, model, template)
    except DtoError as error:
        raise EngineError(str(error)) from None
