"""The tags around a model's thinking, as text and as the model's own tokens.

Reading a response, the text of the tags counts, however it was tokenized. Text that is inserted
into a response uses the model's own tokens: a tag that is one special token is never spelled out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from dto.errors import DtoError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.recipe import ModelSettings

Tag = str | tuple[int, ...]
LONG_TEXT = 400  # characters from which on the function without offsets is the faster one

KNOWN_TAGS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),  # R1, Qwen3, QwQ, MiniMax
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # OpenThinker, Sky-T1
    ("◁think▷", "◁/think▷"),  # Kimi
    (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),  # gpt-oss
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
)
"""Tag pairs of published models, to recognise a response that uses another model's tags."""


@dataclass(frozen=True, slots=True)
class ThinkTags:
    """The tags of one model.

    `open_ids` and `close_ids` are the model's own tokens for them. They are empty if the tokenizer
    has none; then a tag is ordinary text.
    """

    open: str = "<think>"
    close: str = "</think>"
    open_ids: tuple[int, ...] = ()
    close_ids: tuple[int, ...] = ()

    def encode(self, tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
        """Encode a text with each tag as the model's own tokens, without adding special tokens."""
        ids = tuple(encode(tokenizer, text))
        tags = {self.open: self.open_ids, self.close: self.close_ids}
        tags = {tag: tokens for tag, tokens in tags.items() if tokens and tag in text}
        if all(_count(ids, tokens) == text.count(tag) for tag, tokens in tags.items()):
            return ids
        pieces: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, tags))})", text):
            if part:
                pieces += tags.get(part) or encode(tokenizer, part)
        return tuple(pieces)

    def unfinished(self, ids: Sequence[int]) -> int:
        """How many of the last ids are the first tokens of an incomplete closing tag.

        0 if the closing tag is text or a single token.
        """
        for count in range(min(len(self.close_ids) - 1, len(ids)), 0, -1):
            if tuple(ids[-count:]) == self.close_ids[:count]:
                return count
        return 0

    def foreign(self, text: str, *, ended: bool) -> tuple[str, str] | None:
        """The tags of another model, if a response marks its thinking with them; else None.

        A response with the model's own closing tag uses its own tags. Any other response uses
        foreign tags if it begins with a foreign opening tag, or if it `ended` and has an unquoted
        foreign closing tag. A response that ran out of tokens may merely mention one.
        """
        if self.close in text:
            return None
        body = text.lstrip().removeprefix(self.open).lstrip()
        for pair in KNOWN_TAGS:
            if pair == (self.open, self.close):
                continue
            if body.startswith(pair[0]) or (ended and has_unquoted(text, pair[1])):
                return pair
        return None


DEFAULT_TAGS = ThinkTags()
FOREIGN = "foreign_tags"
"""The reason for dropping a response that uses another model's tags."""


def foreign_detail(tags: ThinkTags, foreign: tuple[str, str]) -> str:
    """The tags in a response that are not the model's, and the setting that accepts them."""
    return (
        f"the response marks its thinking with {foreign[0]} and {foreign[1]}, but model.think is "
        f"{tags.open} and {tags.close}: set model.think to {as_yaml(foreign)} if these are "
        "the model's own tags; otherwise rewrite the responses"
    )


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a text, without adding special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.truncation or backend.padding or tokenizer.split_special_tokens:
        return list(tokenizer.encode(text, add_special_tokens=False))
    if len(text) < LONG_TEXT:
        return list(backend.encode(text, add_special_tokens=False).ids)
    return list(backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)


def think_tags(tokenizer: PreTrainedTokenizerBase, settings: ModelSettings) -> ThinkTags:
    """The tags of `model.think`, with their token ids.

    A tag given as text gets ids of its own if it is one token, or begins and ends with an added
    token. Raises DtoError for ids that the tokenizer does not have or that do not decode to text.
    """
    return _think_tags(tokenizer, *settings.think)


def shown_tags(settings: ModelSettings) -> ThinkTags:
    """The tags for display without a tokenizer; ids are shown as numbers."""
    open, close = (tag if isinstance(tag, str) else f"<ids {list(tag)}>" for tag in settings.think)
    return ThinkTags(open, close)


@lru_cache(maxsize=16)
def _think_tags(tokenizer: PreTrainedTokenizerBase, open: Tag, close: Tag) -> ThinkTags:
    (opening, open_ids), (closing, close_ids) = _read(tokenizer, open), _read(tokenizer, close)
    for tag in (opening, closing):
        if tag != tag.strip():
            raise DtoError(
                f"model.think: {tag!r} begins or ends with white space: remove the white space"
            )
    return ThinkTags(opening, closing, open_ids, close_ids)


def _read(tokenizer: PreTrainedTokenizerBase, tag: Tag) -> tuple[str, tuple[int, ...]]:
    """The text of a tag, and the model's own tokens for it."""
    if not isinstance(tag, str):
        unknown = [token for token in tag if not 0 <= token < len(tokenizer)]
        if unknown:
            raise DtoError(
                f"model.think: id {unknown[0]} is outside the tokenizer's {len(tokenizer):,} tokens"
            )
        text = str(tokenizer.decode(list(tag), skip_special_tokens=False))
        if not text.strip() or "\ufffd" in text:
            raise DtoError(
                f"model.think: the ids {list(tag)} decode to {text!r}, which cannot be a tag"
            )
        return text, tag
    return tag, own_ids(tokenizer, tag)


def own_ids(tokenizer: PreTrainedTokenizerBase, tag: str) -> tuple[int, ...]:
    """The tokens of a tag that are the same in any context; empty if it has none."""
    single = tokenizer.convert_tokens_to_ids(tag)
    if isinstance(single, int) and tokenizer.convert_ids_to_tokens(single) == tag:
        return (single,)
    ids = tuple(encode(tokenizer, tag))
    added = tokenizer.added_tokens_decoder
    return ids if ids and ids[0] in added and ids[-1] in added else ()


def has_unquoted(text: str, tag: str) -> bool:
    """Whether a text has a tag outside of quotation marks."""
    return re.search(f"(?<![`\"'“‘]){re.escape(tag)}(?![`\"'”’])", text) is not None


def _count(ids: Sequence[int], part: tuple[int, ...]) -> int:
    size = len(part)
    return sum(tuple(ids[at : at + size]) == part for at in range(len(ids) - size + 1))


def as_yaml(pair: tuple[str, str]) -> str:
    """A pair of tags in the form that `model.think` takes."""
    return f'["{pair[0]}", "{pair[1]}"]'
