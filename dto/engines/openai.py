"""Use any OpenAI-compatible server as an engine: token ids with vLLM, text with other servers.

The server's features are probed when the engine is entered. A request that fails later becomes a
failed completion with the reason; temporary errors are retried (`dto.engines.openai_http`).

If a server takes text only, ids are encoded from its text and may differ from those that it
sampled. Its logprobs are not used, since they belong to its own ids. Seeds are sent to every server
that accepts them; hosted models honour them approximately or not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, cast

from dto.engines.affinity import Prefixes, blocks_of
from dto.engines.openai_http import ABORT_TOKENS, RequestError, Transport, backoff
from dto.engines.openai_probe import find_out, known_here
from dto.engines.openai_wire import (
    Sample,
    Server,
    choice_of,
    read_event,
    request_body,
)
from dto.engines.server import SEEDS_ON_CPU, SESSION_HEADERS, STOPS
from dto.engines.shared import (
    Cost,
    check,
    check_score,
    completion_of,
    encode_prompt,
    unbranched,
    unfit,
)
from dto.errors import EngineError
from dto.protocols import (
    Capabilities,
    Chunk,
    Completion,
    Message,
    Prompt,
    Sampling,
    TokenIds,
)
from dto.records import IdsFrom
from dto.text import StopReader

if TYPE_CHECKING:
    from dto.recipe import ModelSettings

logger = logging.getLogger("dto")

UNKNOWN_CONTEXT = 2**31 - 1
"""The context of a server that does not report it; the server itself refuses longer requests."""

PIECE = 64
"""Tokens per event of a stream whose tokens are not needed one by one."""

_Sent = tuple[int, ...] | tuple[Message, ...]
"""Token ids, or messages for chat."""


class OpenAIEngine:
    """Serves between entering and leaving, on one event loop."""

    def __init__(self, settings: ModelSettings, name: str) -> None:
        """Prepare an engine for the model that the server calls `name`.

        The tokenizer is `model.tokenizer`, or that of `name` if it is an embedded model, a folder
        or a Hub id. A hosted model without a tokenizer takes messages only. The API key is read
        from the environment variable that `model.api_key` names, for any server. Raises EngineError
        if `model.tokenizer` cannot be loaded, for OpenAI's own server without a key or with
        arguments for a chat template, and for an invalid URL.
        """
        if settings.template and settings.server is None:
            raise EngineError(
                "model.template: OpenAI's own server accepts no arguments for a chat template: "
                "unset it, or name a vLLM or SGLang server in model.server"
            )
        self.model = name
        self._settings = settings
        self.transport = Transport(settings)
        self._sessions = Prefixes()
        self.tokenizer, self.shape, context = known_here(settings, name)
        self.context = settings.context or context or UNKNOWN_CONTEXT
        self.capabilities = Capabilities(token_prompts=False, logprobs=None)
        self._server = Server(name)
        self._serving = False
        self._told = False  # that stop strings are cut here

    async def __aenter__(self) -> OpenAIEngine:
        """Probe the server's features.

        Raises EngineError if the server is down, does not accept the model or the key, or has a
        shorter context than `model.context`.
        """
        if self._serving:
            raise EngineError(f"engine for {self.model!r} is already serving: enter it once")
        self.transport.open()
        try:
            await self.probe()
        except BaseException:
            await self.transport.close()
            raise
        return self

    async def probe(self) -> None:
        """Find out what the server can do, and serve. Raises EngineError as entering does."""
        try:
            server = await find_out(self.transport, self._settings, self.model, self.tokenizer)
            wanted = self._settings.context
            if server.context and wanted and wanted > server.context:
                raise EngineError(
                    f"model.context is {wanted:,}, but {self.transport.server} takes at most "
                    f"{server.context:,}: lower it"
                )
        except EngineError as error:
            raise EngineError(self.transport.clean(str(error))) from None
        self.context = wanted or server.context or self.context
        self.capabilities = server.capabilities
        self._server, self._serving = server, True

    async def __aexit__(self, *exc: object) -> None:
        """Close all connections; pending requests come back as failed."""
        self._serving = False
        await self.transport.close()

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        """Sample n times, in one request if the server gives each sample its own seed.

        A server reports the cached tokens of one sample; they are assumed for all n. See the
        protocol.
        """
        sent, sampling = self._checked(prompt, sampling)
        if self._server.siblings or n == 1:
            return await self._complete(sent, sampling, n)
        seeds = range(sampling.seed, sampling.seed + n)
        parts = [self._complete(sent, replace(sampling, seed=seed), 1) for seed in seeds]
        return [completion for part in await asyncio.gather(*parts) for completion in part]

    async def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk]:
        """Stream one sample; closing the stream closes the connection. See the protocol."""
        sent, sampling = self._checked(prompt, sampling)
        sample, cost = self._sample(sampling, streaming=True), self._cost(sent)
        request = asyncio.create_task(self._ask(sent, sampling, [sample], cost, 1))
        request.add_done_callback(lambda _: sample.news.set())
        ids = chars = 0
        done = False
        try:
            while not done:
                await sample.news.wait()
                sample.news.clear()
                done = request.done()
                if sample.finish is None and (len(sample.ids) > ids or len(sample.text) > chars):
                    cost.kept = sample.generated
                    chunk = sample.chunk(ids, chars, cost, last=False)
                    ids, chars = len(sample.ids), len(sample.text)
                    yield chunk
            await request
            last = sample.chunk(ids, chars, cost, last=True)
            cost.kept = cost.generated
            yield last
        except RequestError as error:
            cost.failed = True
            yield Chunk((), "", "failed", cost.prompt, cost.cached, error=self._why(error))
        finally:
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            cost.charge(self.shape, most=sampling.max_tokens, unseen=ABORT_TOKENS)

    def branched(self) -> NoReturn:
        """Raise EngineError: a server does not support it."""
        raise unbranched(self.model)

    async def score(self, prompt: TokenIds, continuation: TokenIds) -> tuple[float, ...]:
        """Logprobs of the continuation's tokens after the prompt; the server samples one more.

        Raises EngineError if the server does not support it, if the context has no room for that
        one token, or if the request fails.
        """
        server = self._served()
        if not self.capabilities.score:
            raise EngineError(
                f"score: {self.transport.server} returns no logprobs of prompts: use a vLLM server"
            )
        check_score(prompt, continuation, self.context, spare=1)
        if not continuation:
            return ()
        ids = (*prompt, *continuation)
        sampling = Sampling(max_tokens=1, temperature=0.0, top_p=1.0)
        cost = Cost(len(ids))
        try:
            body = request_body(server, ids, sampling) | {"prompt_logprobs": 0}
            headers = self._session(ids)
            choice = choice_of(await self.transport.post(server.path, body, cost, headers))
            given = choice["prompt_logprobs"][len(prompt) :]
            pairs = zip(given, continuation, strict=True)
            return tuple(float(place[str(token)]["logprob"]) for place, token in pairs)
        except RequestError as error:
            cost.failed = True
            raise EngineError(f"score: {self._why(error)}") from None
        except (KeyError, TypeError, ValueError):
            raise EngineError(
                f"score: {self.transport.server} did not return {len(continuation):,} logprobs"
            ) from None
        finally:
            cost.charge(self.shape, most=1, unseen=1)

    def _session(self, sent: _Sent) -> dict[str, str]:
        """Headers that keep prompts with one beginning on one replica, if a router reads them."""
        if self._settings.server is None:
            return {}
        blocks = blocks_of(sent)
        session = self._sessions.find(blocks)
        session = blocks[-1] if session is None else session
        self._sessions.put(blocks, session)
        return dict.fromkeys(SESSION_HEADERS, f"dto-{session & (2**64 - 1):016x}")

    def _served(self) -> Server:
        if not self._serving:
            raise EngineError(f"engine for {self.model!r} is not serving: use `async with engine`")
        return self._server

    def _why(self, error: RequestError) -> str:
        """The reason, with the usual cause where a server has ended that answered before."""
        reason = self.transport.clean(error.reason)
        ended = error.unreachable or "EngineCore" in reason or "EngineDead" in reason
        if not (ended and self._server.ids):
            return reason
        return f"{reason} (its log has the cause; vLLM on a CPU needs {SEEDS_ON_CPU} for seeds)"

    def _checked(self, prompt: Prompt, sampling: Sampling) -> tuple[_Sent, Sampling]:
        """The prompt as ids, or as messages for chat, and the sampling limited to the context.

        Raises EngineError for options that the server does not support.
        """
        server, where = self._served(), self.transport.server
        check(sampling, server.capabilities, where)
        if "temperature" in server.refused and sampling.temperature != 1.0:
            raise EngineError(
                f"temperature = {sampling.temperature}: {where} accepts no temperature for "
                f"{self.model!r}: set it to 1"
            )
        if server.api == "completions" and self.tokenizer is not None:
            ids = encode_prompt(prompt, self.tokenizer, self.model, self._settings.template)
            room = max(1, self.context - len(ids))
            return ids, replace(sampling, max_tokens=min(sampling.max_tokens, room))
        if any(isinstance(part, int) for part in prompt):
            raise EngineError(
                f"{where} serves {self.model!r} as chat, which takes messages and no token ids: "
                "use a server with completions"
            )
        return cast("tuple[Message, ...]", tuple(prompt)), sampling

    def _cost(self, sent: _Sent) -> Cost:
        """The cost of a request before it is sent; the server counts the tokens of messages."""
        return Cost(0 if self._server.api == "chat" else len(sent))

    def _sample(self, sampling: Sampling, streaming: bool) -> Sample:
        """An empty sample to read a reply into."""
        server, reader = self._server, None
        cuts = server.cuts_here(sampling)
        if cuts and server.ids and not self._told:
            self._told = True
            logger.warning(
                "model     %s takes %d stop strings at a time, so replies are cut here, which "
                "wastes tokens: start it with %s", self.transport.server, server.stops, STOPS
            )  # fmt: skip
        if server.ids and self.tokenizer is not None and (streaming or cuts):
            reader = StopReader(self.tokenizer.backend_tokenizer, sampling.stop if cuts else ())
        return Sample(
            sampling=sampling,
            tokenizer=self.tokenizer,
            from_ids=server.ids,
            streaming=streaming,
            reader=reader,
            tags=server.tags,
        )

    async def _complete(self, sent: _Sent, sampling: Sampling, n: int) -> list[Completion]:
        """Get all n completions from one request, which is repeated if its connection breaks.

        Ids are read as a stream of long pieces, so that the tokens of an aborted request are known.
        Text that ends at a stop string is streamed too, since servers do not report which one.
        """
        piece = PIECE if self._server.ids else 0
        if self._server.cuts_here(sampling):
            piece = 1
        tried = 0
        while True:
            samples = [self._sample(sampling, streaming=False) for _ in range(n)]
            cost = self._cost(sent)
            try:
                await self._ask(sent, sampling, samples, cost, piece)
                chunks = [sample.chunk(0, 0, cost, last=True) for sample in samples]
                cost.kept = cost.generated
                ids_from: IdsFrom = "sampled" if samples[0].from_ids else "encoded"
                return [completion_of(chunk, ids_from) for chunk in chunks]
            except RequestError as error:
                cost.failed = not (error.broke and tried < self._settings.retries)
                if cost.failed:
                    failed = Completion((), "", "failed", cost.prompt, error=self._why(error))
                    return [failed] * n
            finally:
                unseen = ABORT_TOKENS + piece if piece else sampling.max_tokens
                cost.charge(self.shape, n, most=sampling.max_tokens, unseen=unseen)
            await backoff(tried)
            tried += 1

    async def _ask(
        self, sent: _Sent, sampling: Sampling, samples: list[Sample], cost: Cost, piece: int
    ) -> None:
        """Send a request and read its reply into the samples.

        `piece`: tokens per event of a stream, if the server supports that; 0: no stream. A stream
        is read to its end or to a stop string. Raises RequestError, also if the prompt is empty or
        too long.
        """
        server = self._server
        if error := unfit(sent, self.context):
            raise RequestError(error)
        prompt: Any = sent
        if server.api == "completions" and not server.ids and self.tokenizer is not None:
            ids = list(cast("tuple[int, ...]", sent))
            if server.adds_bos and ids[0] == self.tokenizer.bos_token_id:
                del ids[0]
            prompt = self.tokenizer.decode(ids, skip_special_tokens=False)
        body = request_body(server, prompt, sampling, n=len(samples), piece=piece)
        headers = self._session(sent)
        try:
            if piece:
                take = partial(read_event, samples)
                await self.transport.stream(server.path, body, cost, take, headers)
            else:
                read_event(samples, await self.transport.post(server.path, body, cost, headers))
        finally:
            cost.generated = max(cost.generated, sum(sample.generated for sample in samples))
