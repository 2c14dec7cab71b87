"""Policies that ask for no trial answers: budget, static, no_thinking, nowait.

Each names the keys of `ExitSettings` that it reads.
"""

from __future__ import annotations

import asyncio
import math
import re
import threading
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from dto.context import Context
from dto.exits.path import BROKEN, ExitedResponse, ResponsePath
from dto.recipe import ExitSettings
from dto.records import Problem, derive
from dto.rollouts import BOX, answer_inducer, complete_answers
from dto.trajectories import opening

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCE_ENDS = (".", "!", "?", "\n", "。", "！", "？", "．", "｡")
_ENDED = re.compile(r"[.!?\n。！？．｡][\"'”’」』)\]*]*\s*\Z")
_AFTER_DIGIT = re.compile(r"\d\.\Z")


async def budget(
    path: ResponsePath, settings: ExitSettings, problem: Problem, ctx: Context
) -> ExitedResponse:
    """Close the thinking once `settings.budget` tokens were generated, if it is still open.

    Budget forcing (2501.19393, section 3), the control that every claim of an early exit needs.
    Reads `budget`, `grace`, `think_ratio` and `trial_tokens`. A `<think>` that the model writes
    itself counts. The exit reason is `budget` wherever closing or answer had to be forced. An
    answer is missing only where `max_tokens` has no room for a boxed one, or where a request
    failed. Departs from the paper:

    - Graceful: the thinking goes on to the end of its sentence when that comes within `grace`
      further tokens; else it is cut at the budget. What was generated beyond the cut is withdrawn
      and counted.
    - An answer is always left. Of the tokens that a response may have, `trial_tokens` are kept back
      for a bare boxed answer, which replaces a conclusion that does not end in time (not for code).
      Of the others at most the share `think_ratio` is thinking, whatever the budget: a conclusion
      retells the thinking, so what it needs grows with it. Thinking that ends without being closed
      is closed too.
    - No lower bound: the paper also makes a model go on thinking by writing "Wait" for it.
    """
    close = ctx.text("early_close")
    inducer = answer_inducer("trial_closed", ctx)
    inserted = max(len(ctx.encode(close)), len(ctx.encode(inducer)))
    room = min(path.sampling.max_tokens, ctx.engine.context - len(path.prompt_ids) - inserted)
    kept_back = 0 if problem.rule == "code" else settings.trial_tokens
    path.sampling = replace(path.sampling, max_tokens=max(0, room - kept_back))
    most = math.floor(settings.think_ratio * path.sampling.max_tokens)
    longest = min(settings.budget + settings.grace, most)
    cut = await _think(path, min(settings.budget, most), longest)
    cut -= ctx.tags.unfinished(path.ids[:cut])
    if path.closed or path.finish == "failed":
        response = await path.finished()
        cut = len(response.leading_ids) + len(response.thinking_ids)
    else:
        response = await path.concluded(cut, close, "budget")
    left = min(kept_back, room)
    if response.complete or response.exit_reason == "failed" or left < 1:
        return response
    return await _answered(path, response, cut, inducer, left, problem, ctx)


async def _think(path: ResponsePath, budget: int, longest: int) -> int:
    """Think, and say how many tokens to keep; the model may close the thinking before that."""
    if budget:
        await path.advance(limit=budget)
    at_budget = _border(path)
    while path.thinking:
        text = path.tail()
        cut = _border(path)
        ended = _ENDED.search(text) is not None
        if ended and not _AFTER_DIGIT.search(text):
            return cut
        if len(path.ids) >= longest:
            return at_budget
        if not ended:
            await path.advance(stop=SENTENCE_ENDS, limit=longest - len(path.ids))
            continue
        following = await path.advance(limit=1)  # it alone tells "3." from "3.5"
        if path.thinking and not following.text[:1].isdigit():
            return cut
    return at_budget if path.finish == "length" else _border(path)


def _border(path: ResponsePath) -> int:
    """How many tokens hold more than white space, and no character that is not complete."""
    return path.cut(len(path.tail().rstrip(BROKEN)))


async def _answered(
    path: ResponsePath,
    response: ExitedResponse,
    cut: int,
    inducer: str,
    max_tokens: int,
    problem: Problem,
    ctx: Context,
) -> ExitedResponse:
    """The response with a bare boxed answer in place of what follows its first `cut` tokens."""
    prefix = (*path.prompt_ids, *path.ids[:cut])
    joined = ctx.join(prefix, inducer, fixed=len(path.prompt_ids))
    start = len(response.leading_ids)
    thinking_ids = prefix[len(path.prompt_ids) + start : joined.kept]
    seed = derive(path.sampling.seed, "", "answer", cut)
    [answer] = await complete_answers(
        prefix,
        inducer,
        problem,
        ctx,
        replace(path.sampling, max_tokens=max_tokens, seed=seed, written=cut),
        fixed=len(path.prompt_ids),
    )
    # All that was generated for the main path and for the conclusion, less what stays of it.
    generated = len(response.thinking_ids) + len(response.answer_ids) + response.withdrawn
    withdrawn = generated - len(thinking_ids)
    failed = answer.finish_reason == "failed"
    heading = inducer[: inducer.rindex(BOX)].partition(ctx.tags.close)[2]
    return replace(
        response,
        thinking_ids=thinking_ids,
        inserted_ids=joined.inserted,
        answer_ids=answer.token_ids,
        conclusion=heading + answer.text,
        exit_reason="failed" if failed else "budget",
        finish_reason=answer.finish_reason,
        withdrawn=withdrawn,
        error=answer.reason if failed else "",
    )


async def static(
    path: ResponsePath, settings: ExitSettings, problem: Problem, ctx: Context
) -> ExitedResponse:
    """Keep the first `settings.fraction` of the model's own thinking (2504.15895, pilot study).

    Rounded down to a token that ends a character, not to the end of a sentence. An oracle, not a
    policy: the length of the thinking is known only once it has been written in full. The response
    counts the tokens that are kept; the others are wasted. Reads `fraction`.
    """
    whole = await path.finished()
    if whole.exit_reason == "failed":
        return whole
    cut = len(whole.leading_ids) + math.floor(settings.fraction * len(whole.thinking_ids))
    exited = await path.concluded(cut, ctx.text("early_close"), "policy")
    return replace(exited, withdrawn=0)


async def no_thinking(
    path: ResponsePath, settings: ExitSettings, problem: Problem, ctx: Context
) -> ExitedResponse:
    """Close the thinking before it begins (NoThinking, 2504.09858, section 2).

    The prompt `no_thinking` stands in for it; `<think>` is put in where the chat template does not
    open it. Reads no key beside its name. Departs from the paper: one answer, where the paper also
    samples many under the same token budget and selects among them (`evaluate.samples` does the
    first half).
    """
    text = opening(ctx.tokenizer, path.prompt_ids, ctx.tags) + ctx.text("no_thinking")
    return await path.concluded(0, text, "policy")


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
    path: ResponsePath, settings: ExitSettings, problem: Problem, ctx: Context
) -> ExitedResponse:
    """Think without the words that begin a reconsideration (NoWait, 2506.08343, section 3).

    The keywords' tokens are never sampled until the model closes its thinking; the conclusion is
    not restricted. Reads no key beside its name. A token is banned when it is a keyword and nothing
    else but spaces and punctuation (`" Wait,"`, not `Ohio`): ours, so that no list of exceptions is
    needed. A keyword that a model spells in several tokens is not seen.
    """
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
