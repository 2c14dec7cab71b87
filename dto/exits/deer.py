"""Dynamic early exit in reasoning (DEER, 2504.15895, section 3).

The reasoning transition monitor (`dto.exits.monitor`) finds the places where the model might stop
thinking. There the answer inducer asks for a trial answer, and the confidence evaluator computes
how sure the model is of it (`dto.exits.loop.confidence`). Above the threshold the thinking is
closed and the model concludes; otherwise the trial is discarded and the thinking continues.

Departures from the paper: on an engine whose noise depends on seed and position, the path continues
with exactly the tokens that it would have had without the pause, so rows with and without the
policy are paired until the exit. Tokens of trials and withdrawn cues are counted. No answer is
forced near the limit (policy `budget` does that). `dto.policies.compat` follows the published
vLLM script, `dto.policies.variants` the published Qwen3 script and DEER-PRo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dto.context import Context
from dto.exits.loop import Same, TrialPolicy, TrialResult, try_answer
from dto.exits.path import ResponsePath
from dto.protocols import Engine
from dto.records import Problem, Trial
from dto.rollouts import answer_inducer
from dto.settings import Confidence, Count, Inducer, Probability


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
    """DEER: the trial is one greedy answer to the inducer."""

    mode: Literal["fixed"] = "fixed"
    inducer: Inducer = "inside"
    confidence: Confidence = "answer"

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
