"""Think without the words that begin a reconsideration (NoWait, 2506.08343, section 3).

Reads no key of `ExitSettings` beside its name. The keywords' tokens are never sampled until the
model closes its thinking; the conclusion is not restricted.

A token is banned when it is a keyword and nothing else but spaces and punctuation (`" Wait,"`, not
`Ohio`): ours, so that no list of exceptions is needed. A keyword that a model spells in several
tokens is not seen.
"""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from dto.context import Context
from dto.exits.path import ExitedResponse, Path
from dto.recipe import ExitSettings
from dto.records import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEYWORDS = frozenset(
    (
        "wait", "alternatively", "hmm", "but", "however", "alternative", "another", "check",
        "double-check", "oh", "maybe", "verify", "other", "again", "now", "ah", "any",
    )
)  # fmt: skip
"""2506.08343, section 3: what begins paragraphs most often in 32 runs of QwQ-32B on AIME 2025."""

_EDGE = re.compile(r"^[\W_]+|[\W_]+$")
_one_at_a_time = threading.Lock()


async def nowait(
    path: Path, settings: ExitSettings, problem: Problem, ctx: Context
) -> ExitedResponse:
    """Let the model think to its own end without the keywords, then conclude with all its words."""
    banned = await asyncio.to_thread(keyword_ids, ctx.tokenizer)
    path.sampling = replace(path.sampling, banned=banned)
    while path.thinking:  # a spelt tag stops it too, and is none where the tag is one token
        await path.advance(stop=(ctx.tags.close,))
    path.sampling = replace(path.sampling, banned=())
    return await path.finished()


def keyword_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that are one of `KEYWORDS` in any case; computed once for each tokenizer.

    Takes about a second for 150,000 tokens: call it in a thread.
    """
    with _one_at_a_time:
        return _keyword_ids(tokenizer)


@lru_cache(maxsize=4)
def _keyword_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return tuple(
        token for token, text in enumerate(texts) if _EDGE.sub("", text).lower() in KEYWORDS
    )
