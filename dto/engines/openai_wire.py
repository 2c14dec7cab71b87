"""Build requests to an OpenAI-compatible server, and read completions as they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from dto.engines.openai_http import RequestError
from dto.engines.shared import Cost, stop_met
from dto.prompts import Arguments
from dto.protocols import Capabilities, Chunk, Message, Sampling
from dto.text import StopReader, first_stop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.records import FinishReason

_BAN = -100.0
_TOKEN = "token_id:"


@dataclass(frozen=True, slots=True)
class Server:
    """The features of a server, as probed.

    `ids`: it supports vLLM's fields, and takes and returns token ids. `siblings`: the n samples of
    one request use seed, seed + 1, …. `stops`: the number of stop strings that it accepts (0 for a
    text server); with more, replies are cut here. `refused`: common fields that it does not accept.
    `adds_bos`: it adds a BOS to a prompt given as text. `context`: the context that it reports, or
    None. `template`: arguments that it passes to the chat template. `tags`: put around reasoning
    that a chat server returns apart from the content.
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
    tags: tuple[str, str] = ("<think>", "</think>")
    capabilities: Capabilities = field(default_factory=Capabilities)

    @property
    def path(self) -> str:
        """The path of requests."""
        return "/chat/completions" if self.api == "chat" else "/completions"

    def cuts_here(self, sampling: Sampling) -> bool:
        """Whether replies are cut at stop strings here, because the server cannot do it."""
        return len(sampling.stop) > self.stops


def request_body(
    server: Server,
    prompt: Sequence[int] | str | Sequence[Message],
    sampling: Sampling,
    *,
    n: int = 1,
    piece: int = 0,
) -> dict[str, Any]:
    """Build the JSON of one request, without the fields that the server refuses.

    With `piece` the reply is a stream with up to `piece` tokens per event, if the server supports
    that. Every setting is sent, because the server would otherwise use the model's generation
    config. Text servers never get the stop strings: most of them cut the stop string off without
    reporting which one it was.
    """
    body: dict[str, Any] = {
        "model": server.name,
        "messages" if server.api == "chat" else "prompt": prompt,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed if server.ids else sampling.seed % 2**31,
    }
    if sampling.presence_penalty or server.ids:
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
    """The choices of a reply or event; empty for an event with token counts only.

    Raises RequestError for anything else.
    """
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if choices is None and isinstance(reply, dict) and isinstance(reply.get("usage"), dict):
        return []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise RequestError(f"the server did not send a completion: {reply!r}")
    return choices


def choice_of(reply: Any) -> dict[str, Any]:
    """Return the only choice of a reply. Raises RequestError for more than one, or none."""
    choices = choices_of(reply)
    if len(choices) != 1:
        raise RequestError(f"the server sent {len(choices)} completions instead of one")
    return choices[0]


