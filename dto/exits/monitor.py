"""Where a reasoning transition stands (2504.15895, section 3: reasoning transition monitor).

Transitions are a function of the main path's tokens alone: read in one go, in pieces, or with
pauses, a path has the same ones. The tokens that made a transition visible (a cue, white space) are
put aside for the trial and restored when the path goes on. Departs from the published code: a cue
counts only as a word of its own at the start of a sentence, in any case and after an opener (`But
wait`).
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
ENTROPY_LOGPROBS = 20  # the most that servers give

TAIL = 512  # characters of white space that a cut can step back over
CUE_TAIL = 128  # characters: a cue, its openers and the end of the sentence before
BORDERS = 64  # tokens back that a cut can lie


class Transition(NamedTuple):
    """`cut` tokens come before it; it became visible with token number `seen`."""

    cut: int
    seen: int


class Monitor:
    r"""Reads the tokens of one response, and finds the transitions of its thinking.

    The cut leaves out the cue, and keeps every token that begins before it, less those at the end
    that hold only white space: the end of a paragraph that is part of a token (`).\n\n`) stays. A
    token that holds both text and cue (`.Wait`) is left out, with the punctuation in it. The cut
    never falls inside a character. Each cut lies behind the one before, and some thinking lies
    before the first. There are no transitions once the thinking is `closed`.
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
        self._text = ""  # its end
        self._start = 0  # offset at which that begins
        self._borders = deque([(0, 0)], maxlen=BORDERS)  # (offset, tokens that end there)
        self._last = 0
        self._pending: int | None = None  # a cut that depends on the next token

    @property
    def logprobs(self) -> int | None:
        """What `read` needs to know of the tokens of an uninterrupted path."""
        return ENTROPY_LOGPROBS if self._kind == "entropy" else None

    def pause(self) -> dict[str, Any]:
        """How far a path can go on without going beyond a transition: for `Path.advance`."""
        if self._pending is not None:
            return {"limit": 1, "logprobs": self.logprobs}
        if self._kind == "tokens":
            return {"limit": self._every - self._count % self._every}
        if self._reader.half_way:  # an engine looks for stops in new text alone
            return {"limit": 1}
        return {"stop": self._stops}

    def scan(
        self,
        tokens: Sequence[int],
        top_logprobs: Sequence[Mapping[int, float]] | None = None,
        *,
        ended: bool,
    ) -> Iterator[Transition]:
        """The transitions that the next tokens bring.

        The last token of a response that has `ended` brings none, whatever it is.
        """
        for index, token in enumerate(tokens[:-1] if ended else tokens):
            if self.closed:
                return
            found = self.read(token, top_logprobs[index] if top_logprobs else None)
            if found is not None:
                yield found

    def read(self, token: int, top: Mapping[int, float] | None = None) -> Transition | None:
        """Read one token; monitor `entropy` needs the `top` logprobs at a step's first."""
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
        if cut is not None:  # a trial never begins inside a close of several tokens
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
                raise ValueError("monitor entropy needs the logprobs of a step's first token")
            cut = self._pending if entropy(top) > self._entropy else None
            self._pending = None
        if stopped:
            self._pending = self._cut(len(self._text))
        return cut

    def _look_for_cue(self, piece: str, stopped: bool) -> int | None:
        # The token after it alone tells "Wait" from "Waiting".
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
        """How many tokens begin before a character of the text, less white space before it."""
        text = self._text[:char].rstrip()
        if self._start == 0 and text.lstrip() == self._tags.open:
            return 0
        borders = [(end - self._start, tokens) for end, tokens in self._borders]
        return kept_tokens(borders, self._text, len(text))


def kept_tokens(borders: Iterable[tuple[int, int]], text: str, char: int) -> int:
    """How many tokens a cut keeps of a text that is to end at a character.

    `borders` are (offset in the text, tokens before it), in order. The token that reaches beyond
    the character is kept where only white space lies beyond. 0 where no border lies so far back.
    """
    kept, known = 0, False
    for end, tokens in borders:
        if end <= char:
            kept, known = tokens, True
            exact = end == char
        elif known and not exact and text[char:end].isspace():
            return tokens
        else:
            break
    return kept


def entropy(logprobs: Mapping[int, float]) -> float:
    """Entropy in nats of a distribution of which the most likely tokens are known.

    What they leave over counts as one more outcome: a lower bound that is exact when they are all.
    """
    probabilities = [math.exp(logprob) for logprob in logprobs.values()]
    probabilities.append(max(0.0, 1.0 - sum(probabilities)))
    return -sum(p * math.log(p) for p in probabilities if p > 0.0)


def cue_at_end(text: str, languages: Languages = DEFAULT) -> int | None:
    """Where the sentence starts whose opening cue the text ends in; None when it ends in no cue.

    The rest of the token that completed the cue may stand after it: punctuation and white space,
    or a few characters in a language without spaces.
    """
    before = max(0, len(text) - CUE_TAIL)
    # A long text does not begin where the part that is searched does.
    match = _cue_pattern(languages).search("-" + text[before:] if before else text)
    return None if match is None else match.start("cue") + (before - 1 if before else 0)


@cache
def _cue_stops(languages: Languages) -> tuple[str, ...]:
    words = _words(languages, "transitions", spaces=True)
    return (*words, *map(str.capitalize, words), *_words(languages, "transitions", spaces=False))


def _words(languages: Languages, key: str, *, spaces: bool) -> list[str]:
    """The transitions or openers of the languages with, or without, spaces between words."""
    loaded = (load_language(name) for name in languages)
    return [word for each in loaded if each.spaces is spaces for word in getattr(each, key)]


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
