r"""Convert token ids to text and back: the span of the thinking, and where tokens end in the text.

State is token ids. A token border can fall inside a character, since byte-level BPE cuts emoji and
Chinese into bytes. Such a border has no position in the text and is never used to cut a trajectory.

:func:`join` appends text to a model's tokens so that the ids are those of the whole text. A
tokenizer that has `.\n`, `.\n\n` or `....` as one token never produces `.` followed by `\n`. The
model has not seen such a pair in training, so its answer after one is unreliable. Appending text
that was encoded by itself creates these pairs. :func:`join` therefore encodes across the border:

- Line ends at the start of the text are dropped if the ids already end in as many, so text kept up
  to a paragraph's end (`).\n\n`) gets no second one. An ellipsis is dropped after a full stop:
  `8. Wait`, not `8.... Wait`.
- Tokens at the border that the tokenizer would split differently with the text behind them are
  replaced: `.` before `\n</think>` becomes `.\n`. They are punctuation and white space. Words and
  everything else keep the sampled ids.

Departs from 2505.21765 and 2504.15895, whose code joins texts and encodes the whole again.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from tokenizers.decoders import DecodeStream

from dto.errors import DtoError
from dto.records import Span
from dto.tags import DEFAULT_TAGS, ThinkTags

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

INSIDE_CHARACTER = -1
_BROKEN = "\ufffd"
MAX_TEXT = 200_000  # characters searched for an answer; bounds the time
BRACE = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
"""LaTeX braces. An escaped brace matches with its backslash, a box with its opening brace."""


class ThinkingSplit(NamedTuple):
    """Character spans of thinking and conclusion over one response, without the tags."""

    thinking: Span
    conclusion: Span
    closed: bool


def split_thinking(text: str, opened: bool = True, tags: ThinkTags = DEFAULT_TAGS) -> ThinkingSplit:
    """Find the thinking of a response. `<think>` and `</think>` below mean the model's own tags.

    `opened`: the prompt already ended in `<think>`. Then the text up to `</think>` is thinking, or
    the whole text if there is no `</think>`; a `<think>` repeated at the start is skipped. If not
    `opened`, thinking begins after the first `<think>`, or at the start if the text has only
    `</think>`. A text with neither tag is all conclusion, with empty, closed thinking. White space
    next to a tag belongs to the span on its side of the tag.

    The first `</think>` closes the thinking, unless a nested `<think>` takes it as its own and
    another `</think>` follows. A `</think>` repeated directly after the closing one is skipped; a
    later one is part of the conclusion.
    """
    close = text.find(tags.close)
    limit = close if close >= 0 else len(text)
    start = 0
    if text.lstrip().startswith(tags.open):
        start = text.index(tags.open) + len(tags.open)
    elif not opened:
        tag = text.find(tags.open, 0, limit)
        if tag >= 0:
            start = tag + len(tags.open)
        elif close < 0:
            return ThinkingSplit(Span(0, 0), Span(0, len(text)), True)
    if close < 0:
        return ThinkingSplit(Span(start, len(text)), Span(len(text), len(text)), False)
    close = _closing(text, start, tags.open, tags.close)
    end = close + len(tags.close)
    while text[end:].lstrip().startswith(tags.close):
        end = text.index(tags.close, end) + len(tags.close)
    return ThinkingSplit(Span(start, close), Span(end, len(text)), True)


def _closing(text: str, start: int, open_tag: str, close_tag: str) -> int:
    """The offset of the tag that closes the thinking opened before `start`; skips nested pairs."""
    depth, close = 1, -1
    for tag in re.finditer(f"{re.escape(open_tag)}|{re.escape(close_tag)}", text[start:]):
        if tag.group() == open_tag:
            depth += 1
            continue
        depth, close = depth - 1, start + tag.start()
        if not depth:
            break
    return close


def tag_token(tokenizer: PreTrainedTokenizerBase, tag: str) -> int | None:
    """The id of a tag that is a single token; None if it takes several tokens."""
    return _added(tokenizer).get(tag)


def without_quoted_tags(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str, tags: Sequence[str]
) -> str:
    """Blank out quoted tags in `text`, the decoding of `ids`; the length stays the same.

    A model whose tag is one token spells it in several tokens when it quotes the tag (in a
    program, say). Quoted tags are overwritten with NUL characters. A tag that always takes several
    tokens is left alone.
    """
    for tag in tags:
        token = tag_token(tokenizer, tag)
        if token is None or text.count(tag) == list(ids).count(token):
            continue
        ends = char_ends(tokenizer, ids)
        tag_ends = {end for end, token_id in zip(ends, ids, strict=True) if token_id == token}
        for match in re.finditer(re.escape(tag), text):
            if match.end() not in tag_ends:
                text = text[: match.start()] + "\0" * len(tag) + text[match.end() :]
    return text


class TagReader:
    """Finds a tag in a response that arrives in pieces.

    If the tag is a single token, only that token counts, not the same characters in other tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tag: str) -> None:
        self._tag = tag
        self._token = tag_token(tokenizer, tag)
        self._end = ""

    def read(self, ids: Sequence[int], piece: str) -> bool:
        """Whether the tag is complete with these tokens, or with the text they complete."""
        if self._token is not None:
            return self._token in ids
        text = self._end + piece
        self._end = text[1 - len(self._tag) :]
        return self._tag in text


