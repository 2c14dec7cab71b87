"""Where a reasoning transition stands (2504.15895, section 3: reasoning transition monitor).

The path is continued with stop strings, so an engine generates nothing beyond the transition; the
tokens that made it visible (a cue, white space) are put aside for the trial and restored when the
path goes on. Departs from the published code: a cue counts only as a word of its own at the start
of a sentence, in any case and after an opener (`But wait`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache

from dto.exits.path import Path
from dto.recipe import ExitSettings
from dto.segmentation.lexicon import load

PARAGRAPH = "\n\n"
ENTROPY_LOGPROBS = 20  # the most that servers give

CUES = ("wait", "alternatively", "hmm")
CUES_ZH = ("等等", "等一下", "或者", "另外")  # no white space ends these


async def next_transition(path: Path, settings: ExitSettings) -> int | None:
    """Go on to the next transition: the number of tokens before it, or None when there is none.

    The count leaves out the cue and white space before it. None means that the path ended or that
    the model closed its thinking.
    """
    if settings.monitor == "cue":
        return await _next_cue(path)
    while True:
        await path.advance(stop=(PARAGRAPH,))
        if not path.thinking:
            return None
        cut = path.cut(len(path.tail()))
        if settings.monitor == "paragraph":
            return cut
        step = await path.advance(limit=1, logprobs=ENTROPY_LOGPROBS)
        if not path.thinking:
            return None
        assert step.top_logprobs is not None
        if entropy(step.top_logprobs[0]) > settings.entropy:
            return cut


async def _next_cue(path: Path) -> int | None:
    while True:
        await path.advance(stop=_stops())
        if not path.thinking:
            return None
        text = path.tail()
        start = cue_at_end(text)
        if start is None:
            continue
        cut = path.cut(start)
        if text[-1].isascii() and text[-1].isalpha():
            next_token = await path.advance(limit=1)  # it alone tells "Wait" from "Waiting"
            if not path.thinking:
                return None
            if next_token.text[:1].isalnum():
                continue
        return cut


def entropy(logprobs: Mapping[int, float]) -> float:
    """Entropy in nats of a distribution of which the most likely tokens are known.

    What they leave over counts as one more outcome: a lower bound that is exact when they are all.
    """
    probabilities = [math.exp(logprob) for logprob in logprobs.values()]
    probabilities.append(max(0.0, 1.0 - sum(probabilities)))
    return -sum(p * math.log(p) for p in probabilities if p > 0.0)


def cue_at_end(text: str) -> int | None:
    """Where the sentence starts whose opening cue the text ends in; None when it ends in no cue.

    The rest of the token that completed the cue may stand after it: punctuation and white space,
    or for Chinese cues a few characters.
    """
    match = _cue_pattern().search(text)
    return None if match is None else match.start("cue")


@cache
def _stops() -> tuple[str, ...]:
    return (*CUES, *map(str.capitalize, CUES), *CUES_ZH)


@cache
def _cue_pattern() -> re.Pattern[str]:
    openers = sorted(load().openers)
    words = "|".join(opener for opener in openers if opener.isascii())
    characters = "|".join(opener for opener in openers if not opener.isascii())
    cues, cues_zh = "|".join(CUES), "|".join(CUES_ZH)
    return re.compile(
        r"(?:\A|[.!?…:。！？：\n][\"'”’)\]*]*)\s*"
        rf"(?P<cue>(?:(?:{words})[\s,.…]+|(?:{characters})[\s,，.…]*)*"
        rf"(?:(?:{cues})|(?:{cues_zh})\w{{0,6}}))\W*\Z",
        re.IGNORECASE,
    )
