"""Probe a server before any work: the model's local tokenizer, and the server's features.

The probe sends a few tiny requests. It tests each feature instead of trusting the server: a server
that accepts a field and ignores it does not support it.
"""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from dto.engines.models import load_tokenizer, parameters_of, shape_of_config
from dto.engines.openai_http import RequestError, Transport
from dto.engines.openai_wire import Server, choice_of, choices_of, request_body
from dto.engines.server import WAYS_OUT, server_command
from dto.engines.shared import Cost
from dto.errors import EngineError
from dto.protocols import Capabilities, Message, Sampling
from dto.recipe import resolve
from dto.tags import shown_tags
from dto.usage import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.recipe import ModelSettings

_REQUEST = re.compile(r"/(?:chat/completions|completions|models|responses)$")
_QUESTION = "Name a number."
_MESSAGES: tuple[Message, ...] = ({"role": "user", "content": _QUESTION},)
_SHORT = Sampling(max_tokens=16, temperature=0.0, top_p=1.0)
_GREEDY = replace(_SHORT, max_tokens=1)
_SAMPLED = Sampling(max_tokens=8, temperature=1.0, top_p=1.0, seed=7)
_LOGPROBS = (20, 5, 1, 0)
_STOPS = (64, 16, 4, 1)  # vLLM accepts four, or the number in its VLLM_MAX_STOP_STRINGS
_DROPPABLE = ("stream_options", "max_tokens", "temperature", "top_p", "seed")
_SCHEMA = {
    "type": "object",
    "properties": {"number": {"type": "integer"}},
    "required": ["number"],
    "additionalProperties": False,
}
_TEXT_ONLY = Capabilities(
    token_prompts=False, logprobs=None, banned=False, score=False, filters=False, presence="request"
)
_Prompt = Sequence[int] | str | Sequence[Message]


def known_here(
    settings: ModelSettings, name: str
) -> tuple[PreTrainedTokenizerBase | None, ModelShape | None, int | None]:
    """Tokenizer, shape and context of a served model; None for each that is unknown here.

    Raises EngineError if `model.tokenizer` is set and cannot be loaded.
    """
    from transformers import AutoConfig

    source, revision = resolve(name), settings.revision
    if settings.tokenizer is not None:
        source, revision = resolve(settings.tokenizer), None
        title = f"model.tokenizer {settings.tokenizer!r}"
        tokenizer = load_tokenizer(settings, title=title)
    elif settings.server is None or not (Path(source).is_dir() or source.count("/") == 1):
        return None, None, None  # the server's name for the model is neither a folder nor a Hub id
    else:
        try:
            tokenizer = load_tokenizer(settings, name)
        except EngineError:
            return None, None, None
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
        limit = getattr(config, "max_position_embeddings", None)
        return tokenizer, shape_of_config(config, parameters_of(config)), limit
    except (OSError, ValueError, KeyError, AttributeError):
        return tokenizer, None, None


