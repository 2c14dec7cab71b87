"""Record a response with every trial that a policy might make, and every conclusion it might get.

The main path runs to the model's own end, uninterrupted. At each transition of each monitor there
is a trial for each inducer, and the conclusion that the model writes when it leaves there. Both are
the very requests of `dto.exits`, so a policy's decisions can be taken over again, at any setting,
without generating (`dto.calibration.replay`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.context import sampling as drawn
from dto.errors import DtoError
from dto.exits.deer import Deer
from dto.exits.loop import ask
from dto.exits.monitor import ENTROPY_LOGPROBS, Monitor
from dto.exits.path import ExitedResponse, ResponsePath
from dto.protocols import Sampling
from dto.records import AnswerKind, FinishReason, Grade, Problem, Span, Trajectory
from dto.rollouts import answer_inducer
from dto.runs.reader import RunReader
from dto.runs.stage import ANSWERING, Card, Group, Stage, always
from dto.settings import MonitorSettings
from dto.stages.evaluate import grade_response
from dto.trajectories import no_room, prompt_ids


@dataclass(frozen=True, slots=True)
class TracedTransition:
    """A transition of one monitor: `position` response tokens come before it.

    It became visible with token number `seen` of the response.
    """

    monitor: str
    position: int
    seen: int


@dataclass(frozen=True, slots=True)
class TracedTrial:
    r"""A trial answer, with what every kind of confidence is computed from.

    `text` runs from the inducer's `\boxed` on; `ends` and `logprobs` are those of the generated
    tokens, as :func:`dto.exits.loop.confidence` takes them. `error` says why the request
    failed, if it did.
    """

    inducer: str
    position: int
    inducer_tokens: int
    text: str
    ends: tuple[int, ...]
    logprobs: tuple[float, ...]
    answer: str
    grade: Grade
    error: str


@dataclass(frozen=True, slots=True)
class TracedConclusion:
    """What the model writes when its thinking is closed after `position` response tokens.

    `kept` of them stay, and `close_ids` is what closes the thinking there, read but not generated:
    punctuation may be one token with it.
    """

    position: int
    kept: int
    close_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    grade: Grade
    answer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Trace:
    """One response of the model, and all the ways to leave it.

    `thinking_tokens` spans `token_ids`. `shape` is (layers, heads, head dimension) of the model,
    empty where it is not known, `parameters` its N (`dto.usage`), 0 where that is not. A response
    that failed has no transitions and says why in `reason`.
    """

    id: str  # problem id / sample index
    problem_id: str
    answer_kind: AnswerKind
    sample: int
    seed: int
    prompt_tokens: int
    token_ids: tuple[int, ...]
    thinking_tokens: Span
    exit_reason: str
    finish_reason: FinishReason
    grade: Grade
    answer: str
    reason: str
    shape: tuple[int, ...]
    transitions: tuple[TracedTransition, ...]
    trials: tuple[TracedTrial, ...]
    conclusions: tuple[TracedConclusion, ...]
    parameters: int = 0


def read_traces(run_directory: Path) -> Iterator[Trace]:
    """A run's traces, sorted by id. Raises DtoError when it has none."""
    run = RunReader(run_directory)
    if run.state("trace") != "finished":
        raise DtoError(
            f"{run_directory} has no traces: record them with dto calibrate {run_directory}"
        )
    return run.rows("trace", Trace)


async def trace(problem: Problem, ctx: Context) -> list[Trace]:
    """`recipe.evaluate.samples` traces of one problem, sampled as `evaluate` samples its answers.

    Sample j has the seed that `evaluate` gives it, so that the problem evaluated under a policy has
    the row that a replay of the trace has: greedy on every engine, at T > 0 where the main path's
    tokens do not depend on pauses (overlapped, or on a resumable engine). Raises EngineError for an
    engine without token prompts or logprobs.
    """
    settings = ctx.recipe.evaluate
    for monitor in ctx.recipe.trace.monitors:
        Deer(name=monitor, monitor=monitor).check(ctx.engine)
    prompt = prompt_ids(problem.question, ctx.tokenizer, ctx.recipe.model, problem.prompt)
    seed = ctx.seed(problem.id, "evaluate")

    def sampling(sample: int) -> Sampling:
        return drawn(settings, settings.max_tokens, seed + sample)

    return await gather_bounded(
        (
            _traced(problem, prompt, sample, sampling(sample), ctx)
            for sample in range(settings.samples)
        ),
        limit=settings.samples,
    )


