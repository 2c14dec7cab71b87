"""Join two streams of one sample: what a server gave before it failed, and another's repetition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dto.protocols import Chunk


class Differs(Exception):
    """The repetition of a sample has other tokens than were given."""


class Spliced:
    """Passes on what is new in each stream that repeats the sample."""

    def __init__(self) -> None:
        self._given_ids: list[int] = []
        self._given_text = ""
        self.begin()

    def begin(self) -> None:
        """Expect a stream from the sample's first token on."""
        self._repeating = bool(self._given_ids or self._given_text)
        self._ids: list[int] = []
        self._text = ""
        self._logprobs: list[float] = []
        self._tops: list[Mapping[int, float]] = []

    def new(self, chunk: Chunk) -> Chunk | None:
        """The part of a chunk that was not given yet, if any.

        Raises Differs if the stream is not the one that was given.
        """
        if self._repeating:
            self._ids += chunk.token_ids
            self._text += chunk.text
            self._logprobs += chunk.logprobs or ()
            self._tops += chunk.top_logprobs or ()
            ids, chars = len(self._given_ids), len(self._given_text)
            short = len(self._ids) < ids or len(self._text) < chars
            if short and chunk.finish_reason is None:
                return None
            if self._ids[:ids] != self._given_ids or not self._text.startswith(self._given_text):
                raise Differs
            self._repeating = False
            chunk = replace(
                chunk,
                token_ids=tuple(self._ids[ids:]),
                text=self._text[chars:],
                logprobs=None if chunk.logprobs is None else tuple(self._logprobs[ids:]),
                top_logprobs=None if chunk.top_logprobs is None else tuple(self._tops[ids:]),
            )
            if not chunk.token_ids and not chunk.text and chunk.finish_reason is None:
                return None
        self._given_ids += chunk.token_ids
        self._given_text += chunk.text
        return chunk
