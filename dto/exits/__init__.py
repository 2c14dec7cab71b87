"""Early exit is a policy over a stream: when to stop thinking, and what happens then.

`none` lets the model go on to its own end, `static` keeps a share of its own thinking, `budget`
forces the answer after so many tokens (the control that every claim of an early exit needs), and
`deer` asks for a trial answer at each transition and leaves when the model is sure of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from dto.context import Context
from dto.engines.base import Sampling
from dto.exits.budget import budget
from dto.exits.deer import deer
from dto.exits.path import ExitedResponse, Path
from dto.exits.static import static
from dto.recipe import ExitSettings
from dto.records import Problem

__all__ = ["ExitedResponse", "answer"]


async def answer(
    problem: Problem,
    prompt_ids: Sequence[int],
    settings: ExitSettings,
    ctx: Context,
    sampling: Sampling,
) -> ExitedResponse:
    """One response to a problem's prompt under an exit policy.

    `sampling.max_tokens` bounds thinking and answer together, `sampling.seed` is that of the whole
    response: policies that are given the same seed follow the same main path until they leave it.
    The problem is there to grade trial answers; no policy sees the grade. A request that goes wrong
    gives a response whose exit reason is `failed`. Raises EngineError for an engine that takes text
    only.
    """
    path = Path(prompt_ids, ctx, sampling)
    if settings.policy == "static":
        return await static(path, settings, ctx)
    if settings.policy == "budget":
        return await budget(path, settings, ctx)
    if settings.policy == "deer":
        return await deer(path, settings, problem, ctx)
    return await path.finished()
