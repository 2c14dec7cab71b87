"""Text while it is generated, and the stop strings in it, whichever tokens they are spread over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class StopReader:
    """Reads one sample token by token.

    A character that is spread over several tokens becomes readable with its last one. Behind a stop
    string the next one is looked for in the tokens that follow, as a continued request would.
    """

    def __init__(self, backend: Tokenizer, stops: Sequence[str]) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=False)
        self._stops = tuple(stop for stop in stops if stop)
        self._keep = max(map(len, self._stops), default=1) - 1
        self._tail = ""

    def read(self, token: int) -> tuple[str, str | None]:
        """The text that became readable with this token, and the stop string it completed.

        Of several stop strings completed at once the one that begins first is named.
        """
        piece = self._stream.step(self._backend, token) or ""
        if not piece or not self._stops:
            return piece, None
        text = self._tail + piece
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        self._tail = text[-self._keep :] if self._keep and not found else ""
        return piece, min(found)[1] if found else None

    @property
    def half_way(self) -> bool:
        """Whether the text ends with the beginning of a stop string."""
        return any(
            self._tail.endswith(stop[:length])
            for stop in self._stops
            for length in range(1, len(stop))
        )