def decode_response(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], tags: ThinkTags = DEFAULT_TAGS
) -> str:
    """Decode a response. Special tokens stay visible, except one that ends the response.

    A model may end with a token other than the tokenizer's EOS, so any special token at the end is
    dropped, unless it is (part of) a tag.
    """
    ids = list(ids)
    if ids and (ids[-1] == tokenizer.eos_token_id or _is_end(tokenizer, ids[-1], tags)):
        ids.pop()
    return decode(tokenizer, ids)


def char_ends(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """For each token, the character offset at which it ends in the decoding of `ids`.

    The offset is -1 if the token ends inside a character, or if later tokens could still change its
    text. The last token always ends at the end of the text. One entry per id. Raises DtoError for a
    slow tokenizer, one that does not use the `tokenizers` library.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DtoError(
            f"tokenizer {tokenizer.name_or_path!r} has no fast version: "
            "convert it to a tokenizer.json first"
        )
    text = decode(tokenizer, ids)
    pieces = [_piece(backend, token) for token in ids]
    if "".join(pieces) == text and _BROKEN not in text:  # most texts: each token is text by itself
        return [*accumulate(map(len, pieces[:-1])), *[len(text)] * bool(pieces)]
    stream = DecodeStream(skip_special_tokens=False)
    ends: list[int] = []
    offset = 0
    for token in ids:
        piece = stream.step(backend, token)
        if piece is None:
            ends.append(INSIDE_CHARACTER)
        elif text.startswith(piece, offset):
            offset += len(piece)
            ends.append(offset)
        else:  # this decoder rewrites earlier text, so later borders cannot be trusted
            break
    ends += [INSIDE_CHARACTER] * (len(ids) - len(ends))
    if ends:
        ends[-1] = len(text)
    return ends


def tokens_within(ends: Sequence[int], chars: Span) -> Span:
    """The tokens that lie wholly inside a character span; `ends` are their `char_ends`.

    If tags are single tokens, the tokens of the thinking cover it exactly. A token that straddles
    the edge of the span is left out. If no token lies inside, the result is empty and starts at the
    first token after the edge.
    """
    borders = [(0, 0)]  # (character offset, token index), both increasing
    borders += [(end, index + 1) for index, end in enumerate(ends) if end != INSIDE_CHARACTER]
    first = bisect_left(borders, (chars.start, 0))
    if first == len(borders):
        return Span(len(ends), len(ends))
    start = borders[first][1]
    last = bisect_left(borders, (chars.end + 1, 0)) - 1
    return Span(start, max(start, borders[last][1]))


def _is_end(tokenizer: PreTrainedTokenizerBase, token: int, tags: ThinkTags) -> bool:
    added = tokenizer.added_tokens_decoder.get(token)
    if added is None or not added.special:
        return False
    return added.content not in tags.open and added.content not in tags.close


@lru_cache(maxsize=8)
def _added(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return dict(tokenizer.added_tokens_encoder)


@lru_cache(maxsize=2**18)
def _piece(backend: Tokenizer, token: int) -> str:
    """The text of a token by itself."""
    return str(backend.decode([token], skip_special_tokens=False))


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Decode ids, keeping special tokens and white space."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        return str(backend.decode(list(ids), skip_special_tokens=False))
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def first_stop(text: str, stops: Iterable[str], start: int = 0) -> tuple[int, str] | None:
    """Offset and text of the stop string that begins first at or after `start`."""
    matches = ((text.find(stop, start), stop) for stop in stops if stop)
    return min(((offset, stop) for offset, stop in matches if offset >= 0), default=None)


class StopReader:
    """Reads one sample token by token, and reports stop strings.

    A character made of several tokens becomes readable with its last token. After a stop string,
    the search starts afresh with the following tokens, as in a continued request.
    """

    def __init__(self, backend: Tokenizer, stops: Sequence[str]) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=False)
        self._stops = tuple(stop for stop in stops if stop)
        self._keep = max(map(len, self._stops), default=1) - 1
        self._tail = ""

    def read(self, token: int) -> tuple[str, str | None]:
        """The text that this token made readable, and the stop string that it completed, if any.

        If it completed several stop strings, the one that begins first is returned.
        """
        piece = self._stream.step(self._backend, token) or ""
        if not piece or not self._stops:
            return piece, None
        text = self._tail + piece
        stop = first_stop(text, self._stops)
        self._tail = text[-self._keep :] if self._keep and not stop else ""
        return piece, stop[1] if stop else None

    @property
    def half_way(self) -> bool:
        """Whether the text ends with the beginning of a stop string."""
        return any(
            self._tail.endswith(stop[:length])
            for stop in self._stops
            for length in range(1, len(stop))
        )


def closing_brace(text: str, opening: int) -> int | None:
    """The index of the brace that closes the one at `opening`; None if it never closes."""
    depth = 0
    for match in BRACE.finditer(text, opening, opening + MAX_TEXT):
        token = match.group()
        if token[-1] == "{" and token != r"\{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None


WINDOWS = (16, 8, 4, 2, 1)
"""Tokens before the border to encode again; the first number that survives a round trip is used."""


class Joined(NamedTuple):
    """The result of a join: the first `kept` ids, followed by `inserted`."""

    kept: int
    inserted: tuple[int, ...]


def join(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    text: str,
    encode: Callable[[str], Sequence[int]],
    fixed: int = 0,
) -> Joined:
    """Append text to ids, tokenized as if both had been encoded together.

    Args:
        tokenizer: the policy's fast tokenizer.
        ids: the ids before the text; they end between two characters.
        text: the text to append.
        encode: encodes a text to ids, without adding special tokens.
        fixed: the first `fixed` ids belong to the prompt and are never changed.
    """
    last_ids = list(ids[max(fixed, len(ids) - WINDOWS[0]) :])
    text = _without_repetition(decode(tokenizer, last_ids), text)
    for size in WINDOWS:
        window = last_ids[-size:]
        joined = _join(tokenizer, window, text, encode)
        if joined is not None:
            return Joined(len(ids) - len(window) + joined.kept, joined.inserted)
    return Joined(len(ids), tuple(encode(text)))


def _join(
    tokenizer: PreTrainedTokenizerBase,
    window: Sequence[int],
    text: str,
    encode: Callable[[str], Sequence[int]],
) -> Joined | None:
    """Join text to the ids of a window; None if the window does not survive a round trip."""
    before = decode(tokenizer, window)
    alone, whole = list(encode(before)), list(encode(before + text))
    if _BROKEN in before or decode(tokenizer, whole) != before + text:
        return None
    same = 0
    while same < min(len(alone), len(whole)) and alone[same] == whole[same]:
        same += 1
    # Sampled tokens need not be those that the tokenizer would choose: use only shared borders.
    borders = _borders(tokenizer, window)
    cuts = {char: count for char, count in _borders(tokenizer, whole).items() if count <= same}
    char = max(cuts.keys() & borders.keys())
    return Joined(borders[char], tuple(whole[cuts[char] :]))


def _borders(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> dict[int, int]:
    """For each character offset at which a token ends, the largest number of tokens before it."""
    ends = enumerate(char_ends(tokenizer, ids), start=1)
    return {0: 0, **{end: count for count, end in ends if end != INSIDE_CHARACTER}}


def _without_repetition(before: str, text: str) -> str:
    if before.endswith("."):
        return text.removeprefix("...")
    line_ends = before[len(before.rstrip()) :].count("\n")
    return text[min(line_ends, len(text) - len(text.lstrip("\n"))) :]
