"""Find reasoning transitions (2504.15895, section 3: reasoning transition monitor).

Transitions depend only on the main path's tokens, however the path is read: whole, in pieces, or
with pauses. The tokens that revealed a transition (a cue, white space) are set aside for the trial
and restored when the path continues. Departs from the published code: a cue must be a separate word
at the start of a sentence, in upper or lower case, possibly after an opener (`But wait`).
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from dto.languages import DEFAULT, Languages, any_of, load_language
from dto.settings import MonitorSettings
from dto.tags import DEFAULT_TAGS, ThinkTags
from dto.text import StopReader, TagReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARAGRAPH = "\n\n"
ENTROPY_LOGPROBS = 20  # the maximum that servers return

TAIL = 512  # characters of white space that a cut can skip backwards
CUE_TAIL = 128  # characters of a cue, its openers and the end of the previous sentence
BORDERS = 64  # how many tokens back a cut can be


class Transition(NamedTuple):
    """The transition after `cut` tokens, revealed by token number `seen`."""

    cut: int
    seen: int


class Monitor:
    r"""Reads the tokens of one response, and finds the transitions of its thinking.

    A cut keeps the tokens before the cue, without trailing white-space tokens. A paragraph's end
    inside a token (`).\n\n`) stays. A token with both text and cue (`.Wait`) is dropped, including
    its punctuation. A cut never falls inside a character. Cuts are strictly increasing, and some
    thinking precedes the first. After the thinking is `closed` there are no transitions.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: MonitorSettings,
        tags: ThinkTags = DEFAULT_TAGS,
        languages: Languages = DEFAULT,
    ) -> None:
        self.closed = False
        self._tags = tags
        self._kind = settings.monitor
        self._every = settings.every
        self._entropy = settings.entropy
        self._languages = languages
        self._cues = tuple(_words(languages, "transitions", spaces=True))
        self._stops: tuple[str, ...] = {"cue": _cue_stops(languages), "tokens": ()}.get(
            settings.monitor, (PARAGRAPH,)
        )
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._reader = StopReader(backend, self._stops)
        self._close = TagReader(tokenizer, tags.close)
        self._recent = deque[int](maxlen=max(0, len(tags.close_ids) - 1))
        self._count = 0
        self._text = ""  # the last part of the text
        self._start = 0  # offset of that part
        self._borders = deque([(0, 0)], maxlen=BORDERS)  # (offset, number of tokens up to it)
        self._last = 0
        self._pending: int | None = None  # a cut that depends on the next token

    @property
    def logprobs(self) -> int | None:
        """The number of top logprobs that `read` needs for an uninterrupted path; None: none."""
        return ENTROPY_LOGPROBS if self._kind == "entropy" else None

    def pause(self) -> dict[str, Any]:
        """Arguments for `ResponsePath.advance` that stop at the next possible transition."""
        if self._pending is not None:
            return {"limit": 1, "logprobs": self.logprobs}
        if self._kind == "tokens":
            return {"limit": self._every - self._count % self._every}
        if self._reader.half_way:  # an engine searches for stop strings only in new text
            return {"limit": 1}
        return {"stop": self._stops}

    def scan(
        self,
        tokens: Sequence[int],
        top_logprobs: Sequence[Mapping[int, float]] | None = None,
        *,
        ended: bool,
    ) -> Iterator[Transition]:
        """Yield the transitions in the next tokens; an `ended` response has none at its last."""
        for index, token in enumerate(tokens[:-1] if ended else tokens):
            if self.closed:
                return
            transition = self.read(token, top_logprobs[index] if top_logprobs else None)
            if transition is not None:
                yield transition

    def read(self, token: int, top: Mapping[int, float] | None = None) -> Transition | None:
        """Read one token. Monitor `entropy` needs `top` logprobs for the first token of a step."""
        piece, stop = self._reader.read(token)
        self._recent.append(token)
        self._count += 1
        if piece:
            self._text += piece
            self._borders.append((self._start + len(self._text), self._count))
        self.closed = self._close.read((token,), piece) or self.closed
        cut = None if self.closed else self._look(piece, stop is not None, top)
        if len(self._text) > 2 * TAIL:
            self._start += len(self._text) - TAIL
            self._text = self._text[-TAIL:]
        if cut is not None:  # a trial never starts inside a closing tag of several tokens
            recent = list(self._recent)
            cut -= self._tags.unfinished(recent[: len(recent) - (self._count - cut)])
        if cut is None or cut <= self._last:
            return None
        self._last = cut
        return Transition(cut, self._count)

    def _look(self, piece: str, stopped: bool, top: Mapping[int, float] | None) -> int | None:
        if self._kind == "cue":
            return self._look_for_cue(piece, stopped)
        if self._kind == "tokens":
            return self._cut(len(self._text)) if self._count % self._every == 0 else None
        if self._kind == "paragraph":
            return self._cut(len(self._text)) if stopped else None
        cut = None
        if self._pending is not None and not (piece and piece.isspace()):
            if top is None:
                raise ValueError("monitor entropy: no top logprobs for the first token of a step")
            cut = self._pending if entropy(top) > self._entropy else None
            self._pending = None
        if stopped:
            self._pending = self._cut(len(self._text))
        return cut

    def _look_for_cue(self, piece: str, stopped: bool) -> int | None:
        # Only the next token distinguishes "Wait" from "Waiting".
        cut = None if piece[:1].isalnum() else self._pending
        self._pending = None
        start = cue_at_end(self._text, self._languages) if stopped else None
        if start is not None:
            if self._text.lower().endswith(self._cues):
                self._pending = self._cut(start)
            elif cut is None:
                cut = self._cut(start)
        return cut

    def _cut(self, char: int) -> int:
        """The number of tokens before a character, without white space before it."""
        text = self._text[:char].rstrip()
        if self._start == 0 and text.lstrip() == self._tags.open:
            return 0
        borders = [(end - self._start, tokens) for end, tokens in self._borders]
        return kept_tokens(borders, self._text, len(text))


