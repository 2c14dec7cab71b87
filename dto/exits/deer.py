"""Dynamic early exit (2504.15895, section 3), in the paper's sequential form.

The main path stops at each transition, the model gives a trial answer there, and either the
thinking is closed and the model concludes, or the trial is thrown away and the path goes on.

Departs from the paper: on an engine whose noise depends on seed and position the path goes on with
exactly the tokens that it would have had without the pause, so that rows with and without the
policy are paired until the exit; tokens of trials and withdrawn cues are counted; no answer is
forced near the limit (`budget` does that).
"""

from __future__ import annotations

from dataclasses import replace

from dto.context import Context
from dto.exits.monitor import next_transition
from dto.exits.path import ExitedResponse, Path
from dto.exits.trial import try_answer
from dto.prompts import render
from dto.recipe import ExitSettings
from dto.records import Problem, Trial


async def deer(
    path: Path, settings: ExitSettings, problem: Problem, ctx: Context
) -> ExitedResponse:
    """Leave at the first transition whose trial answer has a confidence above the threshold.

    No trial is made before `settings.min_thinking` tokens nor after `settings.max_trials`; a path
    that is never left runs to the model's own end. After an exit the trial is thrown away too, and
    the model writes its conclusion behind the prompt `early_close`.
    """
    inducer = render(f"trial_{settings.inducer}", ctx.recipe.model.family)
    trials: list[Trial] = []
    exit_at = None
    tried = 0  # never before any thinking, never twice at one place
    while exit_at is None and len(trials) < settings.max_trials:
        cut = await next_transition(path, settings)
        if cut is None:
            break
        if cut <= tried or cut < settings.min_thinking:
            continue
        tried = cut
        trial, error = await try_answer(
            path.prompt_ids, path.ids[:cut], inducer, settings, problem, ctx
        )
        trials.append(trial)
        if error:
            path.fail(f"trial answer: {error}")
            break
        if trial.confidence > settings.threshold:
            exit_at = cut
    if exit_at is None:
        response = await path.finished()
    else:
        response = await path.concluded(exit_at, ctx.text_ids("early_close"), "policy")
    inducer_ids = ctx.tokenizer.encode(inducer, add_special_tokens=False)
    return replace(response, trials=tuple(trials), inducer_tokens=len(inducer_ids))