async def find_out(
    transport: Transport,
    settings: ModelSettings,
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Server:
    """Find out how the server serves the model `name`.

    `api` auto means completions with token ids if the server supports vLLM's fields, else
    completions with text, else chat. Without a tokenizer it means chat. Raises EngineError if the
    server is down, does not accept the model or the key, or answers neither kind of request.
    """
    served, context = await _model(transport, name)
    failures: list[str] = []
    statuses: list[int | None] = []
    if settings.api != "chat" and tokenizer is not None:
        prompt = tokenizer.encode(_QUESTION, add_special_tokens=False)
        try:
            return await _Probe(transport, Server(served, ids=True, context=context), prompt).ids()
        except RequestError as error:
            failures.append(f"completions with token ids: {error.reason}")
            statuses.append(error.status)
            _give_up_early(transport, error)
        try:
            return await _Probe(transport, Server(served, context=context)).text(len(prompt))
        except RequestError as error:
            failures.append(f"completions: {error.reason}")
            statuses.append(error.status)
    if settings.api == "completions" and tokenizer is None:
        raise EngineError(
            f"completions need the tokenizer of model {name!r}: name a Hub id or a folder in "
            "model.tokenizer, or set model.api to chat"
        )
    if settings.api != "completions":
        try:
            shown = shown_tags(settings)
            server = Server(
                served,
                "chat",
                context=context,
                template=settings.template,
                tags=(shown.open, shown.close),
            )
            return await _Probe(transport, server, _MESSAGES).text()
        except RequestError as error:
            if "chat_template_kwargs" in error.reason:
                raise EngineError(
                    f"model.template: {transport.server} accepts no arguments for a chat template "
                    f"({error.reason}): unset it, or use a vLLM or SGLang server"
                ) from None
            failures.append(f"chat: {error.reason}")
            statuses.append(error.status)
            _give_up_early(transport, error)
    better = _better_url(transport.server) if {404, 405}.issuperset(statuses) else None
    hint = "" if better is None else f"did you mean model.server={better}? "
    raise EngineError(f"model {name!r} does not answer — {hint}{'; '.join(failures)}")


def _better_url(server: str) -> str | None:
    """The base URL that was probably meant: without the path of a request, and with `/v1`."""
    parts = urlsplit(server)
    before, found, after = f"{parts.path.rstrip('/')}/".partition("/v1/")
    if found and not after:
        return None
    path = f"{before if found else _REQUEST.sub('', before.rstrip('/'))}/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _give_up_early(transport: Transport, error: RequestError) -> None:
    """Raise EngineError if no other path can help: a rejected key, or an overloaded server."""
    if error.status in (401, 403):
        raise EngineError(
            f"{error.reason} — put the server's API key into the environment variable "
            f"{transport.key_name}, or name another one in model.api_key"
        )
    if error.status is not None and (error.status == 429 or error.status >= 500):
        raise EngineError(f"{error.reason} — check the server, then run the same command again")


async def _model(transport: Transport, name: str) -> tuple[str, int | None]:
    """The server's name for the model, and its context if the server reports it (vLLM does)."""
    try:
        reply = await transport.models()
    except RequestError as error:
        if error.status is None:
            raise EngineError(
                f"{error.reason}{WAYS_OUT[0]} ({server_command(name)}), or correct model.server"
            ) from None
        _give_up_early(transport, error)
        return name, None  # not every server has a list of models
    rows = reply.get("data") if isinstance(reply, dict) else None
    models = [row for row in rows or () if isinstance(row, dict) and isinstance(row.get("id"), str)]
    for row in models:
        if _is_model(row["id"], name) or _is_model(row.get("root"), name):
            context = row.get("max_model_len")
            return row["id"], context if isinstance(context, int) else None
    if not models:
        return name, None
    names = [row["id"] for row in models]
    close = difflib.get_close_matches(name, names, n=10, cutoff=0.0) if len(names) > 10 else names
    raise EngineError(
        f"{transport.server} does not serve model {name!r}; it serves {', '.join(close)}"
        + (f" and {len(names) - len(close)} more" if len(names) > len(close) else "")
        + f"{WAYS_OUT[1]} (and model.tokenizer to a Hub id or folder), or start it with "
        + server_command(name)
    )


def _is_model(served: object, name: str) -> bool:
    """Whether a server's name or path for a model is this name, or the same folder."""
    place = Path(resolve(name)).resolve()
    if not isinstance(served, str):
        return False
    return served in (name, resolve(name)) or (place.is_dir() and Path(served).resolve() == place)


class _Probe:
    """Sends one test prompt to a server, on one of its paths. All methods raise RequestError."""

    def __init__(self, transport: Transport, server: Server, prompt: _Prompt = _QUESTION) -> None:
        self._transport = transport
        self._server = server
        self._prompt = prompt

    async def ids(self) -> Server:
        """Find the features of a server that takes and returns token ids."""
        likeliest = (await self._tokens(_GREEDY))[0][0]
        await self._check_tokenizer()

        async def siblings() -> bool:
            both, first, second = await asyncio.gather(
                self._tokens(_SAMPLED, 2),
                self._tokens(_SAMPLED),
                self._tokens(replace(_SAMPLED, seed=_SAMPLED.seed + 1)),
            )
            return both == first + second

        async def bans() -> bool:
            return await self._tokens(replace(_GREEDY, banned=(likeliest,))) != [[likeliest]]

        async def scores() -> bool:
            choice = await self._choice(_GREEDY, prompt_logprobs=0)
            return isinstance(choice.get("prompt_logprobs"), list)

        async def logprobs(most: int) -> bool:
            choice = await self._choice(replace(_GREEDY, logprobs=most))
            return isinstance((choice.get("logprobs") or {}).get("token_logprobs"), list)

        async def stops(most: int) -> bool:
            return bool(await self._tokens(_GREEDY, stop=[f"<stop {i}>" for i in range(most)]))

        many, stopping, banned, most, score, schema = await asyncio.gather(
            _true(siblings()),
            _first(_STOPS, stops),
            _true(bans()),
            _first(_LOGPROBS, logprobs),
            _true(scores()),
            _true(self._keeps_schema()),
        )
        await self._negotiate(stream=True)
        capabilities = Capabilities(
            logprobs=most, json_schema=schema, banned=banned, score=score, presence="request"
        )
        return replace(self._server, siblings=many, stops=stopping or 0, capabilities=capabilities)

    async def text(self, tokens: int | None = None) -> Server:
        """Find the features of a text server; `tokens`: the prompt's length by the tokenizer."""
        cost = await self._negotiate(stream=False)
        await self._negotiate(stream=True)
        adds_bos = tokens is not None and cost.prompt == tokens + 1
        penalised = replace(_SHORT, presence_penalty=0.5)  # supported unless the server refuses it
        schema, penalty = await asyncio.gather(
            _true(self._keeps_schema()), _true(self._choice(penalised))
        )
        capabilities = replace(
            _TEXT_ONLY,
            json_schema=schema,
            messages_only=self._server.api == "chat",
            presence="request" if penalty else None,
        )
        return replace(self._server, adds_bos=adds_bos, capabilities=capabilities)

    async def _negotiate(self, *, stream: bool) -> Cost:
        """Drop the common fields that the server names when it refuses, until it answers."""

        def take(event: Any) -> bool:
            choices = choices_of(event)
            if self._server.ids and not all("token_ids" in choice for choice in choices):
                raise RequestError("the server streams no token ids")
            return False

        while True:
            server, cost = self._server, Cost()
            body = request_body(server, self._prompt, _SHORT, piece=int(stream))
            try:
                if stream:
                    await self._transport.stream(server.path, body, cost, take)
                else:
                    choices_of(await self._transport.post(server.path, body, cost))
                return cost
            except RequestError as error:
                named = [f for f in _DROPPABLE if f in body and f in error.reason]
                if error.status not in (400, 422) or not named:
                    raise
                self._server = replace(server, refused=server.refused | {named[0]})

    async def _check_tokenizer(self) -> None:
        """Raise EngineError if the server tokenizes the test prompt differently."""
        body = request_body(self._server, _QUESTION, _GREEDY) | {"add_special_tokens": False}
        reply = await self._transport.post(self._server.path, body)
        ids = choice_of(reply).get("prompt_token_ids")
        if isinstance(ids, list) and ids != self._prompt:
            raise EngineError(
                f"{self._transport.server} and the local tokenizer encode {_QUESTION!r} as "
                f"different ids ({ids}, {self._prompt}): set model.tokenizer to that of "
                f"{self._server.name!r}"
            )

    async def _keeps_schema(self) -> bool:
        """Whether a reply follows a JSON schema that free text would not follow."""
        choice = await self._choice(replace(_SHORT, json_schema=_SCHEMA))
        message = choice.get("message") or choice
        text = message.get("content") or message.get("text") or ""
        return str(text).lstrip().startswith("{")

    async def _tokens(self, sampling: Sampling, n: int = 1, **fields: Any) -> list[list[int]]:
        """The ids of each sample, in order."""
        choices = choices_of(await self._reply(sampling, n, **fields))
        choices.sort(key=lambda choice: choice.get("index") or 0)
        ids = [choice.get("token_ids") for choice in choices]
        if not ids or not all(isinstance(tokens, list) and tokens for tokens in ids):
            raise RequestError("the server returns no token ids")
        return [list(tokens) for tokens in ids if tokens]

    async def _choice(self, sampling: Sampling, **fields: Any) -> dict[str, Any]:
        return choice_of(await self._reply(sampling, 1, **fields))

    async def _reply(self, sampling: Sampling, n: int, **fields: Any) -> Any:
        body = request_body(self._server, self._prompt, sampling, n=n) | fields
        return await self._transport.post(self._server.path, body)


async def _true(attempt: Awaitable[object]) -> bool:
    """The result of an attempt; False if it fails."""
    try:
        return bool(await attempt)
    except (RequestError, ValueError, AttributeError):
        return False


async def _first(values: Sequence[int], attempt: Callable[[int], Awaitable[bool]]) -> int | None:
    """The first value for which an attempt succeeds; None if none does."""
    for value in values:
        if await _true(attempt(value)):
            return value
    return None