def kept_tokens(borders: Iterable[tuple[int, int]], text: str, char: int) -> int:
    """The number of tokens to keep so that a text ends at a character; 0 without a border so early.

    `borders` are (offset in the text, tokens before it), in order. A token that extends beyond the
    character is kept if only white space follows in it.
    """
    kept, has_border = 0, False
    for end, tokens in borders:
        if end <= char:
            kept, has_border = tokens, True
            exact = end == char
        elif has_border and not exact and text[char:end].isspace():
            return tokens
        else:
            break
    return kept


def entropy(logprobs: Mapping[int, float]) -> float:
    """Entropy in nats of a distribution given by its most likely tokens.

    The remaining probability counts as one outcome, so this is a lower bound.
    """
    probabilities = [math.exp(logprob) for logprob in logprobs.values()]
    probabilities.append(max(0.0, 1.0 - sum(probabilities)))
    return -sum(p * math.log(p) for p in probabilities if p > 0.0)


def cue_at_end(text: str, languages: Languages = DEFAULT) -> int | None:
    """The start of the sentence whose opening cue ends the text; None if there is none.

    After the cue there may be punctuation and white space, or a few characters in a language
    without spaces: the rest of the token that completed the cue.
    """
    before = max(0, len(text) - CUE_TAIL)
    # The searched part of a long text does not start at the start of the text.
    match = _cue_pattern(languages).search("-" + text[before:] if before else text)
    return None if match is None else match.start("cue") + (before - 1 if before else 0)


@cache
def _cue_stops(languages: Languages) -> tuple[str, ...]:
    words = _words(languages, "transitions", spaces=True)
    return (*words, *map(str.capitalize, words), *_words(languages, "transitions", spaces=False))


def _words(languages: Languages, key: str, *, spaces: bool) -> list[str]:
    """The transitions or openers of the languages with, or without, spaces between words."""
    loaded = (load_language(name) for name in languages)
    return [
        word for language in loaded if language.spaces is spaces for word in getattr(language, key)
    ]


@cache
def _cue_pattern(languages: Languages) -> re.Pattern[str]:
    openers, openers_unspaced, cues, cues_unspaced = (
        any_of([re.escape(word) for word in sorted(_words(languages, key, spaces=spaces))])
        for key in ("openers", "transitions")
        for spaces in (True, False)
    )
    return re.compile(
        r"(?:\A|[.!?…:。！？：\n][\"'”’)\]*]*)\s*"
        rf"(?P<cue>(?:(?:{openers})[\s,.…]+|(?:{openers_unspaced})[\s,，.…]*)*"
        rf"(?:(?:{cues})|(?:{cues_unspaced})\w{{0,6}}))\W*\Z",
        re.IGNORECASE,
    )
