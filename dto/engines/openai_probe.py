"""What is known of a model on a server before any work: its tokenizer here, and what it can do.

The server is asked a few tiny questions. Nothing is believed that can be tried: a server that takes
a field and ignores it cannot do it.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dto.engines.models import load_tokenizer, parameters_of, shape_of_config
from dto.engines.openai_http import RequestError, Transport
from dto.engines.openai_wire import Server, choice_of, choices_of, request_body
from dto.engines.shared import Cost
from dto.errors import EngineError
from dto.protocols import Capabilities, Message, Sampling
from dto.recipe import resolve
from dto.usage import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.recipe import ModelSettings

_QUESTION = "Name a number."
_MESSAGES: tuple[Message, ...] = ({"role": "user", "content": _QUESTION},)
_SHORT = Sampling(max_tokens=16, temperature=0.0, top_p=1.0)
_GREEDY = replace(_SHORT, max_tokens=1)
_SAMPLED = Sampling(max_tokens=8, temperature=1.0, top_p=1.0, seed=7)
_LOGPROBS = (20, 5, 1, 0)
_STOPS = (64, 16, 4, 1)  # vLLM takes four, or as many as its VLLM_MAX_STOP_STRINGS says
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
    """Tokenizer, shape and context of the model that a server serves, as far as they can be known.

    Raises EngineError when `model.tokenizer` is set and cannot be loaded.
    """
    from transformers import AutoConfig

    source, revision = resolve(name), settings.revision
    if settings.tokenizer is not None:
        source, revision = resolve(settings.tokenizer), None
        title = f"model.tokenizer {settings.tokenizer!r}"
        tokenizer = load_tokenizer(settings, title=title)
    elif settings.server is None or not (Path(source).is_dir() or source.count("/") == 1):
        return None, None, None  # a server's own word for a model is neither a folder nor a Hub id
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

    `api` auto is completions with token ids where the server speaks vLLM's dialect, else
    completions with text, else chat; without a tokenizer it is chat. Raises EngineError for a
    server that is down, does not know the model or the key, or answers on neither path.
    """
    served, context = await _model(transport, name)
    failures: list[str] = []
    if settings.api != "chat" and tokenizer is not None:
        prompt = tokenizer.encode(_QUESTION, add_special_tokens=False)
        try:
            return await _Probe(transport, Server(served, ids=True, context=context), prompt).ids()
        except RequestError as error:
            failures.append(f"completions with token ids: {error.reason}")
            _give_up_early(transport, error)
        try:
            return await _Probe(transport, Server(served, context=context)).text(len(prompt))
        except RequestError as error:
            failures.append(f"completions: {error.reason}")
    if settings.api == "completions" and tokenizer is None:
        raise EngineError(
            f"model {name!r} has no tokenizer here, which completions need: name a Hub id or a "
            "folder in model.tokenizer, or set model.api to chat"
        )
    if settings.api != "completions":
        try:
            server = Server(served, "chat", context=context, template=settings.template)
            return await _Probe(transport, server, _MESSAGES).text()
        except RequestError as error:
            if "chat_template_kwargs" in error.reason:
                raise EngineError(
                    f"model.template: {transport.server} takes no arguments of a chat template "
                    f"({error.reason}) — unset it, or use a vLLM or SGLang server"
                ) from None
            failures.append(f"chat: {error.reason}")
            _give_up_early(transport, error)
    raise EngineError(f"model {name!r} does not answer — {'; '.join(failures)}")


def _give_up_early(transport: Transport, error: RequestError) -> None:
    """No other path helps against a server that is ill, or does not take the key."""
    if error.status in (401, 403):
        raise EngineError(
            f"{error.reason} — put the server's API key into the environment variable "
            f"{transport.key_name}, or name another one in model.api_key"
        )
    if error.status is not None and (error.status == 429 or error.status >= 500):
        raise EngineError(f"{error.reason} — see that the server is well, then start again")


