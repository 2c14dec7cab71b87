r"""DEER as its published vLLM script decides (2504.15895): mode `compat`.

For comparison with published figures only; mode `fixed` is the same policy without the script's
errors. The constants below are decisions of the script that ours would not take. Two more are in
its structure: the response is text that is encoded again for every request, so token borders move
at each step; and it takes the first logprob of each dictionary, on vLLM that of the sampled token.
Not repeated, since no decision depends on them: batch rounds that wait for their slowest question
(`benchmarks/lockstep.py` has them), uncounted trial tokens, unseeded sampling, results saved at the
end.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from dto.context import Context
from dto.exits.path import ExitedResponse, ResponsePath
from dto.prompts import render
from dto.protocols import Completion, Engine, Sampling
from dto.records import FinishReason, Problem, Trial, derive
from dto.rollouts import BOX
from dto.settings import Count, ExitPolicy, Probability
from dto.text import decode_response

CUE = "Wait"  # a substring: `Waiting` is a transition, `wait` and `Alternatively` are not
END_GOES_ON = True  # EOS inside the thinking is a transition; a cue is written after it
DOUBLE_BOS = True  # the prompt's text has its BOS, and the tokenizer adds another one
TRIAL_TEMPERATURE = 1.0  # trials are samples (here greedy in a greedy run, to be comparable)
TRIAL_STOPS = (" }", "}\n", "}.", "}\\", "}}", ")}")  # and `</think>`; cut `{\frac{3}{4}\sqrt2}`
COUNTED = slice(1, None)  # a trial's counted tokens: without `{` (`{3` if merged), with the closing
ONE_TOKEN_IS_WRONG = True  # a trial of one token divides by zero: no answer, so a wrong one
NEAR_LIMIT = 50  # thinking tokens left at which the answer is forced without a trial


class Compat(ExitPolicy):
    """Think to each "Wait", try an answer, and leave when its mean probability is high.

    After `max_trials` trials only `</think>` ends the thinking. Every response is closed by the
    same text and concludes with the tokens that are left. A trial of one token ends the response
    with exit reason `zero_division` and without a conclusion, which is graded wrong.

    Departures from the script: its options `no_thinking` (a trial before any thinking; policy
    no_thinking is close) and `af` (an answer forced where none came) are missing; each request has
    a seed; tokens of trials, and of the main path where the text is cut, are counted.
    """

    mode: Literal["compat"]
    confidence: Literal["mean", "geometric", "min"] = "mean"  # published as avg1, avg2, min
    threshold: Probability = 0.95  # the confidence has to be larger
    max_trials: Count = 50  # published: 10
    trial_tokens: Count = 20
    think_ratio: Probability = 0.9  # largest share of max_tokens that may be thinking

    def check(self, engine: Engine) -> None:
        """Raise EngineError, before any work, if the engine gives no logprobs."""
        super().check(engine)
        need = f"policy {self.policy} needs logprobs of each token"
        self.require(need, engine.capabilities.logprobs is not None, engine)

    async def leave(self, path: ResponsePath, problem: Problem, ctx: Context) -> ExitedResponse:
        """Follow the script."""
        script = _Script(path, self, problem, ctx)
        reason = await script.think()
        if reason in ("failed", "zero_division"):
            return await script.response(reason, "failed" if reason == "failed" else "stop")
        return await script.conclude(reason)


def confidence(kind: str, counted: Sequence[float]) -> float:
    """The mean (avg1), geometric mean (avg2) or minimum of the probabilities; 0 if none is counted.

    `counted` are the logprobs of the counted tokens.
    """
    if not counted:
        return 0.0
    if kind == "mean":
        return sum(map(math.exp, counted)) / len(counted)
    return math.exp(sum(counted) / len(counted) if kind == "geometric" else min(counted))


def before_stop(completion: Completion) -> str:
    """The text before the stop string that ended it."""
    text = completion.text
    return text if completion.stop is None else text[: text.index(completion.stop)]


class _Script:
    """One response, held as text."""

    def __init__(self, path: ResponsePath, policy: Compat, problem: Problem, ctx: Context) -> None:
        self.path, self.policy, self.problem, self.ctx = path, policy, problem, ctx
        self.close = ctx.tags.close
        self.closing = render("early_close", "default", ctx.tags)
        self.prompt = decode_response(path.tokenizer, path.prompt_ids, ctx.tags)
        self.prompt_tokens = len(self.encode(self.prompt))
        self.budget = math.floor(policy.think_ratio * path.sampling.max_tokens)
        self.inducer = render("trial_choice" if problem.rule == "choice" else "trial_inside")
        self.text = ""
        self.trials: list[Trial] = []
        self.generated = 0  # thinking tokens, including those lost where the text was cut
        self.requests = 0
        self.error = ""

    async def think(self) -> str:
        """Think to the exit; return the reason for it."""
        used = 0
        while True:
            judging = len(self.trials) < self.policy.max_trials
            step = await self.ask(
                self.text,
                replace(
                    self.path.sampling,
                    max_tokens=max(1, self.budget - used),
                    stop=(CUE, self.close) if judging else (self.close,),
                ),
            )
            self.generated += len(step.token_ids)
            if step.finish_reason == "failed":
                return "failed"
            self.text += before_stop(step)
            if step.stop == self.close:
                return "closed"
            used = await self.used(self.text)
            ended = step.stop is None and not (END_GOES_ON and judging)
            if step.finish_reason == "length" or ended or self.budget - used <= NEAR_LIMIT:
                return "budget"
            if reason := await self.judge(used):
                return reason
            self.text += CUE
            used = await self.used(self.text)

    async def judge(self, position: int) -> str:
        """Make a trial; return the reason to leave after it, empty to continue thinking."""
        greedy = self.path.sampling.temperature == 0
        trial = await self.ask(
            self.text + self.inducer,
            Sampling(
                self.policy.trial_tokens,
                temperature=0.0 if greedy else TRIAL_TEMPERATURE,
                top_p=1.0,
                stop=(*TRIAL_STOPS, self.close),
                logprobs=0,
            ),
        )
        if trial.finish_reason == "failed":
            return "failed"
        ids, text = trial.token_ids, BOX + trial.text
        graded = await self.ctx.grader.grade_trial(
            text, self.problem.answer, self.problem.rule, self.problem.question
        )
        counted = (trial.logprobs or ())[COUNTED]
        sure = confidence(self.policy.confidence, counted)
        self.trials.append(Trial(position, sure, graded.answer, graded.grade, len(ids), ids, text))
        if ONE_TOKEN_IS_WRONG and not counted:
            return "zero_division"
        return "policy" if sure > self.policy.threshold else ""

    async def conclude(self, reason: str) -> ExitedResponse:
        """Close the thinking and conclude with the tokens that are left."""
        closed = self.text + self.closing
        room = self.path.sampling.max_tokens - await self.used(closed)
        if room < 1:
            return await self.response(reason, "length")
        answer = await self.ask(closed, replace(self.path.sampling, max_tokens=room))
        if answer.finish_reason == "failed":
            reason = "failed"
        return await self.response(reason, answer.finish_reason, answer)

    async def response(
        self, reason: str, finish: FinishReason, answer: Completion | None = None
    ) -> ExitedResponse:
        """The response; here the text becomes tokens again."""
        thinking = await asyncio.to_thread(self.encode, self.text, special=False)
        return ExitedResponse(
            prompt_tokens=self.prompt_tokens,
            thinking_ids=thinking,
            inserted_ids=() if answer is None else self.ctx.encode(self.closing),
            answer_ids=() if answer is None else answer.token_ids,
            conclusion="" if answer is None else answer.text,
            exit_reason=reason,
            finish_reason=finish,
            withdrawn=max(0, self.generated - len(thinking)),
            trials=tuple(self.trials),
            inducer_tokens=len(self.encode(self.inducer, special=False)),
            error=self.error,
        )

    async def ask(self, text: str, sampling: Sampling) -> Completion:
        """Send a request for the prompt and the text so far, with a seed of its own."""
        ids = await asyncio.to_thread(self.encode, self.prompt + text)
        self.requests += 1
        seed = derive(self.path.sampling.seed, "", "compat", self.requests)
        room = max(1, min(sampling.max_tokens, self.ctx.engine.context - len(ids)))
        written = len(ids) - self.prompt_tokens if sampling.presence_penalty else 0
        sampling = replace(sampling, max_tokens=room, seed=seed, written=written)
        [completion] = await self.ctx.engine.complete(ids, sampling)
        if completion.finish_reason == "failed":
            self.error = completion.error or "the engine gave no reason"
        return completion

    async def used(self, text: str) -> int:
        """The number of tokens of a response, as the next request would encode it."""
        return len(await asyncio.to_thread(self.encode, self.prompt + text)) - self.prompt_tokens

    def encode(self, text: str, special: bool = DOUBLE_BOS) -> tuple[int, ...]:
        """The token ids that the script sends for a text."""
        return tuple(self.path.tokenizer.encode(text, add_special_tokens=special))
