"""What goes to an OpenAI-compatible server, and how its replies are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from dto.engines.openai_transport import RequestError
from dto.errors import EngineError
from dto.protocols import Capabilities, Message, Sampling
from dto.templates import Arguments

if TYPE_CHECKING:
    from dto.records import FinishReason

PATHS = {"completions": "/completions", "chat": "/chat/completions"}
_BAN = -100.0


@dataclass(frozen=True, slots=True)
class Server:
    """What a server turned out to be, and how it wants to be asked.

    `ids`: it speaks vLLM's dialect, takes token ids and returns them. `siblings`: the n samples of
    one request are those of seed, seed + 1, …. `stops`: so many stop strings may be sent, 0 to a
    server that takes text; where there are more, replies are cut here. `refused` are the common
    fields that it does not take. `adds_bos`: it puts a BOS of its own before a prompt given as
    text. `context` is what it says itself, None when it does not. `template` are the arguments that
    it gives to the chat template of messages.
    """

    name: str
    api: Literal["completions", "chat"] = "completions"
    ids: bool = False
    siblings: bool = False
    stops: int = 0
    refused: frozenset[str] = frozenset()
    adds_bos: bool = False
    context: int | None = None
    template: Arguments = field(default_factory=dict)
    capabilities: Capabilities = field(default_factory=Capabilities)

    def cuts_here(self, sampling: Sampling) -> bool:
        """Whether the stop strings are not for the server to find."""
        return len(sampling.stop) > self.stops


def check(server: Server, sampling: Sampling, where: str) -> None:
    """Raises EngineError for what the server at `where` cannot do."""
    can = server.capabilities
    if sampling.max_tokens < 1:
        raise EngineError(f"max_tokens is {sampling.max_tokens}: ask for at least one token")
    if sampling.logprobs is not None and sampling.logprobs > (
        -1 if can.logprobs is None else can.logprobs
    ):
        most = "none" if can.logprobs is None else f"at most {can.logprobs}"
        raise EngineError(
            f"logprobs = {sampling.logprobs}: {where} gives {most} with token ids — use a vLLM "
            "server, or a policy that needs none"
        )
    if sampling.json_schema is not None and not can.json_schema:
        raise EngineError(f"{where} does not hold {server.name!r} to a JSON schema")
    if sampling.banned and not can.banned:
        raise EngineError(f"{where} cannot ban tokens of {server.name!r}: use a vLLM server")
    if not server.ids and sampling.stop_token_ids:
        raise EngineError(f"{where} takes text, and no stop_token_ids: use a vLLM server")
    if (sampling.top_k or sampling.min_p) and not can.filters:
        raise EngineError(
            f"{where} takes text, neither top_k nor min_p (here {sampling.top_k} and "
            f"{sampling.min_p:g}): set both to 0, or use a vLLM server"
        )
    if sampling.presence_penalty and can.presence is None:
        raise EngineError(
            f"{where} takes no presence_penalty (here {sampling.presence_penalty:g}) for "
            f"{server.name!r}: set it to 0"
        )
    if "temperature" in server.refused and sampling.temperature != 1.0:
        raise EngineError(
            f"temperature = {sampling.temperature}: {where} samples {server.name!r} at a "
            "temperature of its own — ask for 1"
        )


def request_body(
    server: Server,
    prompt: Sequence[int] | str | Sequence[Message],
    sampling: Sampling,
    *,
    n: int = 1,
    piece: int = 0,
) -> dict[str, Any]:
    """The JSON of one request, without the fields that the server refuses.

    With `piece` the reply is a stream, whose events hold up to so many tokens where the server can
    be told.

    Every setting is sent, lest the server takes one from the model's generation config. Servers
    that take text never get the stop strings: most cut them off, and few say which it was.
    """
    body: dict[str, Any] = {
        "model": server.name,
        "messages" if server.api == "chat" else "prompt": prompt,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed if server.ids else sampling.seed % 2**31,
    }
    if sampling.presence_penalty:
        body["presence_penalty"] = sampling.presence_penalty
    if server.api == "chat" and server.template:
        body["chat_template_kwargs"] = dict(server.template)
    if sampling.json_schema is not None:
        schema = {"name": "answer", "schema": dict(sampling.json_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if piece:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if server.ids:
        body |= {
            "n": n,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "presence_penalty": sampling.presence_penalty,
            "repetition_penalty": 1.0,
            "return_token_ids": True,
            "skip_special_tokens": False,
            "stop": [] if server.cuts_here(sampling) else list(sampling.stop),
            "include_stop_str_in_output": True,
            "stop_token_ids": list(sampling.stop_token_ids),
        }
        if piece > 1:
            body["stream_interval"] = piece
        if sampling.logprobs is not None:
            body |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
        if sampling.banned:
            body["logit_bias"] = {str(token): _BAN for token in sampling.banned}
    if "max_tokens" in server.refused:
        body["max_completion_tokens"] = sampling.max_tokens
    return {key: value for key, value in body.items() if key not in server.refused}


def choices_of(reply: Any) -> list[dict[str, Any]]:
    """The choices of a reply or an event; none of an event that only counts.

    Raises RequestError for what is neither.
    """
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if choices is None and counts_of(reply) is not None:
        return []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise RequestError(f"the server sent what is no completion: {reply!r}")
    return choices


def choice_of(reply: Any) -> dict[str, Any]:
    """The only choice of a reply. Raises RequestError."""
    choices = choices_of(reply)
    if len(choices) != 1:
        raise RequestError(f"the server sent {len(choices)} completions, not one")
    return choices[0]


@dataclass(frozen=True, slots=True)
class Counts:
    """Usage as a server reports it; 0 for what it does not say."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0


def counts_of(reply: Any) -> Counts | None:
    """The usage in a reply or an event, None when there is none."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    found = usage.get("prompt_tokens"), cached, usage.get("completion_tokens")
    return Counts(*(count if isinstance(count, int) else 0 for count in found))


def finish_of(choice: Mapping[str, Any]) -> FinishReason | None:
    """Why a completion ended, None while it goes on. Raises RequestError for any other end."""
    reason = choice.get("finish_reason")
    if reason in (None, "stop", "length"):
        return cast("FinishReason | None", reason)
    raise RequestError(f"the server ended the completion with {reason!r}")
