"""OpenAI's wire format: requests as they come, responses, stream pieces and errors as they go out.

Beyond the format: `early_exit`, `thinking_token_budget`, `include_trials` in a request;
`reasoning_content` (and `reasoning`) in messages and deltas; `exit` and the parts of `usage` in a
response.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dto.protocols import Message
from dto.records import Trial
from dto.serving.records import Answering, Event, Left, Reply, Thinking, Tokens

Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Tools = list[dict[str, Any]]


class RequestError(Exception):
    """A request that is refused: HTTP status, message, and the parameter that is wrong, if one."""

    def __init__(
        self, status: int, message: str, param: str | None = None, retry: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.retry = status, param, retry

    def as_json(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        kind = _KINDS.get(self.status, usual)
        said = {"message": str(self), "type": kind, "param": self.param, "code": self.status}
        return {"error": said}


_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Part(BaseModel):
    """A part of a message's content: text alone."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message; fields that the chat template may read pass through."""

    model_config = ConfigDict(extra="allow")
    role: str
    content: str | list[Part] | None = None

    def plain(self) -> Message:
        """The message as the chat template takes it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        message: Any = {**self.model_dump(exclude_none=True), "content": text}
        return message  # type: ignore[no-any-return]


class StreamOptions(BaseModel):
    """What a stream has beside its deltas."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class Ask(BaseModel):
    """The fields that chats and completions share. A field that is not listed is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: float | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    early_exit: bool | str | dict[str, Any] | None = None
    thinking_token_budget: Annotated[int, Field(ge=1)] | None = None
    include_trials: bool = False
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @model_validator(mode="after")
    def _supported(self) -> Ask:
        for field in ("frequency_penalty", "logit_bias"):
            if getattr(self, field):
                raise ValueError(f"{field} is not supported: leave it out")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self) -> dict[str, Any]:
        """The fields of `Sampling` that the request sets."""
        names = ("temperature", "top_p", "min_p", "presence_penalty")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.top_k is not None:
            given["top_k"] = max(0, self.top_k)  # -1 means off, as in vLLM
        if self.seed is not None:
            given["seed"] = self.seed % 2**63
        if (most := self.limit) is not None:
            given["max_tokens"] = most
        return given

    @property
    def limit(self) -> int | None:
        """The most tokens of thinking and answer together."""
        return self.max_tokens


class Chat(Ask):
    """A request to `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning_effort: str | None = None
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens of thinking and answer together."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def beyond(self) -> tuple[str, ...]:
        """The fields that no policy can serve."""
        schema = (self.response_format or {}).get("type", "text") != "text"
        asked = {"tools": self.tools, "response_format": schema, "logprobs": self.logprobs}
        return tuple(name for name, value in asked.items() if value)


class Text(Ask):
    """A request to `/v1/completions`: a prompt that begins a response, as text or token ids."""

    prompt: str | list[int] | list[str]
    echo: bool = False
    suffix: str | None = None
    logprobs: int | None = None
    best_of: int | None = None

    @property
    def beyond(self) -> tuple[str, ...]:
        """The fields that no policy can serve."""
        given = {name: getattr(self, name) for name in ("echo", "suffix", "logprobs", "best_of")}
        return tuple(name for name, value in given.items() if value)


def parse(body: bytes, kind: type[Ask]) -> Any:
    """Read a request's body. Raises RequestError 400, naming the field that is wrong."""
    try:
        data = json.loads(body)
    except ValueError as error:  # also invalid UTF-8
        raise RequestError(400, f"the body is not JSON: {error}") from None
    except RecursionError:
        raise RequestError(400, "the body is nested too deeply") from None
    if not isinstance(data, dict):
        raise RequestError(400, "the body is no JSON object")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or None
        if first["type"] == "extra_forbidden":
            raise RequestError(400, f"there is no field {where!r}", where) from None
        raise RequestError(400, f"{where or 'the request'}: {first['msg']}", where) from None


def exit_json(reply: Reply, trials: bool) -> dict[str, Any]:
    """What happened to the thinking."""
    said: dict[str, Any] = {
        "reason": reply.exit_reason,
        "position": reply.tokens.thinking,
        "confidence": reply.confidence,
        "trials_made": len(reply.trials),
    }
    return said | ({"trials": [_trial(trial) for trial in reply.trials]} if trials else {})


def _trial(trial: Trial) -> dict[str, Any]:
    names = ("position", "confidence", "answer", "tokens")
    return {name: getattr(trial, name) for name in names}


def usage_json(parts: Sequence[Tokens]) -> dict[str, Any]:
    """OpenAI's usage of all choices, and the parts of the tokens.

    `completion_tokens` are those of the responses. Trials, withdrawn and wasted tokens are beside
    them, in `dto`.
    """
    total = {key: sum(asdict(part)[key] for part in parts) for key in Tokens.__slots__}
    prompt = parts[0].prompt
    written = total["thinking"] + total["answer"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "completion_tokens_details": {"reasoning_tokens": total["thinking"]},
        "dto": {key: value for key, value in total.items() if key != "prompt"},
    }


@dataclass(frozen=True, slots=True)
class Form:
    """How the responses to one request are written: as a chat or as text, under one id."""

    id: str
    model: str
    chat: bool
    created: int
    trials: bool = False

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """A response in one piece."""
        kind = "chat.completion" if self.chat else "text_completion"
        return self._head(kind) | {
            "choices": [self._choice(choice) for choice in choices],
            "usage": usage_json([choice.reply.tokens for choice in choices]),
        }

    def _choice(self, choice: Choice) -> dict[str, Any]:
        reply, common = choice.reply, self._end(choice)
        if not self.chat:
            return {"index": choice.index, "text": choice.text, "logprobs": None} | common
        message = {
            "role": "assistant",
            "content": reply.answer,
            "reasoning_content": reply.thinking,
            "reasoning": reply.thinking,
        }
        return {"index": choice.index, "message": message, "logprobs": None} | common

    def _end(self, choice: Choice) -> dict[str, Any]:
        said = exit_json(choice.reply, self.trials)
        return {"finish_reason": choice.reply.finish_reason, "exit": said}

    def first(self, index: int) -> dict[str, Any]:
        """The first piece of a chat's stream: who speaks."""
        return self._piece(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, event: Event) -> dict[str, Any] | None:
        """The piece of a stream for an event; None if it has none."""
        match event:
            case Thinking(text) if self.chat:
                return self._piece(index, {"reasoning_content": text, "reasoning": text})
            case Answering(text) if self.chat:
                return self._piece(index, {"content": text})
            case Thinking(text) | Answering(text):
                return self._piece(index, text)
            case Left() if event.closing and not self.chat:
                return self._piece(index, event.closing)
        return None

    def last(self, choice: Choice) -> dict[str, Any]:
        """The last piece of a choice: why it ended, and what happened to its thinking."""
        return self._piece(choice.index, {} if self.chat else "", self._end(choice))

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The piece of a stream that holds its usage, if the client asked for it."""
        tokens = [choice.reply.tokens for choice in choices]
        return self._head(self._kind) | {"choices": [], "usage": usage_json(tokens)}

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _piece(self, index: int, said: Any, end: Mapping[str, Any] | None = None) -> dict[str, Any]:
        named = {"delta" if self.chat else "text": said}
        choice = {"index": index, **named, "logprobs": None, **(end or {"finish_reason": None})}
        return self._head(self._kind) | {"choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass(frozen=True, slots=True)
class Choice:
    """One response to a request. `text` has its thinking, what closed it, and its answer."""

    index: int
    reply: Reply
    text: str


def as_event(data: Mapping[str, Any] | str) -> bytes:
    """A server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"data: {text}\n\n".encode()
