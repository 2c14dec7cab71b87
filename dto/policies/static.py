"""Leave after a fixed share of the model's own thinking (the pilot study of 2504.15895).

Reads `fraction` of `ExitSettings`. It cuts at a token that ends a character, not at
the end of a sentence.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dto.context import Context
from dto.exits.path import ExitedResponse, Path
from dto.recipe import ExitSettings
from dto.records import Problem


async def static(
    path: Path, settings: ExitSettings, problem: Problem, ctx: Context
) -> ExitedResponse:
    """Keep the first `settings.fraction` of the thinking, rounded down to such a token.

    An oracle, not a policy: the length of the thinking is known only once it has been written in
    full. The response counts the tokens that are kept; the others are wasted.
    """
    whole = await path.finished()
    if whole.exit_reason == "failed":
        return whole
    cut = len(whole.leading_ids) + math.floor(settings.fraction * len(whole.thinking_ids))
    exited = await path.concluded(cut, ctx.text("early_close"), "policy")
    return replace(exited, withdrawn=0)
