r"""DEER as its published vLLM script decides (2504.15895): mode `compat`.

For comparison with published figures only; `fixed` is the same policy without what is wrong here.
The script's decisions that ours would not take are the constants below. Two more lie in its
structure: the response is text that is encoded anew for every request, so token borders move at
each step; and of its logprobs it takes whichever the dictionary names first, on vLLM the sampled
token's. Not repeated, since no decision depends on them: batch rounds that wait for their slowest
question (`benchmarks/lockstep.py` has them), uncounted trial tokens, unseeded sampling, results
saved at the end.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

from dto.context import Context
from dto.errors import RecipeError
from dto.exits.path import ExitedResponse, ResponsePath
from dto.prompts import render
from dto.protocols import Completion, Sampling
from dto.recipe import ExitSettings
from dto.records import FinishReason, Problem, Trial, derive
from dto.rollouts import BOX
from dto.text import decode_response

CUE = "Wait"  # a substring: `Waiting` is a transition, `wait` and `Alternatively` are none
END_GOES_ON = True  # EOS inside the thinking is a transition, and after it comes another cue
DOUBLE_BOS = True  # the prompt's text has its BOS, and the tokenizer puts another one before it
TRIAL_TEMPERATURE = 1.0  # trials are samples (greedy here where all else is, to be comparable)
TRIAL_STOPS = (" }", "}\n", "}.", "}\\", "}}", ")}")  # and `</think>`; cut `{\frac{3}{4}\sqrt2}`
COUNTED = slice(1, None)  # of a trial's tokens: skips `{`, or `{3` where merged; keeps the closing
ONE_TOKEN_IS_WRONG = True  # a trial of one token divides by zero: no answer, so a wrong one
READ = (
    "name",
    "policy",
    "mode",
    "confidence",
    "threshold",
    "max_trials",
    "think_ratio",
    "trial_tokens",
)
NEAR_LIMIT = 50  # thinking tokens left at which the answer is forced without a trial


async def compat(
    path: ResponsePath, settings: ExitSettings, problem: Problem, ctx: Context
) -> ExitedResponse:
    """Think to each "Wait", try an answer, and leave when its mean probability is high.

    After `settings.max_trials` trials (published: 10) only `</think>` ends the thinking; it may
    take `settings.think_ratio` of the tokens. `settings.confidence` is `mean`, `geometric` or `min`
    (published as avg1, avg2, min), `settings.threshold` what it has to exceed. Every response is
    closed by the same text and concludes with the tokens that are left. A one-token trial ends it
    with exit reason `zero_division` and without a conclusion, which is graded wrong.

    Departs from the script: without its options `no_thinking` (a probe before any thinking; policy
    no_thinking is close) and `af` (an answer forced where none came); each request has a seed, and
    tokens of trials, and of the main path where the text is cut, are counted. Raises RecipeError
    for settings that the script does not know, or that this mode ignores.
    """
    check(settings)
    script = _Script(path, settings, problem, ctx)
    reason = await script.think()
    if reason in ("failed", "zero_division"):
        return await script.response(reason, "failed" if reason == "failed" else "stop")
    return await script.conclude(reason)


def confidence(kind: str, counted: Sequence[float]) -> float:
    """Mean (avg1), geometric mean (avg2) or minimum of the probabilities; 0 where none is counted.

    `counted` are the logprobs of the counted tokens.
    """
    if not counted:
        return 0.0
    if kind == "mean":
        return sum(map(math.exp, counted)) / len(counted)
    return math.exp(sum(counted) / len(counted) if kind == "geometric" else min(counted))


def before_stop(completion: Completion) -> str:
    """The text without the stop string that ended it, and without what its token holds beyond."""
    text = completion.text
    return text if completion.stop is None else text[: text.index(completion.stop)]


def check(settings: ExitSettings) -> None:
    """Raises RecipeError for settings that the script does not know, or that this mode ignores."""
    if settings.confidence == "answer":
        raise RecipeError(
            f"exit {settings.name!r}: confidence = 'answer' is not in the script that mode compat "
            "follows: set confidence to mean, geometric or min, or mode to fixed"
        )
    for key, field in ExitSettings.model_fields.items():
        value = getattr(settings, key)
        if key not in READ and value != field.default:
            raise RecipeError(
                f"exit {settings.name!r}: {key} = {value!r} is not in the script that mode compat "
                f"follows: leave it at {field.default!r}, or set mode to fixed"
            )


class _Script:
    """One response, held as text."""

    def __init__(
        self, path: ResponsePath, settings: ExitSettings, problem: Problem, ctx: Context
    ) -> None:
        self.path, self.settings, self.problem, self.ctx = path, settings, problem, ctx
        self.close = ctx.tags.close
        self.closing = render("early_close", "default", ctx.tags)
        self.prompt = decode_response(path.tokenizer, path.prompt_ids, ctx.tags)
        self.prompt_tokens = len(self.encode(self.prompt))
        self.budget = math.floor(settings.think_ratio * path.sampling.max_tokens)
        self.inducer = render("trial_choice" if problem.rule == "choice" else "trial_inside")
        self.said = ""
        self.trials: list[Trial] = []
        self.generated = 0  # thinking tokens, with those that a cut text has lost
        self.requests = 0
        self.error = ""

    async def think(self) -> str:
        """Go on to the exit, and say why it is one."""
        used = 0
        while True:
            judging = len(self.trials) < self.settings.max_trials
            step = await self.ask(
                self.said,
                replace(
                    self.path.sampling,
                    max_tokens=max(1, self.budget - used),
                    stop=(CUE, self.close) if judging else (self.close,),
                ),
            )
            self.generated += len(step.token_ids)
            if step.finish_reason == "failed":
                return "failed"
            self.said += before_stop(step)
            if step.stop == self.close:
                return "closed"
            used = await self.used(self.said)
            ended = step.stop is None and not (END_GOES_ON and judging)
            if step.finish_reason == "length" or ended or self.budget - used <= NEAR_LIMIT:
                return "budget"
            if reason := await self.judge(used):
                return reason
            self.said += CUE
            used = await self.used(self.said)

    async def judge(self, position: int) -> str:
        """One trial: why to leave after it, empty when the thinking goes on."""
        greedy = self.path.sampling.temperature == 0
        trial = await self.ask(
            self.said + self.inducer,
            Sampling(
                self.settings.trial_tokens,
                temperature=0.0 if greedy else TRIAL_TEMPERATURE,
                top_p=1.0,
                stop=(*TRIAL_STOPS, self.close),
                logprobs=0,
            ),
        )
        if trial.finish_reason == "failed":
            return "failed"
        graded = await self.ctx.grader.grade_trial(
            BOX + trial.text,
            self.problem.answer,
            self.problem.rule,
            self.problem.question,
        )
        counted = (trial.logprobs or ())[COUNTED]
        sure = confidence(self.settings.confidence, counted)
        self.trials.append(
            Trial(position, sure, graded.answer, graded.grade, tokens=len(trial.token_ids))
        )
        if ONE_TOKEN_IS_WRONG and not counted:
            return "zero_division"
        return "policy" if sure > self.settings.threshold else ""

    async def conclude(self, reason: str) -> ExitedResponse:
        """Close the thinking and answer with what is left."""
        closed = self.said + self.closing
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
        """What the row is made of: here the text becomes tokens again."""
        thinking = await asyncio.to_thread(self.encode, self.said, special=False)
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

    async def ask(self, said: str, sampling: Sampling) -> Completion:
        """One request on the prompt and what was said, with a seed of its own."""
        ids = await asyncio.to_thread(self.encode, self.prompt + said)
        self.requests += 1
        seed = derive(self.path.sampling.seed, "", "compat", self.requests)
        room = max(1, min(sampling.max_tokens, self.path.engine.context - len(ids)))
        written = len(ids) - self.prompt_tokens if sampling.presence_penalty else 0
        sampling = replace(sampling, max_tokens=room, seed=seed, written=written)
        [completion] = await self.path.engine.complete(ids, sampling)
        if completion.finish_reason == "failed":
            self.error = completion.error or "the engine gave no reason"
        return completion

    async def used(self, said: str) -> int:
        """Tokens of a response, as the next request would encode it."""
        return len(await asyncio.to_thread(self.encode, self.prompt + said)) - self.prompt_tokens

    def encode(self, text: str, special: bool = DOUBLE_BOS) -> tuple[int, ...]:
        """The ids that the script sends for a text."""
        return tuple(self.path.tokenizer.encode(text, add_special_tokens=special))
