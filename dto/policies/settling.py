"""Leave when trials settle: their answers (consistency), or the next token's entropy (entropy).

The loop of both, and where trials are made, are in `dto.exits.loop`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from dto.context import Context
from dto.exits.loop import Same, TrialPolicy, TrialResult, try_answer
from dto.exits.monitor import ENTROPY_LOGPROBS
from dto.exits.monitor import entropy as entropy_of
from dto.exits.path import ResponsePath
from dto.protocols import Engine, Sampling
from dto.records import Problem, Trial
from dto.rollouts import answer_inducer
from dto.settings import Confidence, Count, Inducer, Probability

DOUBT = re.compile(r"\b(?:wait|hold|but|okay|hmm+)\b", re.IGNORECASE)


class Consistency(TrialPolicy):
    r"""Leave at the first transition at which the last `agree` trial answers are equal.

    Dynasor's certaindex for chains (2412.20993, section 3). It probes at fixed intervals: that is
    `monitor: tokens` with `every`.

    Departures from the published code: trials are greedy and end at their brace. Answers are
    compared as the grader's fast path does, not as strings. A word of doubt counts only as a whole
    word (the published search for `no` and `but` anywhere rejects `\notin` and `attribute`), and
    `no` is not one, since it is an answer. The confidence is stored, but decides nothing.
    """

    agree: Count = 3  # equal trial answers in a row
    inducer: Inducer = "inside"
    confidence: Confidence = "answer"
    trial_tokens: Count = 20

    def inducers(self, ctx: Context) -> list[str]:
        """The prompt that asks for the answer, inside the thinking or after closing it."""
        return [answer_inducer(f"trial_{self.inducer}", ctx)]

    async def trial(
        self, path: ResponsePath, cut: int, inducers: Sequence[str], problem: Problem, ctx: Context
    ) -> TrialResult:
        """Ask for the answer after the first `cut` tokens."""
        [inducer] = inducers
        return await try_answer(
            path, cut, inducer, problem, ctx, self.trial_tokens, self.confidence
        )

    def decide(self, trials: Sequence[Trial], same: Same) -> bool:
        """Whether the last trials give the same answer, none of them empty or in doubt.

        Answers whose equality would take algebra to decide count as different.
        """
        answers = [trial.answer for trial in trials[-self.agree :]]
        return (
            len(answers) == self.agree
            and all(answer and not DOUBT.search(answer) for answer in answers)
            and all(same(answers[-1], answer) for answer in answers)
        )


PROBE = Sampling(max_tokens=1, temperature=0.0, top_p=1.0, logprobs=ENTROPY_LOGPROBS)


class Entropy(TrialPolicy):
    """Leave when the entropy after `</think>` has settled (EAT, 2509.26522, section 3).

    At each transition the prompt `entropy_probe` closes the thinking, and the policy reads the
    entropy of the token that would follow. Its moving variance falls when further thinking no
    longer changes the answer; below `variance` the response leaves. (The setting `entropy` is the
    monitor's: the entropy of a step's first token.) A trial is one token without an answer: its
    confidence is exp(-entropy), its answer is empty, and its grade is `failed`, so it is in no
    denominator.

    Departures from the published code: the entropy is a lower bound from the 20 most likely tokens.
    The moving variance starts without a value instead of at 0, and is valid from 1 / `smoothing`
    differences on instead of after 25 lines, so short chains can be left too.
    """

    smoothing: Probability = 0.2  # weight of the newest value in the moving mean
    variance: float = 1e-3  # upper limit of the moving variance, nats squared

    def check(self, engine: Engine) -> None:
        """Raise EngineError, before any work, if the engine gives too few logprobs."""
        super().check(engine)
        self.require_top_logprobs(f"policy {self.policy}", engine)

    def inducers(self, ctx: Context) -> list[str]:
        """The prompt that closes the thinking."""
        return [ctx.text("entropy_probe")]

    async def trial(
        self, path: ResponsePath, cut: int, inducers: Sequence[str], problem: Problem, ctx: Context
    ) -> TrialResult:
        """Read the entropy of the next token if the thinking is closed after `cut` tokens."""
        prefix = ctx.put_after(path.prefix(cut), inducers[0])
        if len(prefix) >= ctx.engine.context:
            return TrialResult(Trial(cut, 0.0, "", "failed", 0), "")
        [probe] = await ctx.engine.complete(prefix, PROBE)
        if probe.finish_reason == "failed" or not probe.top_logprobs:
            error = probe.error or f"engine for {ctx.engine.model!r} gave no logprobs"
            return TrialResult(Trial(cut, 0.0, "", "failed", len(probe.token_ids)), error)
        sure, ids = math.exp(-entropy_of(probe.top_logprobs[0])), probe.token_ids
        return TrialResult(Trial(cut, sure, "", "failed", len(ids), ids, probe.text), "")

    def decide(self, trials: Sequence[Trial], same: Same) -> bool:
        """Whether the moving variance of the entropy is below the limit."""
        values = [-math.log(trial.confidence) for trial in trials if trial.confidence]
        return moving_variance(values, self.smoothing) < self.variance


def moving_variance(values: Sequence[float], smoothing: float) -> float:
    """The exponentially weighted mean of squared deviations from the moving mean.

    Deviations count from the second value on, the newest with weight `smoothing`; the weights are
    scaled to a sum of 1. Infinite while there are fewer than 1 / `smoothing` deviations.
    """
    if smoothing <= 0 or len(values) - 1 < 1 / smoothing:
        return math.inf
    mean, variance, weight = values[0], 0.0, 0.0
    for value in values[1:]:
        mean += smoothing * (value - mean)
        variance += smoothing * ((value - mean) ** 2 - variance)
        weight += smoothing * (1 - weight)
    return variance / weight
