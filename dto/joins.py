r"""Text that is put after a model's own tokens, so that the ids are those of the whole text.

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

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dto.text import INSIDE_CHARACTER, char_ends, decode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    encode: Callable[[str], Sequence[int]] | None = None,
    fixed: int = 0,
) -> Joined:
    """Put a text after ids as one tokenization of both would have it.

    Args:
        tokenizer: the policy's, a fast one.
        ids: what comes before; they end between two characters.
        text: what is put after them.
        encode: how a text becomes ids; None: as the tokenizer has it, nothing added.
        fixed: so many of the first ids, a prompt's, are not looked at: the model's own tokens
            begin behind them, whatever they end in.
    """
    if encode is None:

        def encode(text: str) -> Sequence[int]:
            return list(tokenizer.encode(text, add_special_tokens=False))

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
