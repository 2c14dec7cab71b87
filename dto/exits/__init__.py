"""Early exit is a policy over a stream: when to stop thinking, and what happens then.

Each policy is a function of its name: DEER (2504.15895) is here, others are in `dto.policies`.
`none` lets the model go on to its own end. Those that ask for trial answers at reasoning
transitions share one loop (`dto.exits.loop`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from types import ModuleType

from dto.context import Context
from dto.errors import EngineError
from dto.exits.monitor import ENTROPY_LOGPROBS
from dto.exits.path import ExitedResponse, ResponsePath
from dto.protocols import Engine, Sampling
from dto.recipe import ExitSettings
from dto.records import Problem

__all__ = ["ExitedResponse", "answer", "check"]


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
    if settings.overlap == "branches":
        overlapped = settings.model_copy(update={"overlap": True})
        async with ctx.engine.branched() as engine:
            return await answer(
                problem, prompt_ids, overlapped, replace(ctx, engine=engine), sampling
            )
    path = ResponsePath(prompt_ids, ctx, sampling)
    if settings.policy == "none" or path.closed:  # there is no thinking to leave
        return await path.finished()
    name, module = _found(settings)
    response: ExitedResponse = await getattr(module, name)(path, settings, problem, ctx)
    return response


_HOMES = {
    "deer": "exits.deer", "compat": "policies.compat", "code": "policies.code",
    "consistency": "policies.settling", "entropy": "policies.settling",
}  # fmt: skip


def _found(settings: ExitSettings) -> tuple[str, ModuleType]:
    """A policy's function and its module. DEER as it was published has its own."""
    published = settings.policy == "deer" and settings.mode == "compat"
    name = "compat" if published else settings.policy
    return name, import_module(f"dto.{_HOMES.get(name, 'policies.without_trials')}")


def check(settings: ExitSettings, engine: Engine) -> None:
    """Refuse at the start what a serving engine cannot do for a policy.

    Raises EngineError, or RecipeError for settings that no engine can do together, naming the exit,
    the key that asks for it and a way out.
    """
    refuse = getattr(_found(settings)[1], "check", None)
    if refuse is not None:
        refuse(settings)
    if settings.overlap == "branches":
        engine.branched()
    policy, can = settings.policy, engine.capabilities
    exit = f"exit {settings.name!r}: "
    way_out = f"which the engine of {engine.model!r} does not give: use "
    if policy != "none" and not can.token_prompts:
        raise EngineError(
            f"{exit}policy {policy} continues the model's own tokens, and needs token prompts, "
            f"{way_out}transformers, vllm, or openai with a vLLM server"
        )
    if policy == "nowait" and not can.banned:
        raise EngineError(f"{exit}policy nowait needs banned tokens, {way_out}transformers or vllm")
    needs = {"deer": 0, "code": 0, "entropy": ENTROPY_LOGPROBS}
    asks = [(f"policy {policy}", needs[policy])] if policy in needs else []
    if policy in (*needs, "consistency") and settings.monitor == "entropy":
        asks.append(("monitor entropy", ENTROPY_LOGPROBS))
    for key, least in asks:
        if can.logprobs is None or can.logprobs < least:
            what = f"the {least} top logprobs" if least else "logprobs"
            raise EngineError(
                f"{exit}{key} needs {what} of each token, {way_out}transformers or vllm"
            )
    if policy == "deer" and settings.mode == "qwen3" and settings.inducer == "closed":
        raise EngineError(
            f"{exit}mode qwen3 waits for the end of the thinking after the trial, and inducer "
            "closed has closed it: use inducer inside"
        )
