"""Close the thinking before it begins (NoThinking, 2504.09858, section 2).

Reads no key of `ExitSettings` beside its name: the text that stands in for the thinking is the
prompt `no_thinking`. Departs from the paper: one answer, where the paper also samples many under
the same token budget and selects among them (`evaluate.samples` does the first half).
"""

from __future__ import annotations

from dto.context import Context
from dto.exits.path import ExitedResponse, Path
from dto.recipe import ExitSettings
from dto.records import Problem
from dto.trajectories import opening


async def no_thinking(
    path: Path, settings: ExitSettings, problem: Problem, ctx: Context
) -> ExitedResponse:
    """Answer without any thinking; `<think>` is put in where the chat template does not open it."""
    text = opening(ctx.tokenizer, path.prompt_ids, ctx.tags) + ctx.text("no_thinking")
    return await path.concluded(0, text, "policy")
