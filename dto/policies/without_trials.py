"""Policies without trial answers: budget, static, no_thinking, nowait."""

from __future__ import annotations

import asyncio
import math
import re
import threading
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dto.context import Context
from dto.exits.path import TAIL_TOKENS, ExitedResponse, ResponsePath
from dto.protocols import Engine
from dto.records import Problem, derive
from dto.rollouts import BOX, answer_inducer, complete_answers
from dto.settings import Count, ExitPolicy, Probability
from dto.trajectories import opening

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCE_ENDS = (".", "!", "?", "\n", "。", "！", "？", "．", "｡")
_ENDED = re.compile(r"[.!?\n。！？．｡][\"'”’」』)\]*]*\s*\Z")
_AFTER_DIGIT = re.compile(r"\d\.\Z")


class Budget(ExitPolicy):
    """Close the thinking after `budget` generated tokens, if it is still open.

    Budget forcing (2501.19393, section 3): the control for every claim about early exits. A
    `<think>` that the model writes itself counts. The exit reason is `budget` wherever the close or
    the answer had to be forced. An answer is missing only if `max_tokens` has no room for a boxed
    one, or if a request failed. Departures from the paper:

    - The cut is graceful: the thinking continues to the end of its sentence if that comes within
      `grace` further tokens; otherwise it is cut at the budget. Tokens generated beyond the cut are
      withdrawn and counted.
    - There is always an answer. `trial_tokens` of the response's tokens are reserved for a bare
      boxed answer, which replaces a conclusion that does not end in time (not for code). At most
      the share `think_ratio` of the others is thinking, whatever the budget: a conclusion repeats
      the thinking, so its length grows with it. Thinking that ends without a close is closed too.
    - There is no lower bound: the paper also makes a model think longer by inserting "Wait".
    """

    budget: Count = 1024  # thinking tokens
    grace: Annotated[int, Field(ge=0)] = 64  # further tokens to end the sentence
    think_ratio: Probability = 0.9  # largest share of max_tokens that may be thinking
    trial_tokens: Count = 20  # reserved for the boxed answer

    async def leave(self, path: ResponsePath, problem: Problem, ctx: Context) -> ExitedResponse:
        """Think within the budget, conclude, and force an answer if there is none."""
        close = ctx.text("early_close")
        inducer = answer_inducer("trial_closed", ctx)
        inserted = max(len(ctx.encode(close)), len(ctx.encode(inducer)))
        room = min(path.sampling.max_tokens, ctx.engine.context - len(path.prompt_ids) - inserted)
        reserved = 0 if problem.rule == "code" else self.trial_tokens
        path.sampling = replace(path.sampling, max_tokens=max(0, room - reserved))
        limit = math.floor(self.think_ratio * path.sampling.max_tokens)
        longest = min(self.budget + self.grace, limit)
        cut = await _think(path, min(self.budget, limit), longest)
        cut -= ctx.tags.unfinished(path.ids[:cut])
        if path.closed or path.finish == "failed":
            response = await path.finished()
            cut = len(response.leading_ids) + len(response.thinking_ids)
        else:
            response = await path.concluded(cut, "budget", close)
        left = min(reserved, room)
        if response.complete or response.exit_reason == "failed" or left < 1:
            return response
        return await boxed_answer(path, response, cut, inducer, left, problem, ctx)


async def _think(path: ResponsePath, budget: int, longest: int) -> int:
    """Think and return how many tokens to keep; the model may close the thinking earlier."""
    if budget:
        await path.advance(limit=budget)
    at_budget = path.border()
    while path.thinking:
        text = path.text(last=TAIL_TOKENS)
        cut = path.border()
        ended = _ENDED.search(text) is not None
        if ended and not _AFTER_DIGIT.search(text):
            return cut
        if len(path.ids) >= longest:
            return at_budget
        if not ended:
            await path.advance(stop=SENTENCE_ENDS, limit=longest - len(path.ids))
            continue
        following = await path.advance(limit=1)  # tells "3." from "3.5"
        if path.thinking and not following.text[:1].isdigit():
            return cut
    return at_budget if path.finish == "length" else path.border()


