"""Early exit: a policy reads the response as it grows and decides when to leave the thinking.

DEER (2504.15895) is here, other policies are in `dto.policies`; `dto.settings.POLICIES` lists them.
Policies that ask for trial answers at reasoning transitions share one loop (`dto.exits.loop`).
"""

from __future__ import annotations

from collections.abc import Sequence

from dto.context import Context
from dto.exits.path import ExitedResponse, ResponsePath
from dto.protocols import Sampling
from dto.records import Problem
from dto.settings import ExitPolicy

__all__ = ["ExitedResponse", "answer", "answer_on"]


async def answer(
    problem: Problem,
    prompt_ids: Sequence[int],
    policy: ExitPolicy,
    ctx: Context,
    sampling: Sampling,
) -> ExitedResponse:
    """Sample one response to a problem's prompt under an exit policy.

    `sampling.max_tokens` limits thinking and answer together. `sampling.seed` is the seed of the
    whole response: policies with the same seed follow the same main path until they leave it. The
    problem serves to grade trial answers; no policy sees the grade. If a request fails, the exit
    reason is `failed`. Raises EngineError for an engine that takes text only.
    """
    return await answer_on(ResponsePath(prompt_ids, ctx, sampling), problem, policy, ctx)


async def answer_on(
    path: ResponsePath, problem: Problem, policy: ExitPolicy, ctx: Context
) -> ExitedResponse:
    """Continue a path under an exit policy to the end of the response."""
    if path.closed:  # by the prompt: there is no thinking to leave
        return await path.finished()
    return await policy.leave(path, problem, ctx)