async def _traced(
    problem: Problem, prompt: tuple[int, ...], sample: int, sampling: Sampling, ctx: Context
) -> Trace:
    settings = ctx.recipe.trace
    path = ResponsePath(prompt, ctx, sampling)
    closed = path.closed  # by the prompt: there is no thinking
    transitions: list[TracedTransition] = []
    if full := no_room(prompt, ctx.engine.context):
        response = ExitedResponse.failed(len(prompt), f"{full}: no room for a response")
    else:
        entropy = "entropy" in settings.monitors
        whole = await path.advance(logprobs=ENTROPY_LOGPROBS if entropy else None)
        response = await path.finished()
        if response.exit_reason != "failed" and not closed:
            # A long response takes a while to read: not on the event loop.
            transitions = await asyncio.to_thread(_transitions, path.ids, whole.top_logprobs, ctx)
    graded = await grade_response(response, problem, ctx)
    start, length = len(response.leading_ids), len(response.thinking_ids)
    cuts = sorted({each.position for each in transitions})
    trials = await gather_bounded(
        _trial(problem, prompt, path.ids[:cut], inducer, ctx)
        for cut in cuts
        for inducer in settings.inducers
    )
    shares = {start + floor(share * length) for share in settings.fractions}
    conclusions = await gather_bounded(
        _conclusion(problem, prompt, path.ids[:cut], sampling, ctx)
        for cut in sorted(
            shares.union(cuts) if response.exit_reason != "failed" and not closed else ()
        )
    )
    shape = ctx.engine.shape
    return Trace(
        id=Trajectory.make_id(problem.id, sample),
        problem_id=problem.id,
        answer_kind=problem.answer_kind,
        sample=sample,
        seed=sampling.seed,
        prompt_tokens=len(prompt),
        token_ids=tuple(path.ids),
        thinking_tokens=Span(start, start + length),
        exit_reason=response.exit_reason,
        finish_reason=response.finish_reason,
        grade=graded.grade,
        answer=graded.answer,
        reason=graded.reason,
        shape=() if shape is None else (shape.layers, shape.heads, shape.head_dim),
        transitions=tuple(transitions),
        trials=tuple(trials),
        conclusions=tuple(conclusions),
        parameters=0 if shape is None else shape.parameters or 0,
    )


def _transitions(
    ids: Sequence[int], top_logprobs: Sequence[Mapping[int, float]] | None, ctx: Context
) -> list[TracedTransition]:
    settings, languages = ctx.recipe.trace, ctx.recipe.languages
    transitions: list[TracedTransition] = []
    for kind in settings.monitors:
        where = MonitorSettings(monitor=kind, every=settings.every, entropy=settings.entropy)
        monitor = Monitor(ctx.tokenizer, where, ctx.tags, languages)
        found = monitor.scan(ids, top_logprobs, ended=True)
        transitions += [TracedTransition(kind, cut, seen) for cut, seen in found]
    return transitions


async def _trial(
    problem: Problem, prompt: tuple[int, ...], kept: Sequence[int], inducer: str, ctx: Context
) -> TracedTrial:
    text = answer_inducer(f"trial_{inducer}", ctx)
    answer, ends = await ask((*prompt, *kept), text, ctx.recipe.trace.trial_tokens, problem, ctx)
    return TracedTrial(
        inducer=inducer,
        position=len(kept),
        inducer_tokens=len(ctx.encode(text)),
        text=answer.text,
        ends=tuple(ends),
        logprobs=answer.logprobs or (),
        answer=answer.answer,
        grade=answer.grade,
        error=answer.reason if answer.finish_reason == "failed" else "",
    )


async def _conclusion(
    problem: Problem,
    prompt: tuple[int, ...],
    kept: Sequence[int],
    sampling: Sampling,
    ctx: Context,
) -> TracedConclusion:
    path = ResponsePath(prompt, ctx, sampling)
    path.ids = list(kept)
    response = await path.concluded(len(kept))
    graded = await grade_response(response, problem, ctx)
    return TracedConclusion(
        position=len(kept),
        kept=len(response.leading_ids) + len(response.thinking_ids),
        close_ids=response.inserted_ids,
        token_ids=response.answer_ids,
        finish_reason=response.finish_reason,
        grade=graded.grade,
        answer=graded.answer,
        reason=graded.reason,
    )


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    return (Group(row.id, (row,)) for row in run.problems("dev"))


STAGE = Stage(
    name="trace",
    about="Record the dev problems' responses with all their trial answers.",
    amount=lambda recipe: f"{recipe.problems.dev * recipe.evaluate.samples:,} responses",
    record=Trace,
    reads=always("problems"),
    settings=always("trace.", "languages", *ANSWERING),
    files=lambda recipe: recipe.language_files,
    groups=_groups,
    work=trace,
    total=lambda run: run.count("problems", split="dev"),
    spends=False,
    step=False,
    card=Card(12, "traces", "validation", "responses with all their trial answers"),
)
