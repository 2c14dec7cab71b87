r"""Short answers after an inducer: rollouts (2505.21765) and trial answers (2504.15895).

An inducer ends in `\boxed{`, or just before its brace: where the vocabulary has tokens such as `{\`
and `{-`, the model opens the brace itself, by the token that it would take. What it writes up to
the matching brace is the answer. Engines know stop strings, not nesting, so a request stops at
every closing brace and goes on while braces are open: for an answer without inner braces that is
one request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.protocols import Completion, Sampling
from dto.records import (
    Decision,
    FinishReason,
    Grade,
    Problem,
    Segment,
    Trajectory,
    derive,
)
from dto.sequential import SequentialTest
from dto.text import closing_brace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.protocols import Engine

BOX = "\\boxed"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and its grade.

    `token_ids` (with their `logprobs`, where asked for) come after the inducer's; `text` runs from
    the inducer's box to its closing brace, or to the end where that never came. `finish_reason`
    `stop` means that the brace was closed or the model ended; a request that failed has grade
    `failed` and says why in `reason`.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] | None
    finish_reason: FinishReason
    grade: Grade
    answer: str
    reason: str


def answer_inducer(name: str, ctx: Context) -> str:
    r"""The inducer `name`, without the brace at its end where the vocabulary merges it.

    A brace of its own forbids `{\`, with which most answers in LaTeX begin.
    """
    inducer = ctx.text(name)
    return inducer.removesuffix("{") if merges_brace(ctx.tokenizer) else inducer


@lru_cache(maxsize=8)
def merges_brace(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a token opens a brace and begins an answer in it: `{}` is none."""
    return any(re.match(r"\{[^{}]", token) for token in tokenizer.get_vocab())


def answer_end(text: str) -> int | None:
    """Offset after the brace that closes the first one in `text`; None while there is none."""
    opening = text.find("{")
    closing = None if opening < 0 else closing_brace(text, opening)
    return None if closing is None else closing + 1


async def complete_answers(
    prefix: Sequence[int],
    inducer: str,
    problem: Problem,
    ctx: Context,
    sampling: Sampling,
    n: int = 1,
    fixed: int = 0,
) -> list[Answer]:
    r"""Graded answers to `prefix` followed by the inducer, n of them.

    `prefix` are the ids of prompt and thinking so far; the inducer's text is put behind them by
    :func:`dto.text.join`, which leaves the first `fixed` alone. `sampling.max_tokens` limits one
    answer, inner braces included, and is lowered where the context is nearer; without any room all
    answers are `truncated`. All n share one prefill, and sample j uses seed + j; a presence penalty
    takes the inducer for the model's own. Departure from both papers: they stop at a token limit
    and search the text; we stop at the brace, or at `sampling.stop` where that is given.
    """
    prompt = ctx.put_after(prefix, inducer, fixed)
    box = inducer[inducer.rindex(BOX) :]
    room = ctx.engine.context - len(prompt)
    if room < 1:
        return [Answer((), box, None, "length", "truncated", "", "no room in the context")] * n
    at_brace = not sampling.stop
    sampling = replace(
        sampling,
        max_tokens=min(sampling.max_tokens, room),
        stop=sampling.stop or ("}",),
        written=sampling.written + len(prompt) - len(prefix) if sampling.presence_penalty else 0,
    )
    completions = await ctx.engine.complete(prompt, sampling, n)

    async def finish(index: int) -> Answer:
        completion = completions[index]
        if at_brace:
            seeded = replace(sampling, seed=sampling.seed + index)
            completion = await _until_closed(ctx.engine, prompt, box, completion, seeded)
        return await _graded(box, completion, problem, ctx)

    return await gather_bounded(map(finish, range(n)), limit=n)


async def _graded(box: str, completion: Completion, problem: Problem, ctx: Context) -> Answer:
    text = box + completion.text
    text = text[: answer_end(text)]
    ids, logprobs, finish = completion.token_ids, completion.logprobs, completion.finish_reason
    if finish == "failed":
        return Answer(ids, text, logprobs, finish, "failed", "", completion.error)
    graded = await ctx.grader.grade_trial(text, problem.answer, problem.rule, problem.question)
    return Answer(ids, text, logprobs, finish, *graded)


async def _until_closed(
    engine: Engine, prompt: tuple[int, ...], box: str, first: Completion, sampling: Sampling
) -> Completion:
    """Go on after each stop at an inner brace, while tokens are left.

    Where noise depends on the absolute position the seed stays, and the answer is the one that an
    uninterrupted request would have given; elsewhere every request needs a seed of its own.
    """
    whole = first
    rounds = 0
    while whole.finish_reason == "stop" and whole.stop and answer_end(box + whole.text) is None:
        left = sampling.max_tokens - len(whole.token_ids)
        if left < 1:
            return replace(whole, finish_reason="length")
        rounds += 1
        seed = (
            sampling.seed
            if engine.capabilities.resumable
            else derive(sampling.seed, "", "brace", rounds)
        )
        (more,) = await engine.complete(
            (*prompt, *whole.token_ids),
            replace(
                sampling,
                max_tokens=left,
                seed=seed,
                written=sampling.written + len(whole.token_ids),
            ),
        )
        whole = replace(
            more,
            token_ids=whole.token_ids + more.token_ids,
            text=whole.text + more.text,
            logprobs=None if more.logprobs is None else (whole.logprobs or ()) + more.logprobs,
        )
    return whole


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of some rollouts of one prefix."""

    rollouts: int = 0
    successes: int = 0
    truncated: int = 0
    failed: int = 0
    tokens: int = 0
    reason: str = ""  # why the last one failed that did

    @property
    def trials(self) -> int:
        """The denominator: rollouts that did not fail."""
        return self.rollouts - self.failed

    @property
    def p(self) -> float:
        """Share of successes; nan where all failed."""
        return self.successes / self.trials if self.trials else float("nan")

    def plus(self, answers: Iterable[Answer]) -> Tally:
        """This tally and further answers."""
        answers = list(answers)
        failures = [answer.reason for answer in answers if answer.grade == "failed"]
        return Tally(
            rollouts=self.rollouts + len(answers),
            successes=self.successes + sum(answer.grade == "correct" for answer in answers),
            truncated=self.truncated + sum(answer.grade == "truncated" for answer in answers),
            failed=self.failed + len(failures),
            tokens=self.tokens + sum(len(answer.token_ids) for answer in answers),
            reason=failures[-1] if failures else self.reason,
        )


async def roll_out(
    prefix: Sequence[int],
    problem: Problem,
    ctx: Context,
    seed: int,
    count: int,
    tally: Tally = Tally(),
    written: int = 0,
) -> Tally:
    """`count` further rollouts: answers that the policy gives when d_exit follows `prefix`.

    The last `written` tokens of `prefix` are of the response. Rollout i of a tally uses seed + i,
    whatever the number of calls it is spread over.
    """
    settings = ctx.recipe.estimate
    inducer = answer_inducer("exit", ctx)
    sampling = ctx.sampling(settings.max_tokens, seed + tally.rollouts, written)
    return tally.plus(await complete_answers(prefix, inducer, problem, ctx, sampling, count))


async def roll_out_until_decided(
    prefix: Sequence[int],
    problem: Problem,
    ctx: Context,
    seed: int,
    test: SequentialTest,
    written: int = 0,
) -> tuple[Tally, Decision]:
    """Roll out until the test decides.

    Each round has as many rollouts as the test needs at the least before it can decide again, so
    none is sampled in vain and the result depends on the seed alone. Failed rollouts are replaced;
    once as many have failed as the cap allows trials, the prefix is `undecided`.
    """
    tally = Tally()
    while (decision := test.decide(tally.successes, tally.trials)) is None:
        count = test.rounds_to_decision(tally.successes, tally.trials)
        tally = await roll_out(prefix, problem, ctx, seed, count, tally, written)
        if tally.failed >= test.cap:
            return tally, "undecided"
    return tally, decision


def kept_ids(trajectory: Trajectory, kept: Sequence[Segment]) -> tuple[int, ...]:
    """The ids of a response that has these segments alone, cut at the last one's exit."""
    ids = trajectory.token_ids
    parts = [ids[: trajectory.thinking_tokens.start]]
    parts += [ids[slice(*segment.tokens)] for segment in kept[:-1]]
    parts.append(ids[kept[-1].tokens.start : kept[-1].exit])
    return tuple(chain.from_iterable(parts))
