"""Early exit on vLLM: ours against the published algorithm, and against no exit at all.

    python -m benchmarks.deer [--questions 500] [--repetitions 3] [--temperatures 0 1] [--arms …]

The same questions, model and engine options in every arm; greedy, and at T = 1.0:

    generate       plain generation by `LLM.generate`
    engine         plain generation by our engine
    lockstep       the published script's policy, in its batch rounds (`benchmarks/lockstep.py`)
    compat         the same policy, each question on its own way
    fixed          a trial after closing, at each paragraph, exit above 0.9: the embedded model's
    cue            a trial inside the thinking, at each cue, exit above 0.95
    … overlapped   the same, without the main path waiting

Our engine's core is a child process; that of `LLM` is in this one, which is its fastest form here
(`--llm-child`: as it comes, in a child of a child). The arms alternate, in another order in each
repetition, on the repetition's own questions and from an empty prefix cache.

Wall seconds run from the first request to the last token, median and range; trials are graded in
them, final answers are not. Ratios are taken within one repetition. CPU seconds are those of all
processes, and bear a busy machine better. Tokens are per question: of the response, of trials (with
what an exit withdrew), read by trials (prompt, thinking and inducer, most of it from the prefix
cache), and computed by all prefills of the arm.

Exit code 1 when a goal is missed: lockstep takes three times as long as fixed, and neither plain
generation is faster than fixed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from benchmarks import lockstep
from dto.concurrency import gather_bounded
from dto.context import Context
from dto.engines import open_engine
from dto.engines.vllm import VLLMEngine, model_arguments, serving_arguments
from dto.exits import ExitedResponse, answer
from dto.grading import Grader
from dto.nano import chain_problems
from dto.protocols import Engine, Sampling
from dto.recipe import ModelSettings, Recipe, resolve
from dto.records import Problem
from dto.settings import ExitPolicy, open_policy
from dto.text import decode_response, split_thinking
from dto.trajectories import prompt_ids
from dto.usage import metered

if TYPE_CHECKING:
    from vllm import LLM

MAX_TOKENS = 640
CONTEXT = 1024
WARM_UP = 8  # questions
GOAL = 3.0

COMPAT = {"policy": "deer", "mode": "compat", "confidence": "mean", "threshold": 0.95}
FIXED = {"policy": "deer", "monitor": "paragraph", "inducer": "closed", "threshold": 0.9}
CUE = {"policy": "deer", "monitor": "cue", "inducer": "inside", "threshold": 0.95}
OVERLAP = {"overlap": True}
EXITS: dict[str, dict[str, Any]] = {
    "engine": {"policy": "none"},
    "compat": COMPAT | {"max_trials": lockstep.Settings.max_judge_steps},
    "fixed": FIXED,
    "fixed overlapped": FIXED | OVERLAP,
    "cue": CUE,
    "cue overlapped": CUE | OVERLAP,
}
ARMS = ("generate", "engine", "lockstep", *list(EXITS)[1:])
RATIOS = {
    "the scheduler's share: lockstep / compat": ("lockstep", "compat"),
    "the policy's share: compat / fixed": ("compat", "fixed"),
    "the product: lockstep / fixed": ("lockstep", "fixed"),
    "generate / engine": ("generate", "engine"),
    "generate / fixed": ("generate", "fixed"),
    "engine / fixed": ("engine", "fixed"),
    "generate / cue": ("generate", "cue"),
    "generate / compat": ("generate", "compat"),
    "generate / lockstep": ("generate", "lockstep"),
    "fixed / fixed overlapped": ("fixed", "fixed overlapped"),
    "cue / cue overlapped": ("cue", "cue overlapped"),
}
GOALS = {
    "the product: lockstep / fixed": GOAL,
    "generate / fixed": 1.0,
    "engine / fixed": 1.0,
}


class Answered(NamedTuple):
    """One question: its conclusion (None where it did not come to its end), and its tokens."""

    conclusion: str | None
    response: int
    trials: int = 0
    trial_tokens: int = 0
    trial_prompt: int = 0


class Spent(NamedTuple):
    """One run of an arm: seconds in all (wall, CPU), accuracy as a share, others per question."""

    seconds: float
    cpu: float
    accuracy: float
    response: float
    trials: float
    trial_tokens: float
    trial_prompt: float
    prefill: float
    requests: float


class Raw:
    """`LLM.generate` on text, with what it computed of the prompts."""

    def __init__(self, llm: LLM, tokenizer: Any) -> None:
        self.llm = llm
        self.tokenizer = tokenizer
        self.prefill = self.requests = 0
        self._generate = lockstep.of_vllm(llm)

    def generate(self, requests: Sequence[lockstep.Request]) -> list[lockstep.Generated]:
        """One batch."""
        made = self._generate(requests)
        self.prefill += sum(each.prefill for each in made)
        self.requests += len(made)
        return made

    def plain(self, prompts: Sequence[str], temperature: float) -> list[Answered]:
        """All prompts in one batch, to their ends."""
        made = self.generate(
            [lockstep.Request(each, MAX_TOKENS, temperature, top_p=1.0) for each in prompts]
        )
        answers = []
        for each in made:
            split = split_thinking(each.text)
            whole = split.closed and not each.length
            conclusion = each.text[slice(*split.conclusion)] if whole else None
            answers.append(Answered(conclusion, len(each.token_ids)))
        return answers

    def lockstep(self, prompts: Sequence[str], temperature: float) -> list[Answered]:
        """The published algorithm."""
        settings = lockstep.Settings(MAX_TOKENS, temperature=temperature)
        made = lockstep.run(prompts, self.generate, self.tokenizer.encode, settings)
        return [
            Answered(
                each.answer if each.answered else None,
                each.thinking_tokens + each.answer_tokens,
                len(each.trials),
                each.trial_tokens,
                sum(trial.prompt_tokens for trial in each.trials),
            )
            for each in made
        ]


def open_llm(settings: ModelSettings, engine: Engine) -> LLM:
    """Raw vLLM with the options of our engine."""
    from vllm import LLM
    from vllm.platforms import current_platform

    cpu = current_platform.is_cpu()
    return LLM(
        **model_arguments(settings, resolve(settings.name), cpu),
        **serving_arguments(settings, cpu, engine.context),
    )


async def by_ours(
    exit: ExitPolicy, problems: Sequence[Problem], temperature: float, ctx: Context
) -> list[Answered]:
    """Every question a coroutine of its own, all alive at once."""

    async def one(problem: Problem) -> ExitedResponse:
        prompt = prompt_ids(problem.question, ctx.tokenizer, ctx.recipe.model)
        seed = ctx.seed(problem.id, "benchmark")
        sampling = Sampling(MAX_TOKENS, temperature=temperature, top_p=1.0, seed=seed)
        return await answer(problem, prompt, exit, ctx, sampling)

    made = await gather_bounded(map(one, problems), len(problems))
    return [
        Answered(
            each.conclusion if each.complete else None,
            len(each.thinking_ids) + each.answer_tokens,
            len(each.trials),
            each.trial_tokens,
            sum(each.prompt_tokens + trial.position + each.inducer_tokens for trial in each.trials),
        )
        for each in made
    ]


async def spend(
    arm: str, problems: Sequence[Problem], temperature: float, ctx: Context, raw: Raw
) -> Spent:
    """One run of an arm, from an empty prefix cache."""
    prompts = [
        decode_response(ctx.tokenizer, prompt_ids(each.question, ctx.tokenizer, ctx.recipe.model))
        for each in problems
    ]
    raw.llm.reset_prefix_cache()
    assert isinstance(ctx.engine, VLLMEngine)
    await ctx.engine._llm.reset_prefix_cache()
    raw.prefill = raw.requests = 0
    with metered() as usage:
        start, worked = time.perf_counter(), cpu_seconds()
        if arm == "generate":
            made = raw.plain(prompts, temperature)
        elif arm == "lockstep":
            made = raw.lockstep(prompts, temperature)
        else:
            exit = open_policy({"name": arm} | EXITS[arm])
            made = await by_ours(exit, problems, temperature, ctx)
        seconds, worked = time.perf_counter() - start, cpu_seconds() - worked
    right = 0
    for problem, each in zip(problems, made, strict=True):
        if each.conclusion is not None:
            graded = await ctx.grader.grade_conclusion(
                each.conclusion, problem.answer, problem.rule
            )
            right += graded.grade == "correct"
    count = len(problems)
    sums = [sum(each[field] for each in made) / count for field in range(1, len(Answered._fields))]
    prefill = raw.prefill + usage.prompt - usage.cached
    requests = raw.requests + usage.requests
    return Spent(seconds, worked, right / count, *sums, prefill / count, requests / count)


async def measure(options: argparse.Namespace) -> bool:
    model = {"name": options.model, "family": "nano", "engine": "vllm", "context": CONTEXT}
    recipe = Recipe.model_validate({"name": "deer", "model": model})
    runs: dict[tuple[float, str], list[Spent]] = {}
    async with open_engine(recipe.model) as engine, Grader() as grader:
        ctx = Context(recipe, engine, grader)
        raw = Raw(open_llm(recipe.model, engine), ctx.tokenizer)
        for arm in options.arms:
            await spend(arm, chain_problems("dev", WARM_UP, 0), 1.0, ctx, raw)
        for repetition in range(options.repetitions):
            problems = chain_problems("test", options.questions, repetition)
            for temperature in options.temperatures:
                shift = repetition % len(options.arms)
                for arm in (*options.arms[shift:], *options.arms[:shift]):
                    spent = await spend(arm, problems, temperature, ctx, raw)
                    runs.setdefault((temperature, arm), []).append(spent)
                    print(f"T = {temperature} {arm}: {spent.seconds:.1f} s", file=sys.stderr)
    return all([report(temperature, runs) for temperature in options.temperatures])


def cpu_seconds() -> float:
    """CPU time of this process and its children so far."""
    here = psutil.Process()
    times = [each.cpu_times() for each in (here, *here.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def report(temperature: float, runs: dict[tuple[float, str], list[Spent]]) -> bool:
    """Print one temperature's tables: whether all goals that were measured are met."""
    arms = {arm: made for (each, arm), made in runs.items() if each == temperature}
    print(f"\nT = {temperature}")
    print(
        f"{'':18}{'seconds':>20}{'CPU':>8}{'accuracy':>10}{'tokens':>8}{'trials':>8}{'trial':>8}"
        f"{'read':>8}{'prefill':>9}{'requests':>10}"
    )
    for arm in ARMS:
        if arm in arms:
            means = [statistics.fmean(column) for column in zip(*arms[arm], strict=True)]
            _, cpu, accuracy, response, trials, trial, read, prefill, requests = means
            print(
                f"{arm:18}{spread([each.seconds for each in arms[arm]], 1):>20}{cpu:8.1f}"
                f"{accuracy:10.3f}{response:8.0f}{trials:8.1f}{trial:8.1f}{read:8.0f}{prefill:9.0f}{requests:10.1f}"
            )
    met = True
    for name, (slow, fast) in RATIOS.items():
        if slow in arms and fast in arms:
            pairs = zip(arms[slow], arms[fast], strict=True)
            ratios = [one.seconds / other.seconds for one, other in pairs]
            goal = GOALS.get(name)
            line = f"{name:42}{spread(ratios, 2):>20}"
            if goal is not None:
                reached = statistics.median(ratios) >= goal
                met = met and reached
                line += f"  goal ≥ {goal:g}: {'met' if reached else 'NOT MET'}"
            print(line)
    return met


def spread(values: Sequence[float], digits: int) -> str:
    """Median and range."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--llm-child", action="store_true")
    options = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if options.llm_child else "0"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    return 0 if asyncio.run(measure(options)) else 1


if __name__ == "__main__":
    sys.exit(main())
