"""Replay exit policies on recorded traces, without generating tokens.

Can be replayed: `none`, `deer` (mode fixed) and `consistency` with any threshold, kind of
confidence, number of agreeing answers, minimum thinking, cool-down and limits on trials, for every
recorded monitor and inducer; and `static` at the recorded shares. `overlap` is ignored, since it
changes no row.

`sweep` replays many exits on the same traces: accuracy, tokens and paired loss of each exit, and
the calibration of each kind of confidence. Suffixes of arrays name their axes: E exits (the first
is `none`), P problems, S samples.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby, product
from math import floor
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from dto import statistics
from dto.errors import DtoError, RecipeError
from dto.exits.deer import Deer
from dto.exits.loop import Search, TrialResult, confidence
from dto.exits.path import ExitedResponse
from dto.grading import Graded, Grader
from dto.policies.settling import Consistency
from dto.policies.without_trials import Static
from dto.recipe import Recipe, TraceSettings
from dto.records import EvaluationRow, Trial
from dto.reporting.evaluation import Figures
from dto.reporting.positions import Reliability, reliability
from dto.settings import Confidence, ExitPolicy
from dto.stages.evaluate import evaluation_row
from dto.studies.trace import Trace
from dto.usage import ModelShape


def check(exit: ExitPolicy, recorded: TraceSettings) -> None:
    """Raise RecipeError if traces recorded with these settings lack what the exit needs."""
    settings = exit.model_dump()
    recorded_values: dict[str, Sequence[object]] = {
        "policy": ("none", "static", "deer", "consistency"),
        "mode": ("fixed",),
        "fraction": recorded.fractions,
        "monitor": recorded.monitors,
        "inducer": recorded.inducers,
        "trial_tokens": (recorded.trial_tokens,),
    }
    if settings.get("monitor") == "tokens":
        recorded_values["every"] = (recorded.every,)
    if settings.get("monitor") == "entropy":
        recorded_values["entropy"] = (recorded.entropy,)
    for key, values in recorded_values.items():
        if key in settings and settings[key] not in values:
            raise RecipeError(
                f"exit {exit.name!r} cannot be replayed: {key} = {settings[key]!r}, but the traces "
                f"have only {', '.join(map(repr, values))}: record others with dto calibrate --set "
                "trace.…, or run dto evaluate without --replay"
            )
    if settings.get("think_ratio") is not None:
        raise RecipeError(
            f"exit {exit.name!r} cannot be replayed: think_ratio forces an answer where the traces "
            "have none: run dto evaluate without --replay, or unset it"
        )


class Replay:
    """Replays any exit on one trace; each confidence is computed once."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._shape: ModelShape | None = None
        if trace.shape:
            layers, heads, head_dim = trace.shape
            self._shape = ModelShape(layers, heads, head_dim, trace.parameters or None)
        self._trials = {(trial.inducer, trial.position): trial for trial in trace.trials}
        self._conclusions = {row.position: row for row in trace.conclusions}
        self._tried: dict[tuple[str, int, Confidence], TrialResult] = {}

    def row(self, exit: ExitPolicy) -> EvaluationRow:
        """The row that `evaluate` would write for this problem and sample under `exit`.

        It has the ids of the response, and those of the trials where the trace has them, but no
        text, which takes the tokenizer. Exact for exits that `check` accepts: always if greedy, and
        at T > 0 if the tokens of the live main path do not depend on pauses.
        """
        response, graded = self._leave(exit)
        trace = self.trace
        return evaluation_row(
            response,
            graded,
            exit.name,
            "base",
            trace.problem_id,
            trace.sample,
            trace.seed,
            self._shape,
        )

    def _leave(self, exit: ExitPolicy) -> tuple[ExitedResponse, Graded]:
        trace = self.trace
        if trace.exit_reason == "failed" or not trace.conclusions:
            return self._whole()
        if isinstance(exit, Static):
            start, end = trace.thinking_tokens
            return self._concluded(start + floor(exit.fraction * (end - start)))
        if not isinstance(exit, Deer | Consistency):
            return self._whole()
        search = Search(exit, partial(Grader.same, rule=trace.rule))
        response, graded = self._searched(exit, search)
        inducer_tokens = next(
            (trial.inducer_tokens for trial in trace.trials if trial.inducer == exit.inducer), 0
        )
        response = replace(
            response,
            trials=tuple(search.trials),
            inducer_tokens=inducer_tokens,
            would_leave=search.would_leave,
        )
        return response, graded

    def _searched(self, exit: Deer | Consistency, search: Search) -> tuple[ExitedResponse, Graded]:
        for found in self.trace.transitions:
            if found.monitor != exit.monitor or not search.due(found.position):
                continue
            if search.leaves(self._try(exit, found.position)):
                response, graded = self._concluded(found.position)
                kept = len(response.leading_ids) + len(response.thinking_ids)
                return replace(response, withdrawn=found.seen - kept), graded
            if search.error:
                failed = ExitedResponse.failed(self.trace.prompt_tokens, search.error)
                return failed, Graded("failed", "", search.error)
        return self._whole()

    def _try(self, exit: Deer | Consistency, position: int) -> TrialResult:
        key = (exit.inducer, position, exit.confidence)
        if key not in self._tried:
            said = self._trials[exit.inducer, position]
            # An engine without logprobs gives no confidence.
            known = (
                confidence(exit.confidence, said.text, said.ends, said.logprobs)
                if said.logprobs
                else 0.0
            )
            trial = Trial(
                position, known, said.answer, said.grade, len(said.ends), said.token_ids, said.text
            )
            self._tried[key] = TrialResult(trial, said.error)
        return self._tried[key]

    def _whole(self) -> tuple[ExitedResponse, Graded]:
        trace = self.trace
        start, end = trace.thinking_tokens
        response = ExitedResponse(
            prompt_tokens=trace.prompt_tokens,
            leading_ids=trace.token_ids[:start],
            thinking_ids=trace.token_ids[start:end],
            answer_ids=trace.token_ids[end:],
            exit_reason=trace.exit_reason,
            finish_reason=trace.finish_reason,
        )
        return response, Graded(trace.grade, trace.answer, trace.reason)

    def _concluded(self, cut: int) -> tuple[ExitedResponse, Graded]:
        trace, conclusion = self.trace, self._conclusions[cut]
        start = trace.thinking_tokens.start
        response = ExitedResponse(
            prompt_tokens=trace.prompt_tokens,
            leading_ids=trace.token_ids[:start],
            thinking_ids=trace.token_ids[start : conclusion.kept],
            inserted_ids=conclusion.close_ids,
            answer_ids=conclusion.token_ids,
            exit_reason="failed" if conclusion.finish_reason == "failed" else "policy",
            finish_reason=conclusion.finish_reason,
        )
        return response, Graded(conclusion.grade, conclusion.answer, conclusion.reason)


