"""One completion of a server as it arrives: all of it in one choice, or piece by piece."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dto.engines.openai_cost import Cost
from dto.engines.openai_transport import RequestError
from dto.engines.openai_wire import finish_of
from dto.protocols import Chunk, Completion, Sampling
from dto.text import StopReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.records import FinishReason, IdsFrom

_TOKEN = "token_id:"


class Sample:
    """What has arrived of one completion. `text` is what is readable of the `ids`.

    `cut`: it was ended here, at a stop string, while the server may go on.
    """

    ids_from: IdsFrom

    def __init__(self, sampling: Sampling) -> None:
        self.finish: FinishReason | None = None
        self.stop: str | None = None
        self.ids: list[int] = []
        self.text = ""
        self.logprobs: list[float] = []
        self.top_logprobs: list[Mapping[int, float]] = []
        self.cut = False
        self.sampling = sampling

    @property
    def generated(self) -> int:
        """Tokens received."""
        return len(self.ids)

    def read(self, choice: Mapping[str, Any]) -> None:
        """Take a choice. Raises RequestError for one that is not what was asked for."""
        raise NotImplementedError

    def completion(self, cost: Cost) -> Completion:
        """All of it. Raises RequestError when the end is missing."""
        chunk = self.chunk(0, 0, cost, last=True)
        return Completion(
            chunk.token_ids,
            chunk.text,
            self._end(),
            chunk.prompt_tokens,
            chunk.cached_tokens,
            ids_from=self.ids_from,
            stop=chunk.stop,
            logprobs=chunk.logprobs,
            top_logprobs=chunk.top_logprobs,
        )

    def chunk(self, ids: int, chars: int, cost: Cost, *, last: bool) -> Chunk:
        """What came after so many ids and characters. Raises RequestError for a missing end."""
        asked = self.sampling.logprobs
        return Chunk(
            token_ids=tuple(self.ids[ids:]),
            text=self.text[chars:],
            finish_reason=self._end() if last else None,
            prompt_tokens=cost.prompt,
            cached_tokens=cost.cached,
            stop=self.stop if last else None,
            logprobs=None if asked is None else tuple(self.logprobs[ids:]),
            top_logprobs=tuple(self.top_logprobs[ids:]) if asked else None,
        )

    def _end(self) -> FinishReason:
        if self.finish is None:
            raise RequestError("the reply ended without a finish reason")
        return self.finish


class IdSample(Sample):
    """From a server that returns token ids: they are the state, and are decoded here.

    Only a sample that is streamed, or cut here, has `text` before its end.
    """

    ids_from: IdsFrom = "sampled"

    def __init__(
        self,
        sampling: Sampling,
        tokenizer: PreTrainedTokenizerBase,
        *,
        streaming: bool,
        cuts: bool,
    ) -> None:
        super().__init__(sampling)
        self._tokenizer = tokenizer
        self._received = 0
        self._reader: StopReader | None = None
        if streaming or cuts:
            self._reader = StopReader(tokenizer.backend_tokenizer, sampling.stop if cuts else ())

    @property
    def generated(self) -> int:
        """Tokens received, also those after a cut."""
        return self._received

    def read(self, choice: Mapping[str, Any]) -> None:
        """Take a choice. Raises RequestError for one that is not what was asked for."""
        finish = finish_of(choice)
        ids = choice.get("token_ids")
        if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
            raise RequestError("the server returned no token ids")
        self._received += len(ids)
        if self.cut:
            return
        kept = self._read_text(ids) if self._reader else len(ids)
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
            if isinstance(reason, str):
                met = [(at, s) for s in self.sampling.stop if (at := self.text.find(s)) >= 0]
                self.stop = min(met)[1] if met else reason
            self.finish = finish

    def _read_text(self, ids: list[int]) -> int:
        """Read on; how many ids belong to the sample."""
        assert self._reader is not None
        for index, token in enumerate(ids):
            piece, self.stop = self._reader.read(token)
            self.text += piece
            if self.stop is not None:
                self.cut = True
                return index + 1
        return len(ids)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def _ends_with_eos(self, finish: FinishReason, reason: object) -> bool:
        """The ids that end a response are the server's: the model may have several."""
        if finish != "stop" or isinstance(reason, str) or not self.ids:
            return False
        last = self.ids[-1]
        return last == self._tokenizer.eos_token_id or last not in self.sampling.stop_token_ids

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


class TextSample(Sample):
    """From a server that returns text, which ends at the first stop string; ids are encoded.

    What is streamed is encoded piece by piece, and the whole at the end otherwise. Without a
    tokenizer there are no ids, and every piece counts as one token.
    """

    ids_from: IdsFrom = "encoded"

    def __init__(
        self, sampling: Sampling, tokenizer: PreTrainedTokenizerBase | None, *, streaming: bool
    ) -> None:
        super().__init__(sampling)
        self._stops = tuple(stop for stop in sampling.stop if stop)
        self._reach = max(map(len, self._stops), default=0)
        self._tokenizer = tokenizer
        self._streaming = streaming
        self._pieces = 0

    @property
    def generated(self) -> int:
        """Tokens received, by the tokenizer's count."""
        return len(self.ids) or (len(self._encode(self.text)) if self._tokenizer else self._pieces)

    def read(self, choice: Mapping[str, Any]) -> None:
        """Take a choice. Raises RequestError for one that is not what was asked for."""
        if self.finish is not None:
            return
        finish = finish_of(choice)
        before, piece = len(self.text), _text(choice)
        self._pieces += bool(piece)
        self.text += piece
        start = max(0, before - self._reach)
        met = [(at, stop) for stop in self._stops if (at := self.text.find(stop, start)) >= 0]
        if met:
            at, self.stop = min(met)
            self.text, finish = self.text[: at + len(self.stop)], "stop"
            self.cut = True
        if self._streaming:
            self.ids += self._encode(self.text[before:])
        elif finish:
            self.ids += self._encode(self.text)
        if finish == "stop" and self.stop is None and self._tokenizer is not None:
            eos = self._tokenizer.eos_token_id
            self.ids += [] if eos is None else [eos]
        self.finish = finish

    def _encode(self, text: str) -> list[int]:
        if self._tokenizer is None:
            return []
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def _likeliest(position: Mapping[str, Any], most: int) -> dict[int, float]:
    """The `most` likeliest of vLLM's "token_id:5", which are they and the sampled one."""
    pairs = [(int(key.removeprefix(_TOKEN)), float(value)) for key, value in position.items()]
    return dict(sorted(pairs, key=lambda pair: -pair[1])[:most])


def _text(choice: Mapping[str, Any]) -> str:
    """Text of a completion, of a message or of a message's next piece."""
    text = choice.get("text")
    if text is None:
        message = choice.get("message") or choice.get("delta") or {}
        text = message.get("content") if isinstance(message, dict) else None
    if text is not None and not isinstance(text, str):
        raise RequestError("the server returned a completion without text")
    return text or ""
