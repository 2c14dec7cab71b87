"""Dynamic early exit in reasoning (DEER, 2504.15895, section 3).

The reasoning transition monitor (`dto.exits.monitor`) finds the places where the model might stop
thinking. There the answer inducer asks for a trial answer, and the confidence evaluator computes
how sure the model is of it (`dto.exits.loop.confidence`). Above the threshold the thinking is
closed and the model concludes; otherwise the trial is discarded and the thinking continues.

Departures from the paper: on an engine whose noise depends on seed and position, the path continues
with exactly the tokens that it would have had without the pause, so rows with and without the
policy are paired until the exit. Tokens of trials and withdrawn cues are counted. An answer is
forced near the limit only with `think_ratio`, and at that limit exactly: the published script also
forces it, without a trial, at a transition that leaves 50 tokens of thinking or fewer.
`dto.policies.compat` follows the published vLLM script, `dto.policies.variants` the published Qwen3
script and DEER-PRo.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from dto.context import Context
from dto.exits.loop import Same, TrialPolicy, TrialResult, try_answer
from dto.exits.path import ResponsePath
from dto.protocols import Engine
from dto.records import Problem, Trial
from dto.rollouts import answer_inducer
from dto.settings import UNSET, Confidence, Count, Inducer, Probability


class ThresholdPolicy(TrialPolicy):
    """Leave at the first transition whose trial has a confidence above the threshold."""

    threshold: Probability = 0.95
    trial_tokens: Count = 20

    def decide(self, trials: Sequence[Trial], same: Same) -> bool:
        """Whether the last trial's confidence is above the threshold."""
        return trials[-1].confidence > self.threshold

    def check(self, engine: Engine) -> None:
        """Raise EngineError, before any work, if the engine gives no logprobs."""
        super().check(engine)
        need = f"policy {self.policy} needs logprobs of each token"
        self.require(need, engine.capabilities.logprobs is not None, engine)


class Deer(ThresholdPolicy):
    """DEER: the trial is one greedy answer to the inducer.

    With `think_ratio`, thinking that is open at this share of `max_tokens` is closed there, without
    the white space at its end, and the model concludes with the tokens that are left (exit reason
    `budget`). Published: 0.9; 0.6 for R1-Distill, 0.8 for Qwen3. In shadow mode nothing is forced.
    """

    mode: Literal["fixed"] = "fixed"
    inducer: Inducer = "inside"
    confidence: Confidence = "answer"
    think_ratio: Probability | None = UNSET  # largest share of thinking; None: nothing is forced

    def most_thinking(self, max_tokens: int) -> int | None:
        """The tokens at which open thinking is closed."""
        if self.think_ratio is None or self.shadow:
            return None
        return math.floor(self.think_ratio * max_tokens)

    def inducers(self, ctx: Context) -> list[str]:
        """The prompt that asks for the answer, inside the thinking or after closing it."""
        return [answer_inducer(f"trial_{self.inducer}", ctx)]

    async def trial(
        self, path: ResponsePath, cut: int, inducers: Sequence[str], problem: Problem, ctx: Context
    ) -> TrialResult:
        """Ask for the answer after the first `cut` tokens, and compute its confidence."""
        [inducer] = inducers
        return await try_answer(
            path, cut, inducer, problem, ctx, self.trial_tokens, self.confidence
        )