@dataclass(slots=True, eq=False, kw_only=True)
class Sample:
    """The part of a completion that has arrived.

    `from_ids`: the server returns token ids, which are the state and are decoded here. Before the
    end, `text` is only filled if there is a `reader`. Otherwise the text is the state, and it ends
    at the first stop string. Its ids are encoded piece by piece when `streaming`, else at the end;
    without a tokenizer there are none.

    `cut`: it was ended here at a stop string, while the server may continue. `received` counts ids
    (also after a cut), or pieces of text. `news` is set after each choice. `thinking`: the text is
    inside reasoning that the server returns apart, between `tags`.
    """

    sampling: Sampling
    tokenizer: PreTrainedTokenizerBase | None
    from_ids: bool
    streaming: bool
    reader: StopReader | None = None
    finish: FinishReason | None = None
    stop: str | None = None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[Mapping[int, float]] = field(default_factory=list)
    cut: bool = False
    tags: tuple[str, str] = ("<think>", "</think>")
    thinking: bool = False
    received: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def generated(self) -> int:
        """The number of tokens received; without a tokenizer each piece of text counts as one."""
        if self.from_ids or self.tokenizer is None:
            return self.received
        return len(self.ids) or len(self._encode(self.text))

    def chunk(self, ids: int, chars: int, cost: Cost, *, last: bool) -> Chunk:
        """The part after `ids` ids and `chars` characters. Raises RequestError without an end."""
        if last and self.finish is None:
            raise RequestError("the reply ended without a finish reason")
        wanted = self.sampling.logprobs
        return Chunk(
            token_ids=tuple(self.ids[ids:]),
            text=self.text[chars:],
            finish_reason=self.finish if last else None,
            prompt_tokens=cost.prompt,
            cached_tokens=cost.cached,
            stop=self.stop if last else None,
            logprobs=None if wanted is None else tuple(self.logprobs[ids:]),
            top_logprobs=tuple(self.top_logprobs[ids:]) if wanted else None,
        )

    def read(self, choice: Mapping[str, Any]) -> None:
        """Read a choice. Raises RequestError if it does not match the request."""
        if self.finish is not None and not self.from_ids:
            return
        reason = choice.get("finish_reason")
        if reason not in (None, "stop", "length"):
            raise RequestError(f"the server ended the completion with {reason!r}")
        finish = cast("FinishReason | None", reason)
        if self.from_ids:
            self._read_ids(choice, finish)
        else:
            self._read_text(self._piece(choice), finish)

    def _piece(self, choice: Mapping[str, Any]) -> str:
        """The next piece of text, with the tags before and after reasoning that comes apart."""
        thought, content = _reasoning(choice), _text(choice)
        opened = f"{self.tags[0]}\n" if thought and not self.thinking else ""
        self.thinking = self.thinking or bool(thought)
        closed = f"\n{self.tags[1]}\n\n" if content and self.thinking else ""
        self.thinking = self.thinking and not content
        return opened + thought + closed + content

    def _read_ids(self, choice: Mapping[str, Any], finish: FinishReason | None) -> None:
        ids = choice.get("token_ids")
        if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
            raise RequestError(
                "the server returned no token ids: check that it is still a vLLM server"
            )
        self.received += len(ids)
        if self.cut:
            return
        kept = self._until_stop(self.reader, ids) if self.reader else len(ids)
        self.ids.extend(ids[:kept])
        if self.sampling.logprobs is not None and ids:
            self._read_logprobs(choice.get("logprobs"), len(ids), kept, self.sampling.logprobs)
        if self.cut:
            self.finish = "stop"
            self.text = self._decode(self.ids)
        elif finish is not None:
            reason = choice.get("stop_reason")
            ended = self._ends_with_eos(finish, reason)
            self.text = self._decode(self.ids[:-1] if ended else self.ids)
            self.stop = stop_met(reason, self.text, self.sampling.stop)
            self.finish = finish

    def _until_stop(self, reader: StopReader, ids: list[int]) -> int:
        """Read ids up to a stop string; return how many belong to the sample."""
        for count, token in enumerate(ids, 1):
            piece, self.stop = reader.read(token)
            self.text += piece
            if self.stop is not None:
                self.cut = True
                return count
        return len(ids)

    def _decode(self, ids: list[int]) -> str:
        assert self.tokenizer is not None
        text: str = self.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def _ends_with_eos(self, finish: FinishReason, reason: object) -> bool:
        """Whether the last id ended the response. The model may have several such ids."""
        if finish != "stop" or isinstance(reason, str) or not self.ids or not self.tokenizer:
            return False
        last = self.ids[-1]
        return last == self.tokenizer.eos_token_id or last not in self.sampling.stop_token_ids

    def _read_logprobs(self, given: Any, received: int, kept: int, most: int) -> None:
        try:
            own = [float(value) for value in given["token_logprobs"]]
            if len(own) != received:
                raise ValueError
            if most:
                likeliest = [_likeliest(place, most) for place in given["top_logprobs"][:kept]]
                self.top_logprobs.extend(likeliest)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise RequestError(f"the server returned no logprobs for {received} tokens") from None
        self.logprobs.extend(own[:kept])

    def _read_text(self, piece: str, finish: FinishReason | None) -> None:
        before = len(self.text)
        self.received += bool(piece)
        self.text += piece
        reach = max(map(len, self.sampling.stop), default=0)
        if met := first_stop(self.text, self.sampling.stop, max(0, before - reach)):
            at, self.stop = met
            self.text, finish = self.text[: at + len(self.stop)], "stop"
            self.cut = True
        if self.streaming:
            self.ids += self._encode(self.text[before:])
        elif finish:
            self.ids += self._encode(self.text)
        if finish == "stop" and self.stop is None and self.tokenizer is not None:
            eos = self.tokenizer.eos_token_id
            self.ids += [] if eos is None else [eos]
        self.finish = finish

    def _encode(self, text: str) -> list[int]:
        if self.tokenizer is None:
            return []
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def read_event(samples: Sequence[Sample], event: Any) -> bool:
    """Give each sample its choice of a reply or event; return whether all ended, some by a cut.

    Raises RequestError for choices that were not requested.
    """
    for choice in choices_of(event):
        index = choice.get("index") or 0
        if index not in range(len(samples)):
            raise RequestError(f"the server sent completion {index!r} of {len(samples)} requested")
        samples[index].read(choice)
        samples[index].news.set()
    return all(sample.finish for sample in samples) and any(sample.cut for sample in samples)


def _likeliest(position: Mapping[str, Any], most: int) -> dict[int, float]:
    """The `most` most likely tokens of vLLM's "token_id:5" map, which may add the sampled one."""
    pairs = [(int(key.removeprefix(_TOKEN)), float(value)) for key, value in position.items()]
    return dict(sorted(pairs, key=lambda pair: -pair[1])[:most])


def _reasoning(choice: Mapping[str, Any]) -> str:
    """The reasoning of a message, or its next piece, if the server returns it apart."""
    message = choice.get("message") or choice.get("delta")
    values = message if isinstance(message, dict) else {}
    text = values.get("reasoning_content") or values.get("reasoning")
    return text if isinstance(text, str) else ""


def _text(choice: Mapping[str, Any]) -> str:
    """The text of a completion, a message, or the next piece of a message."""
    text = choice.get("text")
    if text is None:
        message = choice.get("message") or choice.get("delta") or {}
        text = message.get("content") if isinstance(message, dict) else None
    if text is not None and not isinstance(text, str):
        raise RequestError("the server returned a completion without text")
    return text or ""
