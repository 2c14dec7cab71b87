r"""From token ids to text and back: where thinking stands, and where tokens end in the text.

State is token ids. A border between two tokens that falls inside a character (byte-level BPE cuts
emoji and Chinese into bytes) has no place in the text, so it is never used to cut a trajectory.

Text that is put after a model's own tokens (:func:`join`) gets the ids of the whole text.
A tokenizer that has `.\n`, `.\n\n` or `....` as one token never writes `.` and `\n`: a model has
not read such a pair, and is asked for its answer where it has never been. Text that is encoded on
its own and put behind sampled ids makes these pairs. Here the border is encoded as one:

- Line ends that the text begins with are left out as far as the ids end in them already: what is
  kept up to a paragraph's end (`).\n\n`) gets no second one. An ellipsis is left out behind a full
  stop: `8. Wait`, not `8.... Wait`.
- The tokens at the border which the tokenizer would cut otherwise, now that the text follows, are
  replaced: `.` before `\n</think>` becomes `.\n`. They are punctuation and white space; words
  before them, and everything else, stay the ids that were sampled.

Departs from 2505.21765 and 2504.15895, whose code joins texts and encodes them anew, words and all.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tokenizers.decoders import DecodeStream

from dto.errors import DtoError
from dto.records import Span
from dto.tags import DEFAULT_TAGS, ThinkTags

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

INSIDE_CHARACTER = -1
MAX_TEXT = 200_000  # characters that are searched for an answer: bounds time, not memory
BRACE = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
"""Braces of LaTeX; escaped ones match as a whole, and a box with its brace."""


class ThinkingSplit(NamedTuple):
    """Character spans of thinking and conclusion over one response; the tags belong to neither."""

    thinking: Span
    conclusion: Span
    closed: bool


def split_thinking(text: str, opened: bool = True, tags: ThinkTags = DEFAULT_TAGS) -> ThinkingSplit:
    """Find the thinking of a response; `<think>` and `</think>` stand for the model's own tags.

    `opened` says that the prompt already ended in `<think>`: then all of the text up to `</think>`
    is thinking, and all of it when there is none. A `<think>` that the response repeats at its
    start is left out. With `opened` false, thinking begins after the first `<think>`, or at the
    start where only `</think>` stands; a text with neither tag has closed, empty thinking and is
    all conclusion. White space next to a tag belongs to the span that it stands in.

    The first `</think>` closes. A further `<think>` inside the thinking is closed by one of its
    own, if there are enough; `</think>` repeated right behind the one that closes belongs to it,
    and one that comes later is part of the conclusion.
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
    """Where the tag stands that closes what was opened before `start`: nested pairs are skipped."""
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
    """The id that a tag is by itself; None where the tokenizer spells it."""
    return _added(tokenizer).get(tag)


def without_quoted_tags(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    text: str,
    tags: Sequence[str],
) -> str:
    """A text as long as `text`, the decoding of `ids`, in which only the model's own tags stand.

    A model whose tag is one token spells it in several where it writes about it (a quotation, a
    program): there the tag is written over. A tag that the tokenizer spells in any case stays.
    """
    for tag in tags:
        token = tag_token(tokenizer, tag)
        if token is None or text.count(tag) == list(ids).count(token):
            continue
        ends = char_ends(tokenizer, ids)
        own = {end for end, each in zip(ends, ids, strict=True) if each == token}
        for found in re.finditer(re.escape(tag), text):
            if found.end() not in own:
                text = text[: found.start()] + "\0" * len(tag) + text[found.end() :]
    return text


