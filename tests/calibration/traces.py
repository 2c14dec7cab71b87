"""Traces written by hand: one character a token, one monitor, one inducer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from dto.recipe import CalibrateSettings, Recipe, TraceSettings
from dto.records import NOWHERE, EvaluationRow, Grade, Span
from dto.studies.trace import Trace, TracedConclusion, TracedTransition, TracedTrial

THINKING, ANSWER = 100, 10


def recipe(**calibrate: object) -> Recipe:
    """A grid of two thresholds."""
    settings = {"policies": ["deer"], "confidences": ["answer"], "thresholds": [0.5, 0.9]}
    return Recipe(
        name="hand",
        trace=TraceSettings(monitors=("paragraph",), inducers=("closed",), fractions=()),
        calibrate=CalibrateSettings.model_validate(settings | calibrate),
    )


def hand_trace(
    problem: str,
    right: bool,
    trials: Sequence[tuple[float, bool]],
    *,
    sample: int = 0,
    trial_error: str = "",
    conclusion: Grade | None = None,
) -> Trace:
    """A response of 110 tokens with trials (confidence, right) after 10, 20, … of them.

    The conclusion at a trial has 5 tokens and its trial's answer, unless a grade is given.
    """
    places = [10 * (index + 1) for index in range(len(trials))]
    return Trace(
        id=f"{problem}/{sample:03d}",
        problem_id=problem,
        rule="math",
        sample=sample,
        seed=sample,
        prompt_tokens=7,
        token_ids=tuple(range(THINKING + ANSWER)),
        thinking_tokens=Span(0, THINKING),
        exit_reason="closed",
        finish_reason="stop",
        grade="correct" if right else "wrong",
        answer="2" if right else "3",
        reason="",
        shape=(1, 1, 1),
        transitions=tuple(TracedTransition("paragraph", place, place + 2) for place in places),
        trials=tuple(
            TracedTrial(
                inducer="closed",
                position=place,
                inducer_tokens=3,
                text="\\boxed{2}",
                ends=(8, 9),
                logprobs=(math.log(sure), 0.0),
                answer="2" if good else "3",
                grade="correct" if good else "wrong",
                error=trial_error,
            )
            for place, (sure, good) in zip(places, trials, strict=True)
        ),
        conclusions=tuple(
            TracedConclusion(
                position=place,
                kept=place,
                close_ids=(1, 2),
                token_ids=(1,) * 5,
                finish_reason="stop",
                grade=conclusion or ("correct" if good else "wrong"),
                answer="2" if good else "3",
                reason="",
            )
            for place, (_, good) in zip(places, trials, strict=True)
        ),
    )


def without_text(row: EvaluationRow) -> EvaluationRow:
    """A live row as a replay has it: with the ids of its response, not with its text."""
    assert bool(row.token_ids) == bool(row.text)
    return replace(
        row,
        trials=tuple(replace(trial, char=0) for trial in row.trials),
        text="",
        thinking=NOWHERE,
        inserted=NOWHERE,
        conclusion=NOWHERE,
    )
