"""Leave after a number of thinking tokens (budget forcing, 2501.19393, without its lower bound)."""

from __future__ import annotations

from dto.context import Context
from dto.exits.path import ExitedResponse, Path
from dto.recipe import ExitSettings


async def budget(path: Path, settings: ExitSettings, ctx: Context) -> ExitedResponse:
    """Close the thinking once `settings.budget` tokens were generated, if it is still open."""
    await path.advance(limit=settings.budget)
    if path.thinking:
        return await path.concluded(len(path.ids), ctx.text_ids("early_close"), "budget")
    return await path.finished()
