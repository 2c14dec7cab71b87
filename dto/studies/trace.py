"""Record responses with all trials and conclusions that an exit policy could request.

The main path runs to the model's own end without interruption. At each transition of each monitor
there is a trial for each inducer, and the conclusion that the model writes after an exit there. The
requests are the same as those of `dto.exits`, so `dto.calibration.replay` can repeat the decisions
of a policy with any settings without generating tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from shlex import quote

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.context import sampling as sampling_settings
from dto.errors import DtoError
from dto.exits.deer import Deer
from dto.exits.loop import ask
from dto.exits.monitor import ENTROPY_LOGPROBS, Monitor
from dto.exits.path import ExitedResponse, ResponsePath
from dto.protocols import Sampling
from dto.records import FinishReason, Grade, Problem, Span, Trajectory
from dto.rollouts import answer_inducer
from dto.runs.reader import RunReader
from dto.runs.stage import ANSWERING, Card, Group, Stage, always
from dto.settings import MonitorSettings
from dto.stages.evaluate import grade_response
from dto.trajectories import no_room, prompt_ids


@dataclass(frozen=True, slots=True)
class TracedTransition:
    """A transition of one monitor, after `position` response tokens.

    The monitor detects it as soon as `seen` tokens of the response are generated.
    """

    monitor: str
    position: int
    seen: int


@dataclass(frozen=True, slots=True)
class TracedTrial:
    r"""A trial answer with the inputs of every kind of confidence.

    `text` starts at the inducer's `\boxed`. `ends` and `logprobs` belong to the generated tokens,
    in the form of :func:`dto.exits.loop.confidence`. `error` is the reason of a failed request,
    else empty.
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
    token_ids: tuple[int, ...] = ()  # empty in traces of earlier versions


@dataclass(frozen=True, slots=True)
class TracedConclusion:
    """The text of the model after its thinking is closed at `position` response tokens.

    `kept`: how many of these tokens remain before the inserted close. `close_ids`: the inserted
    close, which is read, not generated; its first token can merge with punctuation before it.
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
    """One response of the model and all its possible exits.

    `thinking_tokens` is a span of `token_ids`. `shape` is (layers, heads, head dimension) of the
    model, empty if unknown; `parameters` is its N (`dto.usage`), 0 if unknown. A failed response
    has no transitions and the cause in `reason`.
    """

    id: str  # problem id / sample index
    problem_id: str
    rule: str
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
    """Read the traces of a run, sorted by id. Raises DtoError if there are none."""
    run = RunReader(run_directory)
    if run.state("trace") != "finished":
        raise DtoError(
            f"{run_directory} has no traces: record them with "
            f"`dto calibrate {quote(str(run_directory))}`"
        )
    return run.rows("trace", Trace)


async def trace(problem: Problem, ctx: Context) -> list[Trace]:
    """Record `recipe.evaluate.samples` traces of one problem, sampled as in `evaluate`.

    Sample j has the same seed as in `evaluate`. So an evaluation under a policy gives the same row
    as a replay of the trace: with greedy decoding on every engine, at T > 0 if pauses do not change
    the tokens of the main path (overlapped, or on a resumable engine). Raises EngineError for an
    engine without token prompts or logprobs.
    """
    settings = ctx.recipe.evaluate
    for monitor in ctx.recipe.trace.monitors:
        Deer(name=monitor, monitor=monitor).check(ctx.engine)
    prompt = prompt_ids(problem.question, ctx.tokenizer, ctx.recipe.model, problem.prompt)
    seed = ctx.seed(problem.id, "evaluate")

    def sampling(sample: int) -> Sampling:
        return sampling_settings(settings, settings.max_tokens, seed + sample)

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
    closed = path.closed  # the prompt closes the thinking
    transitions: list[TracedTransition] = []
    if full := no_room(prompt, ctx.engine.context):
        response = ExitedResponse.failed(len(prompt), f"{full}: no room for a response")
    else:
        entropy = "entropy" in settings.monitors
        whole = await path.advance(logprobs=ENTROPY_LOGPROBS if entropy else None)
        response = await path.finished()
        if response.exit_reason != "failed" and not closed:
            # Scanning a long response is slow, so it runs outside of the event loop.
            transitions = await asyncio.to_thread(_transitions, path.ids, whole.top_logprobs, ctx)
    graded = await grade_response(response, problem, ctx)
    start, length = len(response.leading_ids), len(response.thinking_ids)
    cuts = sorted({transition.position for transition in transitions})
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
        rule=problem.rule,
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
        cuts = monitor.scan(ids, top_logprobs, ended=True)
        transitions += [TracedTransition(kind, cut, seen) for cut, seen in cuts]
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
        token_ids=answer.token_ids,
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
    about="Record responses to the dev problems with all trial answers.",
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
    card=Card(12, "traces", "validation", "responses with all trial answers"),
)
