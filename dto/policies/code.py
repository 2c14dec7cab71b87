"""Leave when the model is sure how the program begins (2504.15895, section 3, for code answers).

Reads `inducer` (prompts `trial_code_inside`, `trial_code_closed`), `threshold`, `trial_tokens`,
`trial_share`, `shadow` and, for where trials are made, the keys of `dto.exits.loop` and
`dto.exits.monitor`. Confidence is the mean probability of the first `trial_tokens` tokens after an
opened code fence, the closing fence included where it comes earlier.

Ours: the wording of the inducers, and that a trial ends after those tokens or is aborted at the one
after which the mean can no longer pass the threshold even if all that follow were certain. Where
that is depends on the tokens alone, so rows do too; tokens that an engine generated beyond it are
wasted. In shadow mode trials are not aborted: their confidence
then holds for any threshold. A trial that shows only the beginning of a program has no grade
(`failed`, so that it is in no denominator); a finished one is run against the problem's tests,
where programs may be run at all (`dto.grading.sandbox`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import aclosing

from dto.context import Context
from dto.exits.deer import decide
from dto.exits.loop import TrialResult, leave_at_transition
from dto.exits.path import ExitedResponse, ResponsePath
from dto.protocols import Sampling
from dto.recipe import ExitSettings
from dto.records import FinishReason, Problem, Trial
from dto.text import decode_response
from dto.usage import Usage, charge

FENCE = "```"


async def code(
    path: ResponsePath, settings: ExitSettings, problem: Problem, ctx: Context
) -> ExitedResponse:
    """Leave at the first transition whose code has a confidence above `settings.threshold`."""
    inducer = ctx.text(f"trial_code_{settings.inducer}")

    async def probe(cut: int) -> TrialResult:
        prefix = ctx.put_after((*path.prompt_ids, *path.ids[:cut]), inducer)
        return await _try_code(prefix, cut, settings, problem, ctx)

    read = len(ctx.encode(inducer))
    return await leave_at_transition(path, settings, ctx, probe, decide(settings), read)


async def _try_code(
    prefix: tuple[int, ...], position: int, settings: ExitSettings, problem: Problem, ctx: Context
) -> TrialResult:
    most = min(settings.trial_tokens, ctx.engine.context - len(prefix))
    if most < 1:
        return _tried(position, 0.0, "", 0)
    sampling = Sampling(most, temperature=0.0, top_p=1.0, stop=(FENCE,), logprobs=0)
    threshold = -1.0 if settings.shadow else settings.threshold
    ids: list[int] = []
    total = 0.0
    finish: FinishReason | None = None
    async with aclosing(ctx.engine.stream(prefix, sampling)) as chunks:
        async for chunk in chunks:
            finish = chunk.finish_reason
            if finish == "failed":
                return _tried(position, 0.0, "", len(ids), chunk.error or "no reason given")
            probabilities = map(math.exp, chunk.logprobs or ())
            for read, (token, p) in enumerate(zip(chunk.token_ids, probabilities, strict=True), 1):
                ids.append(token)
                total += p
                if (total + most - len(ids)) / most <= threshold:
                    charge(Usage(wasted=len(chunk.token_ids) - read))
                    return _tried(position, total / len(ids), _block(ctx, ids), len(ids))
    block = _block(ctx, ids)
    sure = total / len(ids) if block.strip() else 0.0
    if finish != "stop":
        return _tried(position, sure, block, len(ids))
    graded = await ctx.grader.grade_conclusion(
        f"{FENCE}python\n{block}{FENCE}", problem.answer, problem.rule
    )
    return TrialResult(Trial(position, sure, block, graded.grade, len(ids)), "")


def _block(ctx: Context, ids: Sequence[int]) -> str:
    return decode_response(ctx.tokenizer, ids, ctx.tags).partition(FENCE)[0]


def _tried(position: int, sure: float, block: str, tokens: int, error: str = "") -> TrialResult:
    """A trial without a grade: the beginning of a program is no answer."""
    return TrialResult(Trial(position, sure, block, "failed", tokens), error)