NONE = ExitPolicy(name="none")


@dataclass(frozen=True, slots=True)
class Sweep:
    """The figures of each exit for each response.

    `problems` are those without a failed response under any exit, sorted. `failed` counts the
    others, which are left out of the arrays.
    """

    exits: tuple[ExitPolicy, ...]
    problems: tuple[str, ...]
    failed: int
    correct_EPS: npt.NDArray[np.float64]
    tokens_EPS: npt.NDArray[np.float64]
    trial_tokens_EPS: npt.NDArray[np.float64]
    left_EPS: npt.NDArray[np.float64]
    truncated_EPS: npt.NDArray[np.float64]
    reliability: tuple[Reliability, ...]
    """For each kind of confidence, monitor and inducer, over all recorded trials."""

    def losses(self, problems: Sequence[str]) -> npt.NDArray[np.float64]:
        """Paired loss of accuracy of each exit on each of these problems, (E, P)."""
        accuracy_EP = self.correct_EPS[:, self._places(problems)].mean(axis=2)
        losses_EP: npt.NDArray[np.float64] = accuracy_EP[0] - accuracy_EP
        return losses_EP

    def tokens(self, problems: Sequence[str]) -> npt.NDArray[np.float64]:
        """Mean tokens of each exit over these problems, (E,)."""
        tokens_E: npt.NDArray[np.float64] = self.tokens_EPS[:, self._places(problems)].mean((1, 2))
        return tokens_E

    def figures(self, exit: int, problems: Sequence[str]) -> Figures:
        """The figures of one exit over these problems; `left` is the share that left early."""
        places = self._places(problems)
        clusters = [name for name in problems for _ in range(self.correct_EPS.shape[2])]
        return Figures(
            task="",
            model="base",
            exit=self.exits[exit].name,
            problems=len(problems),
            responses=len(clusters),
            truncated=int(self.truncated_EPS[exit, places].sum()),
            failed=0,
            accuracy=statistics.proportion(self.correct_EPS[exit, places].ravel(), clusters),
            tokens=statistics.mean(self.tokens_EPS[exit, places].ravel(), clusters),
            gain=statistics.mean(0.0 - self.losses(problems)[exit], problems) if exit else None,
            verdict="" if exit else "base",
            more={
                "trial_tokens": float(self.trial_tokens_EPS[exit, places].mean()),
                "left": float(self.left_EPS[exit, places].mean()),
            },
        )

    def _places(self, problems: Sequence[str]) -> list[int]:
        index = {problem: place for place, problem in enumerate(self.problems)}
        return [index[problem] for problem in problems]


