"""One request to a server: its body from a prompt, its reply into samples, its cost."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from dto.engines.openai_cost import Cost
from dto.engines.openai_samples import IdSample, Sample, TextSample
from dto.engines.openai_transport import Events, RequestError, Transport
from dto.engines.openai_wire import PATHS, Server, choices_of, counts_of, request_body
from dto.protocols import Message, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
