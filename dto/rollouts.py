r"""Sample short answers after an inducer: rollouts (2505.21765) and trial answers (2504.15895).

An inducer ends in `\boxed{`. If the vocabulary has tokens such as `{\` and `{-`, it ends before the
brace, and the model opens the brace with the token that it prefers. The answer is the text up to
the matching brace. Engines know stop strings but not nesting, so a request stops at every closing
brace and is continued while braces are open. An answer without inner braces takes one request.
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
from dto.records import Decision, FinishReason, Grade, Problem, Segment, Trajectory, derive
from dto.sequential import SequentialTest
from dto.text import closing_brace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.protocols import Engine

BOX = "\\boxed"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and its grade.

    `token_ids` (with `logprobs`, if requested) follow the inducer's ids. `text` runs from the
    inducer's box to its closing brace, or to the end if the brace never closes. `finish_reason`
    `stop` means that the brace was closed or the model ended. A failed request has grade `failed`,
    and `reason` says why.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] | None
    finish_reason: FinishReason
    grade: Grade
    answer: str
    reason: str


def answer_inducer(name: str, ctx: Context) -> str:
    r"""The inducer `name`, without its final brace if the vocabulary merges braces.

    After a separate brace token the model cannot write `{\`, with which most LaTeX answers begin.
    """
    inducer = ctx.text(name)
    return inducer.removesuffix("{") if merges_brace(ctx.tokenizer) else inducer


@lru_cache(maxsize=8)
def merges_brace(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether some token opens a brace and also begins the answer (`{}` does not count)."""
    return any(re.match(r"\{[^{}]", token) for token in tokenizer.get_vocab())


def answer_end(text: str) -> int | None:
    """Offset after the brace that closes the first brace of `text`; None if it is still open."""
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
    r"""Sample and grade n answers to `prefix` followed by the inducer.

    `prefix` holds the ids of the prompt and the thinking so far; :func:`dto.text.join` appends the
    inducer and leaves the first `fixed` ids unchanged. `sampling.max_tokens` limits one answer,
    inner braces included; the remaining context may lower it. Without room in the context, all
    answers are `truncated`. All n answers share one prefill; sample j uses seed + j. A presence
    penalty counts the inducer as the model's own text. Departure from both papers: they stop at a
    token limit and search the text; we stop at the closing brace, or at `sampling.stop` if given.
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
    """Continue after each stop at an inner brace, while tokens are left.

    On a resumable engine the seed stays the same, and the answer equals that of an uninterrupted
    request. On other engines each continued request gets a seed of its own.
    """
    whole = first
    rounds = 0
    while whole.finish_reason == "stop" and whole.stop and answer_end(box + whole.text) is None:
        left = sampling.max_tokens - len(whole.token_ids)
        if left < 1:
            return replace(whole, finish_reason="length")
        rounds += 1
        seed, written = sampling.seed, sampling.written + len(whole.token_ids)
        if not engine.capabilities.resumable:
            seed = derive(seed, "", "brace", rounds)
        drawn = replace(sampling, max_tokens=left, seed=seed, written=written)
        (more,) = await engine.complete((*prompt, *whole.token_ids), drawn)
        whole = replace(
            more,
            token_ids=whole.token_ids + more.token_ids,
            text=whole.text + more.text,
            logprobs=None if more.logprobs is None else (whole.logprobs or ()) + more.logprobs,
        )
    return whole


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of the outcomes of rollouts from one prefix."""

    rollouts: int = 0
    successes: int = 0
    truncated: int = 0
    failed: int = 0
    tokens: int = 0
    reason: str = ""  # why the last failed rollout failed

    @property
    def trials(self) -> int:
        """The denominator: rollouts that did not fail."""
        return self.rollouts - self.failed

    @property
    def p(self) -> float:
        """Share of successes; nan if all rollouts failed."""
        return self.successes / self.trials if self.trials else float("nan")

    def plus(self, answers: Iterable[Answer]) -> Tally:
        """This tally with further answers added."""
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
    """Add `count` rollouts to a tally: answers of the policy after `prefix` and d_exit.

    The last `written` tokens of `prefix` belong to the response. Rollout i of a tally uses
    seed + i, however many calls the tally takes.
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
    """Sample rollouts until the sequential test decides.

    Each round has the fewest rollouts after which the test can decide, so none is wasted and the
    result depends on the seed alone. Failed rollouts are replaced. If the failures reach the test's
    cap on trials, the prefix is `undecided`.
    """
    tally = Tally()
    while (decision := test.decide(tally.successes, tally.trials)) is None:
        count = test.rounds_to_decision(tally.successes, tally.trials)
        tally = await roll_out(prefix, problem, ctx, seed, count, tally, written)
        if tally.failed >= test.cap:
            return tally, "undecided"
    return tally, decision


def kept_ids(trajectory: Trajectory, kept: Sequence[Segment]) -> tuple[int, ...]:
    """The ids of a response with only these segments, cut at the exit of the last one."""
    ids = trajectory.token_ids
    parts = [ids[: trajectory.thinking_tokens.start]]
    parts += [ids[slice(*segment.tokens)] for segment in kept[:-1]]
    parts.append(ids[kept[-1].tokens.start : kept[-1].exit])
    return tuple(chain.from_iterable(parts))
