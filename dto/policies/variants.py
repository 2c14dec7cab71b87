"""Variants of DEER: the published Qwen3 script (mode `qwen3`) and DEER-PRo (mode `pro`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.exits.deer import ThresholdPolicy
from dto.exits.loop import TrialResult, ask, confidence, trial_result, try_answer
from dto.exits.path import ResponsePath
from dto.records import Problem
from dto.rollouts import answer_inducer
from dto.settings import Confidence
from dto.text import decode_response


class Qwen3(ThresholdPolicy):
    """DEER as the published Qwen3 script: a trial, inside the thinking, continues to `</think>`.

    Its confidence is the geometric mean (`dto.exits.loop`), and 0 unless `</think>` follows within
    `trial_tokens` tokens (published: 20).
    """

    mode: Literal["qwen3"]

    def inducers(self, ctx: Context) -> list[str]:
        """The prompt that asks for the answer inside the thinking."""
        return [answer_inducer("trial_inside", ctx)]

    async def trial(
        self, path: ResponsePath, cut: int, inducers: Sequence[str], problem: Problem, ctx: Context
    ) -> TrialResult:
        """Ask for the answer and the end of the thinking after the first `cut` tokens."""
        close = ctx.tags.close
        answer, ends = await ask(
            path.prefix(cut), inducers[0], self.trial_tokens, problem, ctx, stop=(close,)
        )
        sure = 0.0
        if close in decode_response(ctx.tokenizer, answer.token_ids, ctx.tags):
            sure = confidence("geometric", answer.text, ends, answer.logprobs or ())
        return trial_result(cut, sure, answer)


class Pro(ThresholdPolicy):
    """DEER-PRo: one trial asks four inducers, and their disagreement lowers its confidence."""

    mode: Literal["pro"]
    confidence: Confidence = "answer"

    def inducers(self, ctx: Context) -> list[str]:
        """Four wordings of the prompt that asks for the answer inside the thinking."""
        return [answer_inducer(f"trial_pro_{number}", ctx) for number in (1, 2, 3, 4)]

    async def trial(
        self, path: ResponsePath, cut: int, inducers: Sequence[str], problem: Problem, ctx: Context
    ) -> TrialResult:
        """Ask every inducer for the answer after the first `cut` tokens."""
        answers = await gather_bounded(
            try_answer(path, cut, inducer, problem, ctx, self.trial_tokens, self.confidence)
            for inducer in inducers
        )
        return combine(answers)


def combine(answers: Sequence[TrialResult]) -> TrialResult:
    """Combine the answers to several inducers into one trial.

    The confidence is the mean less the mean absolute deviation. Answer and grade are those of the
    most confident inducer (of the first among equals), the tokens those of all.
    """
    confidences = [answer.trial.confidence for answer in answers]
    mean = sum(confidences) / len(confidences)
    deviation = sum(abs(each - mean) for each in confidences) / len(confidences)
    best = max((answer.trial for answer in answers), key=lambda trial: trial.confidence)
    tokens = sum(answer.trial.tokens for answer in answers)
    trial = replace(best, confidence=max(0.0, mean - deviation), tokens=tokens)
    return TrialResult(trial, next((answer.error for answer in answers if answer.error), ""))
