"""Leave when the model is sure how the program begins (2504.15895, section 3, for code answers).

The confidence is the mean probability of the first `trial_tokens` tokens after an opened code
fence (prompts `trial_code_inside`, `trial_code_closed`), or of those up to the closing fence.

Ours: the wording of the inducers, and where a trial ends: after those tokens, or at the token after
which the mean cannot pass the threshold even if all further tokens were certain. That depends on
the tokens alone, so rows do too; tokens that the engine generated beyond it are wasted. With
`shadow` no trial is cut short, so its confidence is valid for any threshold. A trial that shows
only the beginning of a program has no grade (`failed`, so it is in no denominator). A finished
program is run against the problem's tests, if programs may be run at all (`dto.grading.sandbox`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import aclosing

from dto.context import Context
from dto.exits.deer import ThresholdPolicy
from dto.exits.loop import TrialResult
from dto.exits.path import ResponsePath
from dto.protocols import Sampling
from dto.records import FinishReason, Problem, Trial
from dto.settings import Inducer
from dto.text import decode_response
from dto.usage import Usage, charge

FENCE = "```"


class Code(ThresholdPolicy):
    """Leave at the first transition whose program has a confidence above the threshold."""

    inducer: Inducer = "inside"

    def inducers(self, ctx: Context) -> list[str]:
        """The prompt that opens a code fence, inside the thinking or after closing it."""
        return [ctx.text(f"trial_code_{self.inducer}")]

    async def trial(
        self, path: ResponsePath, cut: int, inducers: Sequence[str], problem: Problem, ctx: Context
    ) -> TrialResult:
        """Sample the beginning of a program after the first `cut` tokens."""
        prefix = ctx.put_after(path.prefix(cut), inducers[0])
        limit = min(self.trial_tokens, ctx.engine.context - len(prefix))
        if limit < 1:
            return _ungraded(cut, 0.0, "", ())
        sampling = Sampling(limit, temperature=0.0, top_p=1.0, stop=(FENCE,), logprobs=0)
        threshold = -1.0 if self.shadow else self.threshold
        ids: list[int] = []
        total = 0.0
        finish: FinishReason | None = None
        async with aclosing(ctx.engine.stream(prefix, sampling)) as chunks:
            async for chunk in chunks:
                finish = chunk.finish_reason
                if finish == "failed":
                    return _ungraded(cut, 0.0, "", ids, chunk.error or "no reason given")
                tokens = zip(chunk.token_ids, chunk.logprobs or (), strict=True)
                for read, (token, logprob) in enumerate(tokens, 1):
                    ids.append(token)
                    total += math.exp(logprob)
                    if (total + limit - len(ids)) / limit <= threshold:
                        charge(Usage(wasted=len(chunk.token_ids) - read))
                        return _ungraded(cut, total / len(ids), _block(ctx, ids), ids)
        block = _block(ctx, ids)
        sure = total / len(ids) if block.strip() else 0.0
        if finish != "stop":
            return _ungraded(cut, sure, block, ids)
        graded = await ctx.grader.grade_conclusion(
            f"{FENCE}python\n{block}{FENCE}", problem.answer, problem.rule
        )
        ended = Trial(cut, sure, block, graded.grade, len(ids), tuple(ids), block)
        return TrialResult(ended, "")


def _block(ctx: Context, ids: Sequence[int]) -> str:
    return decode_response(ctx.tokenizer, ids, ctx.tags).partition(FENCE)[0]


def _ungraded(
    position: int, sure: float, block: str, ids: Sequence[int], error: str = ""
) -> TrialResult:
    trial = Trial(position, sure, block, "failed", len(ids), tuple(ids), block)
    return TrialResult(trial, error)