def candidates(recipe: Recipe) -> Iterator[ExitPolicy]:
    """The grid of exits of `recipe.calibrate`, for the settings that `recipe.trace` records."""
    recorded, grid = recipe.trace, recipe.calibrate
    knobs: list[tuple[str, type[Deer] | type[Consistency], dict[str, Any]]] = []
    if "deer" in grid.policies:
        knobs += [
            (f"{kind} {threshold:g}", Deer, {"confidence": kind, "threshold": threshold})
            for kind, threshold in product(grid.confidences, grid.thresholds)
        ]
    if "consistency" in grid.policies:
        knobs += [(f"agree {agree}", Consistency, {"agree": agree}) for agree in grid.agree]
    for monitor, inducer, (knob, policy, settings), least, cooldown in product(
        recorded.monitors, recorded.inducers, knobs, grid.min_thinking, grid.cooldown
    ):
        parts = [policy.__name__.lower(), monitor, inducer, knob]
        parts += [f"from {least}"] * (least > 0) + [f"cooldown {cooldown}"] * (cooldown > 0)
        yield policy(
            name=" ".join(parts),
            monitor=monitor,
            inducer=inducer,
            min_thinking=least,
            cooldown=cooldown,
            trial_tokens=recorded.trial_tokens,
            **settings,
            **({"every": recorded.every} if monitor == "tokens" else {}),
            **({"entropy": recorded.entropy} if monitor == "entropy" else {}),
        )


def statics(recorded: TraceSettings) -> Iterator[ExitPolicy]:
    """Static exits at the recorded shares, for comparison."""
    for share in recorded.fractions:
        yield Static(name=f"static {share:g}", fraction=share)


def sweep(traces: Iterable[Trace], exits: Sequence[ExitPolicy], recorded: TraceSettings) -> Sweep:
    """Replay `none` and every exit on every trace; the traces are sorted by id.

    Raises RecipeError for an exit that cannot be replayed on traces with these settings.
    """
    exits = (NONE, *exits)
    for exit in exits:
        check(exit, recorded)
    all_trials = tuple(_all_trials(recorded))
    trials: list[list[tuple[float, bool, str]]] = [[] for _ in all_trials]
    figures: dict[str, list[list[tuple[float, ...]]]] = {}
    failed = 0
    for problem, group in groupby(traces, key=lambda trace: trace.problem_id):
        replays = [Replay(trace) for trace in group]
        rows_ES = [[replay.row(exit) for replay in replays] for exit in exits]
        if any(row.grade == "failed" for rows in rows_ES for row in rows):
            failed += 1
            continue
        figures[problem] = [[_figures(row) for row in rows] for rows in rows_ES]
        for exit, into in zip(all_trials, trials, strict=True):
            for trial in chain.from_iterable(replay.row(exit).trials for replay in replays):
                into.append((trial.confidence, trial.grade == "correct", problem))
    if not figures:
        raise DtoError(
            f"all {failed:,} problems have a failed response: record them again with dto calibrate"
        )
    figures_PESX = np.array(list(figures.values()), dtype=np.float64)
    correct, tokens, trial_tokens, left, truncated = (
        figures_PESX[..., x].swapaxes(0, 1) for x in range(figures_PESX.shape[-1])
    )
    return Sweep(
        exits,
        tuple(figures),
        failed,
        correct,
        tokens,
        trial_tokens,
        left,
        truncated,
        tuple(
            reliability(exit.monitor, exit.inducer, exit.confidence, recorded_trials)
            for exit, recorded_trials in zip(all_trials, trials, strict=True)
        ),
    )


def _all_trials(recorded: TraceSettings) -> Iterator[Deer]:
    """Exits that make every recorded trial, for each monitor, inducer and confidence."""
    kinds = get_args(Confidence)
    for monitor, inducer, kind in product(recorded.monitors, recorded.inducers, kinds):
        yield Deer(
            name="all",
            monitor=monitor,
            inducer=inducer,
            confidence=kind,
            shadow=True,
            max_trials=sys.maxsize,
        )


def _figures(row: EvaluationRow) -> tuple[float, ...]:
    """The figures of a row, in the order of the arrays of `Sweep`."""
    return (
        row.grade == "correct",
        row.tokens,
        row.trial_tokens,
        row.exit_reason == "policy",
        row.grade == "truncated",
    )
