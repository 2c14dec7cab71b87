"""Any OpenAI-compatible server as an engine: completions with token ids from vLLM, text elsewhere.

What the server can do is found out when the engine is entered. A request that goes wrong later is a
failed completion that says why; what may pass is tried again (`dto.engines.openai_http`).

From a server that takes text only, ids are encoded from what it wrote and need not be those that it
sampled; it gives no logprobs, since those belong to its own ids. Seeds are sent to every server
that takes them; hosted models honour them as best they can, or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from dto.engines.openai_http import (
    ABORT_TOKENS,
    Cost,
    Events,
    RequestError,
    Transport,
    backoff,
    choice_of,
    choices_of,
    counts_of,
)
from dto.engines.openai_probe import find_out, load_tokenizer
from dto.engines.openai_wire import PATHS, IdSample, Sample, Server, TextSample, check, request_body
from dto.errors import EngineError
from dto.protocols import (
    Capabilities,
    Chunk,
    Completion,
    Engine,
    Message,
    Prompt,
    Sampling,
    TokenIds,
    unbranched,
)
from dto.templates import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.recipe import ModelSettings
    from dto.usage import ModelShape

Asked = tuple[int, ...] | tuple[Message, ...]
"""Token ids, or messages for chat."""


class Requests:
    """Asks one server. All methods raise RequestError for what goes wrong."""

    def __init__(
        self,
        transport: Transport,
        server: Server,
        tokenizer: PreTrainedTokenizerBase | None,
        context: int,
    ) -> None:
        self.server = server
        self._transport = transport
        self._tokenizer = tokenizer
        self._context = context

    def length(self, asked: Asked) -> int:
        """Tokens of the prompt; 0 for messages, which the server counts."""
        return 0 if self.server.api == "chat" else len(asked)

    def sample(self, sampling: Sampling, streaming: bool) -> Sample:
        """An empty sample, to be read into."""
        server = self.server
        if server.ids and self._tokenizer is not None:
            cuts = server.cuts_here(sampling)
            return IdSample(sampling, self._tokenizer, streaming=streaming, cuts=cuts)
        return TextSample(sampling, self._tokenizer, streaming=streaming)

    async def fetch(
        self, asked: Asked, sampling: Sampling, samples: list[Sample], cost: Cost, piece: int
    ) -> AsyncGenerator[None]:
        """Read one whole reply into its samples, in one step."""
        reply = await self.post(self._body(asked, sampling, len(samples)), cost)
        _read(reply, samples)
        cost.generated = max(cost.generated, sum(sample.generated for sample in samples))
        yield

    async def follow(
        self, asked: Asked, sampling: Sampling, samples: list[Sample], cost: Cost, piece: int
    ) -> AsyncGenerator[None]:
        """Read a stream into its samples, a step for each event, to its end or a stop string's.

        `piece`: tokens that one event may hold, where the server can be told.
        """
        path, body = PATHS[self.server.api], self._body(asked, sampling, len(samples), piece)
        events = Events()
        try:
            async with self._transport.events(path, body, cost.begun) as events:
                async for event in events:
                    cost.count(counts_of(event))
                    _read(event, samples)
                    if all(sample.finish for sample in samples) and any(
                        sample.cut for sample in samples
                    ):
                        return
                    yield
                cost.ended = True
        except RequestError as error:
            if error.status is not None:
                cost.begun.clear()  # refused: nothing was computed
            raise
        finally:
            for event in events.left():
                with suppress(RequestError):
                    _read(event, samples)
            cost.generated = max(cost.generated, sum(sample.generated for sample in samples))

    async def post(self, body: dict[str, Any], cost: Cost) -> Any:
        """The whole reply to a body, counted."""
        try:
            reply = await self._transport.post(PATHS[self.server.api], body, cost.begun)
        except RequestError as error:
            if error.status is not None:
                cost.begun.clear()
            raise
        cost.ended = True
        cost.count(counts_of(reply))
        return reply

    def _body(self, asked: Asked, sampling: Sampling, n: int, piece: int = 0) -> dict[str, Any]:
        """Raises RequestError for a prompt that is empty or does not fit."""
        server, length = self.server, self.length(asked)
        if not asked:
            raise RequestError("the prompt is empty: send at least one token")
        if length >= self._context:
            raise RequestError(
                f"prompt has {length:,} tokens, context is {self._context:,}: shorten it or raise "
                "model.context"
            )
        prompt: Any = asked
        if server.api == "completions" and not server.ids and self._tokenizer is not None:
            ids = list(cast("tuple[int, ...]", asked))
            if server.adds_bos and ids[0] == self._tokenizer.bos_token_id:
                del ids[0]
            prompt = self._tokenizer.decode(ids, skip_special_tokens=False)
        return request_body(server, prompt, sampling, n=n, piece=piece)


def _read(event: Any, samples: list[Sample]) -> None:
    """Give each sample its choice. Raises RequestError for choices that were not asked for."""
    for choice in choices_of(event):
        index = choice.get("index") or 0
        if index not in range(len(samples)):
            raise RequestError(f"the server sent completion {index!r}, {len(samples)} were asked")
        samples[index].read(choice)


UNKNOWN_CONTEXT = 2**31 - 1
"""Of a server that does not say: it refuses what is too long itself."""

PIECE = 64
"""Tokens that an event of a stream may hold when nobody waits for them one by one."""


def open_openai(settings: ModelSettings, name: str) -> OpenAIEngine:
    """The engine of a recipe, for the model that the server calls `name`.

    The tokenizer is that of `model.tokenizer`, or else that of `name` where this is an embedded
    model, a folder or a Hub id; a hosted model without one takes messages only. The API key is read
    from the environment variable that `model.api_key` names, whichever server it goes to. Raises
    EngineError for a tokenizer that was asked for and cannot be loaded, OpenAI's own server without
    a key or with arguments of a chat template, and a server that is no URL.
    """
    if settings.template and settings.server is None:
        raise EngineError(
            "model.template: OpenAI's own server takes no arguments of a chat template; unset it, "
            "or name a vLLM or SGLang server in model.server"
        )
    transport = Transport(settings)
    tokenizer, shape, context = load_tokenizer(settings, name)
    return OpenAIEngine(transport, settings, name, tokenizer, shape, context)


class OpenAIEngine:
    """Serves between entering and leaving, on one event loop. See :func:`open_openai`."""

    def __init__(
        self,
        transport: Transport,
        settings: ModelSettings,
        name: str,
        tokenizer: PreTrainedTokenizerBase | None,
        shape: ModelShape | None,
        context: int | None,
    ) -> None:
        """`context` is the limit of the model itself, where it is known."""
        self.model = name
        self.tokenizer = tokenizer
        self.shape = shape
        self.context = settings.context or context or UNKNOWN_CONTEXT
        self.capabilities = Capabilities(token_prompts=False, logprobs=None)
        self._settings = settings
        self._transport = transport
        self._requests: Requests | None = None

    async def __aenter__(self) -> OpenAIEngine:
        """Find out what the server can do.

        Raises EngineError, in one line, for a server that is down, does not know the model or the
        key, or takes less than the context asked for.
        """
        if self._requests is not None:
            raise EngineError(f"engine for {self.model!r} is already serving: enter it once")
        self._transport.open()
        try:
            server = await find_out(self._transport, self._settings, self.model, self.tokenizer)
            asked = self._settings.context
            if server.context and asked and asked > server.context:
                raise EngineError(
                    f"model.context is {asked:,}, and {self._transport.server} takes at most "
                    f"{server.context:,}: lower it"
                )
        except EngineError as error:
            await self._transport.close()
            raise EngineError(self._transport.clean(str(error))) from None
        except BaseException:
            await self._transport.close()
            raise
        self.context = asked or server.context or self.context
        self.capabilities = server.capabilities
        self._requests = Requests(self._transport, server, self.tokenizer, self.context)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close all connections; requests under way come back as failed."""
        self._requests = None
        await self._transport.close()

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        """Sample n times: in one request where its samples have seeds of their own.

        Of cached tokens a server reports those of one sample; they are taken for all n. See the
        protocol.
        """
        asked, sampling = self._checked(prompt, sampling)
        if self._serving.server.siblings or n == 1:
            return await self._complete(asked, sampling, n)
        seeds = range(sampling.seed, sampling.seed + n)
        parts = [self._complete(asked, replace(sampling, seed=seed), 1) for seed in seeds]
        return [completion for part in await asyncio.gather(*parts) for completion in part]

    async def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk]:
        """One sample as it grows; closing it closes the connection. See the protocol."""
        requests = self._serving
        asked, sampling = self._checked(prompt, sampling)
        sample, cost = requests.sample(sampling, streaming=True), Cost(requests.length(asked))
        ids = chars = 0
        try:
            async with aclosing(requests.follow(asked, sampling, [sample], cost, 1)) as steps:
                async for _ in steps:
                    if sample.finish is None and (
                        len(sample.ids) > ids or len(sample.text) > chars
                    ):
                        cost.kept = sample.generated
                        chunk = sample.chunk(ids, chars, cost, last=False)
                        ids, chars = len(sample.ids), len(sample.text)
                        yield chunk
            last = sample.chunk(ids, chars, cost, last=True)
            cost.kept = cost.generated
            yield last
        except RequestError as error:
            cost.failed = True
            yield Chunk((), "", "failed", cost.prompt, cost.cached, error=self._why(error))
        finally:
            cost.charge(self.shape, sampling, 1, ABORT_TOKENS)

    def branched(self) -> Engine:
        """Not here: raises EngineError."""
        raise unbranched(self.model)

    async def score(self, prompt: TokenIds, continuation: TokenIds) -> tuple[float, ...]:
        """Logprobs of the continuation's tokens after the prompt; the server samples one more.

        Raises EngineError for a server that cannot do it, when both together do not leave room for
        that one token in the context, and when the request fails.
        """
        requests = self._serving
        if not self.capabilities.score:
            raise EngineError(f"{self._transport.server} gives no logprobs of prompts: no score")
        ids = (*prompt, *continuation)
        if not prompt or len(ids) >= self.context:
            raise EngineError(
                f"score: {len(prompt):,} + {len(continuation):,} tokens do not fit into a context "
                f"of {self.context:,}, or the prompt is empty: shorten them or raise model.context"
            )
        if not continuation:
            return ()
        sampling = Sampling(max_tokens=1, temperature=0.0, top_p=1.0)
        cost = Cost(len(ids))
        try:
            body = request_body(requests.server, ids, sampling) | {"prompt_logprobs": 0}
            choice = choice_of(await requests.post(body, cost))
            given = choice["prompt_logprobs"][len(prompt) :]
            pairs = zip(given, continuation, strict=True)
            return tuple(float(place[str(token)]["logprob"]) for place, token in pairs)
        except RequestError as error:
            cost.failed = True
            raise EngineError(f"score: {self._why(error)}") from None
        except (KeyError, TypeError, ValueError):
            raise EngineError(
                f"score: {self._transport.server} did not return {len(continuation):,} logprobs"
            ) from None
        finally:
            cost.charge(self.shape, sampling, 1, 1)

    @property
    def _serving(self) -> Requests:
        if self._requests is None:
            raise EngineError(f"engine for {self.model!r} is not serving: use `async with engine`")
        return self._requests

    def _why(self, error: RequestError) -> str:
        return self._transport.clean(error.reason)

    def _checked(self, prompt: Prompt, sampling: Sampling) -> tuple[Asked, Sampling]:
        """Ids, or messages for chat, and no more tokens than the context has room for.

        Raises EngineError for what the server cannot do.
        """
        server, where = self._serving.server, self._transport.server
        check(server, sampling, where)
        if server.api == "completions" and self.tokenizer is not None:
            ids = encode_prompt(prompt, self.tokenizer, self.model, self._settings.template)
            room = max(1, self.context - len(ids))
            return ids, replace(sampling, max_tokens=min(sampling.max_tokens, room))
        if any(isinstance(part, int) for part in prompt):
            raise EngineError(
                f"{where} serves {self.model!r} as chat, which takes messages only, not token ids"
            )
        return cast("tuple[Message, ...]", tuple(prompt)), sampling

    async def _complete(self, asked: Asked, sampling: Sampling, n: int) -> list[Completion]:
        """All n completions from one request, asked again when its connection breaks.

        Ids are read as a stream of long pieces, so that the tokens of a request that is given up
        are known, and so is text to be cut at a stop string, since servers do not say at which.
        """
        requests, tried = self._serving, 0
        cuts = requests.server.cuts_here(sampling)
        streamed = requests.server.ids or cuts
        read, piece = requests.follow if streamed else requests.fetch, 1 if cuts else PIECE
        while True:
            samples = [requests.sample(sampling, streaming=False) for _ in range(n)]
            cost = Cost(requests.length(asked))
            try:
                async with aclosing(read(asked, sampling, samples, cost, piece)) as steps:
                    async for _ in steps:
                        pass
                completions = [sample.completion(cost) for sample in samples]
                cost.kept = cost.generated
                return completions
            except RequestError as error:
                cost.failed = not (error.broke and tried < self._settings.retries)
                if cost.failed:
                    failed = Completion((), "", "failed", cost.prompt, error=self._why(error))
                    return [failed] * n
            finally:
                unseen = ABORT_TOKENS + piece if streamed else sampling.max_tokens
                cost.charge(self.shape, sampling, n, unseen)
            await backoff(tried)
            tried += 1
