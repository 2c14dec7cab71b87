"""Take a policy's decisions over again on recorded traces: no token is generated.

What is replayed: `none`, `deer` (mode fixed) and `consistency` at any threshold, kind of
confidence, number of agreeing answers, minimum thinking, cool-down and limits on trials, with every
monitor and inducer that was recorded; and `static` at the recorded shares. `overlap` is not looked
at: it changes no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import floor

from dto.errors import RecipeError
from dto.exits.consistency import agreed
from dto.exits.deer import decide as sure
from dto.exits.loop import Decide, Search
from dto.exits.path import ExitedResponse
from dto.exits.trial import Confidence, Tried, confidence
from dto.grading import Graded, Grader
from dto.recipe import ExitSettings, TraceSettings
from dto.records import EvaluationRow, Trial
from dto.stages.evaluate import evaluation_row
from dto.stages.trace import Trace
from dto.usage import ModelShape


def check(exit: ExitSettings, recorded: TraceSettings) -> None:
    """Raises RecipeError when traces recorded so do not hold what the exit would ask for."""
    needs: list[tuple[str, object, Sequence[object]]] = [
        ("policy", exit.policy, ("none", "static", "deer", "consistency"))
    ]
    if exit.policy == "static":
        needs.append(("fraction", exit.fraction, recorded.fractions))
    if exit.policy in ("deer", "consistency"):
        needs += [
            ("mode", exit.mode, ("fixed",)),
            ("monitor", exit.monitor, recorded.monitors),
            ("inducer", exit.inducer, recorded.inducers),
            ("trial_tokens", exit.trial_tokens, (recorded.trial_tokens,)),
        ]
        if exit.monitor == "tokens":
            needs.append(("every", exit.every, (recorded.every,)))
        if exit.monitor == "entropy":
            needs.append(("entropy", exit.entropy, (recorded.entropy,)))
    for key, value, held in needs:
        if value not in held:
            raise RecipeError(
                f"exit {exit.name!r} cannot be replayed: {key} = {value!r}, the traces hold "
                f"{', '.join(map(repr, held))}; record others with dto calibrate --set trace.…, "
                "or evaluate it live"
            )


class Replay:
    """One trace, ready to be left in any recorded way; each confidence is computed once."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._shape: ModelShape | None = None
        if trace.shape:
            layers, heads, head_dim = trace.shape
            self._shape = ModelShape(layers, heads, head_dim, trace.parameters or None)
        self._trials = {(trial.inducer, trial.position): trial for trial in trace.trials}
        self._conclusions = {each.position: each for each in trace.conclusions}
        self._tried: dict[tuple[str, int, Confidence], Tried] = {}

    def row(self, exit: ExitSettings, model: str = "base") -> EvaluationRow:
        """The row that `evaluate` has for this problem and sample under `exit`.

        Holds for exits that `check` lets pass: greedy for every engine, at T > 0 where the live
        main path's tokens do not depend on pauses.
        """
        response, graded = self._leave(exit)
        trace = self.trace
        return evaluation_row(
            response,
            graded,
            exit.name,
            model,
            trace.problem_id,
            trace.sample,
            trace.seed,
            self._shape,
        )

    def _leave(self, exit: ExitSettings) -> tuple[ExitedResponse, Graded]:
        trace = self.trace
        if exit.policy == "none" or trace.exit_reason == "failed" or not trace.conclusions:
            return self._whole()
        if exit.policy == "static":
            start, end = trace.thinking_tokens
            return self._concluded(start + floor(exit.fraction * (end - start)))
        decide: Decide = sure(exit)
        if exit.policy == "consistency":
            decide = partial(agreed, exit, same=Grader.same, kind=trace.answer_kind)
        search = Search(exit, decide)
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

    def _searched(self, exit: ExitSettings, search: Search) -> tuple[ExitedResponse, Graded]:
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

    def _try(self, exit: ExitSettings, position: int) -> Tried:
        key = (exit.inducer, position, exit.confidence)
        if key not in self._tried:
            said = self._trials[exit.inducer, position]
            # An engine without logprobs gives no confidence.
            known = (
                confidence(exit.confidence, said.text, said.ends, said.logprobs)
                if said.logprobs
                else 0.0
            )
            trial = Trial(position, known, said.answer, said.grade, len(said.ends))
            self._tried[key] = Tried(trial, said.error)
        return self._tried[key]

    def _whole(self) -> tuple[ExitedResponse, Graded]:
        trace = self.trace
        start, end = trace.thinking_tokens
        response = ExitedResponse(
            prompt_tokens=trace.prompt_tokens,
            leading_ids=trace.token_ids[:start],
            thinking_ids=trace.token_ids[start:end],
            inserted_ids=(),
            answer_ids=trace.token_ids[end:],
            conclusion="",
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
            conclusion="",
            exit_reason="failed" if conclusion.finish_reason == "failed" else "policy",
            finish_reason=conclusion.finish_reason,
        )
        return response, Graded(conclusion.grade, conclusion.answer, conclusion.reason)