async def boxed_answer(
    path: ResponsePath,
    response: ExitedResponse,
    cut: int,
    inducer: str,
    max_tokens: int,
    problem: Problem,
    ctx: Context,
) -> ExitedResponse:
    """The response with a bare boxed answer in place of all but its first `cut` tokens."""
    prefix = path.prefix(cut)
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
    # Tokens generated for the main path and the conclusion, less those that are kept.
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


class Static(ExitPolicy):
    """Keep the first `fraction` of the model's own thinking (2504.15895, pilot study).

    The cut is rounded down to a token that ends a character, not to the end of a sentence. This is
    an oracle, not a policy: the length of the thinking is known only once it is complete. The
    response counts the tokens that are kept; the others are wasted.
    """

    fraction: Probability = 0.5

    async def leave(self, path: ResponsePath, problem: Problem, ctx: Context) -> ExitedResponse:
        """Think to the end, cut, and conclude."""
        whole = await path.finished()
        if whole.exit_reason == "failed":
            return whole
        cut = len(whole.leading_ids) + math.floor(self.fraction * len(whole.thinking_ids))
        return replace(await path.concluded(cut), withdrawn=0)


class NoThinking(ExitPolicy):
    """Close the thinking before it begins (NoThinking, 2504.09858, section 2).

    The prompt `no_thinking` takes its place; `<think>` is inserted if the chat template does not
    open it. Departure from the paper: one answer; the paper also samples many within the same token
    budget and selects among them (`evaluate.samples` does the first half).
    """

    async def leave(self, path: ResponsePath, problem: Problem, ctx: Context) -> ExitedResponse:
        """Conclude from the prompt."""
        text = opening(ctx.tokenizer, path.prompt_ids, ctx.tags) + ctx.text("no_thinking")
        return await path.concluded(0, close=text)


KEYWORDS = frozenset(
    (
        "wait", "alternatively", "hmm", "but", "however", "alternative", "another", "check",
        "double-check", "oh", "maybe", "verify", "other", "again", "now", "ah", "any",
    )
)  # fmt: skip
"""The most frequent first words of paragraphs in 32 runs of QwQ-32B on AIME 2025 (2506.08343)."""

_EDGE = re.compile(r"^[\W_]+|[\W_]+$")
_one_at_a_time = threading.Lock()


class NoWait(ExitPolicy):
    """Think without the words that begin a reconsideration (NoWait, 2506.08343, section 3).

    The keywords' tokens are never sampled until the model closes its thinking; the conclusion is
    not restricted. Ours: a token is banned if it is a keyword and nothing else but spaces and
    punctuation (`" Wait,"`, not `Ohio`), so no list of exceptions is needed. A keyword that takes
    several tokens is not banned.
    """

    def check(self, engine: Engine) -> None:
        """Raise EngineError, before any work, if the engine cannot ban tokens."""
        super().check(engine)
        self.require("policy nowait needs banned tokens", engine.capabilities.banned, engine)

    async def leave(self, path: ResponsePath, problem: Problem, ctx: Context) -> ExitedResponse:
        """Think with banned tokens to the model's own end, and conclude without."""
        banned = await asyncio.to_thread(keyword_ids, ctx.tokenizer)
        path.sampling = replace(path.sampling, banned=banned)
        while path.thinking:  # may also stop at the tag in several tokens, which does not close
            await path.advance(stop=(ctx.tags.close,))
        path.sampling = replace(path.sampling, banned=())
        return await path.finished()


def keyword_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that are one of `KEYWORDS` in any case, computed once for each tokenizer.

    This takes about a second for 150,000 tokens: call it in a thread.
    """
    with _one_at_a_time:
        return _keyword_ids(tokenizer)


@lru_cache(maxsize=4)
def _keyword_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return tuple(
        token for token, text in enumerate(texts) if _EDGE.sub("", text).lower() in KEYWORDS
    )