class TagReader:
    """Finds a tag in a response that is read in pieces.

    Where the tag is one token, that token alone is the tag, and its spelling is not.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tag: str) -> None:
        self._tag = tag
        self._token = tag_token(tokenizer, tag)
        self._end = ""

    def read(self, ids: Sequence[int], piece: str) -> bool:
        """Whether the next tokens, or the text that became readable with them, bring the tag."""
        if self._token is not None:
            return self._token in ids
        text = self._end + piece
        self._end = text[1 - len(self._tag) :]
        return self._tag in text


def decode_response(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], tags: ThinkTags = DEFAULT_TAGS
) -> str:
    """The text of a response: special tokens stay visible, one that ends it does not.

    A model may end with another token than the tokenizer's EOS, so any special one counts, but one
    that is (part of) a tag.
    """
    ids = list(ids)
    if ids and (ids[-1] == tokenizer.eos_token_id or _is_end(tokenizer, ids[-1], tags)):
        ids.pop()
    return decode(tokenizer, ids)


def char_ends(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """For each token the character offset at which it ends in the decoding of `ids`.

    The offset is -1 where a token ends inside a character, or where what follows could still change
    how it reads. The last token always ends at the end of the text. Length: that of `ids`.
    Raises DtoError for a slow tokenizer, without the `tokenizers` library behind it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DtoError(
            f"tokenizer {tokenizer.name_or_path!r} has no fast version: "
            "convert it to a tokenizer.json first"
        )
    text = decode(tokenizer, ids)
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
        else:  # a decoder that rewrites earlier text: no border from here on can be trusted
            break
    ends += [INSIDE_CHARACTER] * (len(ids) - len(ends))
    if ends:
        ends[-1] = len(text)
    return ends


def tokens_within(ends: Sequence[int], chars: Span) -> Span:
    """The tokens that lie wholly inside a character span; `ends` are their `char_ends`.

    Where tags are tokens of their own those of the thinking cover it exactly; a token that
    straddles a tag's edge is left out. Empty (at the first token after the edge) when no token lies
    inside.
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


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of ids, special tokens and white space as they are."""
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text


def first_stop(text: str, stops: Iterable[str], start: int = 0) -> tuple[int, str] | None:
    """The stop string that begins first, from `start` on, and where; empty ones are no strings."""
    met = ((text.find(stop, start), stop) for stop in stops if stop)
    return min(((at, stop) for at, stop in met if at >= 0), default=None)


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
        met = first_stop(text, self._stops)
        self._tail = text[-self._keep :] if self._keep and not met else ""
        return piece, met[1] if met else None

    @property
    def half_way(self) -> bool:
        """Whether the text ends with the beginning of a stop string."""
        return any(
            self._tail.endswith(stop[:length])
            for stop in self._stops
            for length in range(1, len(stop))
        )


def closing_brace(text: str, opening: int) -> int | None:
    """The index of the brace that closes the one at `opening`, or None when none does."""
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
"""Tokens before the border that are looked at: the most that can be read and encoded back."""
_BROKEN = "\ufffd"


class Joined(NamedTuple):
    """The first `kept` of the ids stay, and `inserted` comes after them."""

    kept: int
    inserted: tuple[int, ...]


def join(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    text: str,
    encode: Callable[[str], Sequence[int]],
    fixed: int = 0,
) -> Joined:
    """Put a text after ids as one tokenization of both would have it.

    Args:
        tokenizer: the policy's, a fast one.
        ids: what comes before; they end between two characters.
        text: what is put after them.
        encode: how a text becomes ids; nothing is added.
        fixed: so many of the first ids, a prompt's, are not looked at: the model's own tokens
            begin behind them, whatever they end in.
    """
    own = list(ids[max(fixed, len(ids) - WINDOWS[0]) :])
    text = _without_repetition(decode(tokenizer, own), text)
    for size in WINDOWS:
        window = own[-size:]
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
    """The same for the last ids alone; None where they cannot be read and encoded back."""
    before = decode(tokenizer, window)
    alone, whole = list(encode(before)), list(encode(before + text))
    if _BROKEN in before or decode(tokenizer, whole) != before + text:
        return None
    same = 0
    while same < min(len(alone), len(whole)) and alone[same] == whole[same]:
        same += 1
    # What is sampled need not be what the tokenizer would write: only borders that both have count.
    borders = _borders(tokenizer, window)
    cuts = {char: count for char, count in _borders(tokenizer, whole).items() if count <= same}
    char = max(cuts.keys() & borders.keys())
    return Joined(borders[char], tuple(whole[cuts[char] :]))


def _borders(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> dict[int, int]:
    """Tokens before each offset at which one ends that ends a character; the most of them."""
    ends = enumerate(char_ends(tokenizer, ids), start=1)
    return {0: 0, **{end: count for count, end in ends if end != INSIDE_CHARACTER}}


def _without_repetition(before: str, text: str) -> str:
    if before.endswith("."):
        return text.removeprefix("...")
    there = before[len(before.rstrip()) :].count("\n")
    return text[min(there, len(text) - len(text.lstrip("\n"))) :]
