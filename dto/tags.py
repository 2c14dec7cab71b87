"""How a model marks its thinking: its pair of tags, as text and as its own tokens.

The text of a response says where thinking stands, in whichever tokens the tags were written. What
is put into a response has the model's own tokens: a tag that is one special token is never spelt.
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

KNOWN: tuple[tuple[str, str], ...] = (
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
"""Pairs that published models use; to recognise one that is not the model's own."""


@dataclass(frozen=True, slots=True)
class ThinkTags:
    """The tags of one model.

    `open_ids` and `close_ids` are the model's own tokens for them; empty where the tokenizer has
    none, so that a tag is text like any other.
    """

    open: str = "<think>"
    close: str = "</think>"
    open_ids: tuple[int, ...] = ()
    close_ids: tuple[int, ...] = ()

    def encode(self, tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
        """Ids of a text, each tag in it as the model's own tokens; nothing is added."""
        ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        own = {self.open: self.open_ids, self.close: self.close_ids}
        own = {tag: tokens for tag, tokens in own.items() if tokens and tag in text}
        if all(_count(ids, tokens) == text.count(tag) for tag, tokens in own.items()):
            return ids
        made: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, own))})", text):
            if part:
                made += own.get(part) or tokenizer.encode(part, add_special_tokens=False)
        return tuple(made)

    def unfinished(self, ids: Sequence[int]) -> int:
        """How many of the last ids are a beginning of the close, without its end.

        0 where the close is text, or one token.
        """
        for count in range(min(len(self.close_ids) - 1, len(ids)), 0, -1):
            if tuple(ids[-count:]) == self.close_ids[:count]:
                return count
        return 0

    def foreign(self, text: str, *, ended: bool) -> tuple[str, str] | None:
        """The tags of another model that mark the thinking in a response; None for none.

        The model's own close, wherever it stands, says that the tags are its own. Without it a
        response is another's that begins with a foreign tag, or that `ended` and closes one outside
        quotes: what ran out of tokens may speak of it.
        """
        if self.close in text:
            return None
        begun = text.lstrip().removeprefix(self.open).lstrip()
        for pair in KNOWN:
            if pair == (self.open, self.close):
                continue
            if begun.startswith(pair[0]) or (ended and _holds(text, pair[1])):
                return pair
        return None


DEFAULT_TAGS = ThinkTags()
FOREIGN = "foreign_tags"
"""Why a response is refused that marks its thinking as another model does."""


def foreign_detail(tags: ThinkTags, found: tuple[str, str]) -> str:
    """Which tags were found in a response, and what to set."""
    return (
        f"the response marks its thinking with {found[0]} and {found[1]}, model.think is "
        f"{tags.open} and {tags.close}: set model.think to {as_yaml(found)} if these are "
        "the model's own tags; otherwise rewrite the responses"
    )


def think_tags(tokenizer: PreTrainedTokenizerBase, settings: ModelSettings) -> ThinkTags:
    """The tags that `model.think` names, with the tokenizer's ids.

    Text is looked up: a tag that is one token, or begins and ends with an added one, is inserted
    as those ids. Raises DtoError for ids that the tokenizer does not have, or that are no text.
    """
    return _think_tags(tokenizer, *settings.think)


def shown_tags(settings: ModelSettings) -> ThinkTags:
    """The tags as they can be shown without a tokenizer: ids stand for themselves."""
    open, close = (tag if isinstance(tag, str) else f"<ids {list(tag)}>" for tag in settings.think)
    return ThinkTags(open, close)


def known_close(text: str) -> str:
    """The closing tag that a text begins with, of any model that is known; else empty."""
    return next((close for _, close in KNOWN if text.startswith(close)), "")


@lru_cache(maxsize=16)
def _think_tags(tokenizer: PreTrainedTokenizerBase, open: Tag, close: Tag) -> ThinkTags:
    (opening, open_ids), (closing, close_ids) = _read(tokenizer, open), _read(tokenizer, close)
    for tag in (opening, closing):
        if tag != tag.strip():
            raise DtoError(
                f"model.think: {tag!r} begins or ends with white space: leave the white space out"
            )
    return ThinkTags(opening, closing, open_ids, close_ids)


def _read(tokenizer: PreTrainedTokenizerBase, tag: Tag) -> tuple[str, tuple[int, ...]]:
    """The text of a tag, and the tokens that it is to the model."""
    if not isinstance(tag, str):
        unknown = [token for token in tag if not 0 <= token < len(tokenizer)]
        if unknown:
            raise DtoError(
                f"model.think: the tokenizer has {len(tokenizer):,} tokens, and none with the id "
                f"{unknown[0]}"
            )
        text = str(tokenizer.decode(list(tag), skip_special_tokens=False))
        if not text.strip() or "\ufffd" in text:
            raise DtoError(
                f"model.think: the ids {list(tag)} read as {text!r}, which cannot be a tag"
            )
        return text, tag
    return tag, own_ids(tokenizer, tag)


def own_ids(tokenizer: PreTrainedTokenizerBase, tag: str) -> tuple[int, ...]:
    """A tag's tokens where it has some of its own, whatever stands around it; else none."""
    single = tokenizer.convert_tokens_to_ids(tag)
    if isinstance(single, int) and tokenizer.convert_ids_to_tokens(single) == tag:
        return (single,)
    ids = tuple(tokenizer.encode(tag, add_special_tokens=False))
    added = tokenizer.added_tokens_decoder
    return ids if ids and ids[0] in added and ids[-1] in added else ()


def _holds(text: str, tag: str) -> bool:
    return re.search(f"(?<![`\"'“‘]){re.escape(tag)}(?![`\"'”’])", text) is not None


def _count(ids: Sequence[int], part: tuple[int, ...]) -> int:
    size = len(part)
    return sum(tuple(ids[at : at + size]) == part for at in range(len(ids) - size + 1))


def as_yaml(pair: tuple[str, str]) -> str:
    """A pair as `model.think` takes it."""
    return f'["{pair[0]}", "{pair[1]}"]'