async def _model(transport: Transport, name: str) -> tuple[str, int | None]:
    """The server's own word for the model, and its context where it says it (vLLM does)."""
    try:
        reply = await transport.models()
    except RequestError as error:
        if error.status is None:
            raise EngineError(
                f"{error.reason} — start the server, or correct model.server"
            ) from None
        _give_up_early(transport, error)
        return name, None  # not every server keeps a list
    rows = reply.get("data") if isinstance(reply, dict) else None
    models = [row for row in rows or () if isinstance(row, dict) and isinstance(row.get("id"), str)]
    wanted = {name, resolve(name)}
    for row in models:
        if row["id"] in wanted or row.get("root") in wanted:
            context = row.get("max_model_len")
            return row["id"], context if isinstance(context, int) else None
    if not models:
        return name, None
    names = [row["id"] for row in models]
    near = difflib.get_close_matches(name, names, n=10, cutoff=0.0) if len(names) > 10 else names
    raise EngineError(
        f"{transport.server} does not serve model {name!r}; it serves {', '.join(near)}"
        + (f" and {len(names) - len(near)} more" if len(names) > len(near) else "")
    )


class _Probe:
    """Asks one question of a server, in one of its dialects. All raise RequestError."""

    def __init__(self, transport: Transport, server: Server, prompt: _Prompt = _QUESTION) -> None:
        self._transport = transport
        self._server = server
        self._prompt = prompt

    async def ids(self) -> Server:
        """What a server can do that takes and returns token ids."""
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
        """What a server can do that takes text; `tokens`: the question's for the tokenizer."""
        cost = await self._negotiate(stream=False)
        await self._negotiate(stream=True)
        adds_bos = tokens is not None and cost.prompt == tokens + 1
        penalised = replace(_SHORT, presence_penalty=0.5)  # a common field: taken unless refused
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
        """Leave out the common fields that the server names in its refusal, until it answers."""

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
        """Raises EngineError when the server makes other ids of the question than the prompt."""
        body = request_body(self._server, _QUESTION, _GREEDY) | {"add_special_tokens": False}
        reply = await self._transport.post(self._server.path, body)
        ids = choice_of(reply).get("prompt_token_ids")
        if isinstance(ids, list) and ids != self._prompt:
            raise EngineError(
                f"{self._transport.server} reads {_QUESTION!r} as tokens {ids}, the tokenizer here "
                f"as {self._prompt}: name the tokenizer of {self._server.name!r} in model.tokenizer"
            )

    async def _keeps_schema(self) -> bool:
        """Whether a reply begins as the schema wants it, where no other reply would."""
        choice = await self._choice(replace(_SHORT, json_schema=_SCHEMA))
        message = choice.get("message") or choice
        text = message.get("content") or message.get("text") or ""
        return str(text).lstrip().startswith("{")

    async def _tokens(self, sampling: Sampling, n: int = 1, **fields: Any) -> list[list[int]]:
        """The ids of each sample, in order."""
        choices = choices_of(await self._reply(sampling, n, **fields))
        choices.sort(key=lambda choice: choice.get("index") or 0)
        ids = [choice.get("token_ids") for choice in choices]
        if not ids or not all(isinstance(each, list) and each for each in ids):
            raise RequestError("the server returns no token ids")
        return [list(each) for each in ids if each]

    async def _choice(self, sampling: Sampling, **fields: Any) -> dict[str, Any]:
        return choice_of(await self._reply(sampling, 1, **fields))

    async def _reply(self, sampling: Sampling, n: int, **fields: Any) -> Any:
        body = request_body(self._server, self._prompt, sampling, n=n) | fields
        return await self._transport.post(self._server.path, body)


async def _true(attempt: Awaitable[object]) -> bool:
    """What an attempt says; one that goes wrong says no."""
    try:
        return bool(await attempt)
    except (RequestError, ValueError, AttributeError):
        return False


async def _first(values: Sequence[int], attempt: Callable[[int], Awaitable[bool]]) -> int | None:
    """The first value that an attempt says yes to."""
    for value in values:
        if await _true(attempt(value)):
            return value
    return None
