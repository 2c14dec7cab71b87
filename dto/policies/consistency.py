r"""Leave when trial answers stop changing (Dynasor's certaindex for chains, 2412.20993, section 3).

Reads `agree`, `inducer`, `confidence`, `trial_tokens` and, for where trials are made, the keys of
`dto.exits.loop` and `dto.exits.monitor`: the paper probes every so many tokens, which is `monitor:
tokens` with `every`.

Departs from the published code: trials are greedy and end at their brace; answers are compared as
the grader's fast path does, not as strings; doubt is a word of its own (the published search for
`no` and `but` in any place refuses `\notin` and `attribute`) and `no` is not one of them, since it
is an answer. Confidence is stored, and decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

from dto.context import Context
from dto.exits.loop import TrialResult, leave_at_transition, try_answer
from dto.exits.path import ExitedResponse, Path
from dto.recipe import ExitSettings
from dto.records import AnswerKind, Problem, Trial
from dto.rollouts import answer_inducer

DOUBT = re.compile(r"\b(?:wait|hold|but|okay|hmm+)\b", re.IGNORECASE)


async def consistency(
    path: Path, settings: ExitSettings, problem: Problem, ctx: Context
) -> ExitedResponse:
    """Leave at the first transition at which the last `settings.agree` trial answers are equal."""
    inducer = answer_inducer(f"trial_{settings.inducer}", ctx)

    async def probe(cut: int) -> TrialResult:
        return await try_answer(path.prompt_ids, path.ids[:cut], inducer, settings, problem, ctx)

    decide = partial(agreed, settings, kind=problem.answer_kind, same=ctx.grader.same)
    return await leave_at_transition(path, settings, ctx, probe, decide, len(ctx.encode(inducer)))


def agreed(
    settings: ExitSettings,
    trials: Sequence[Trial],
    same: Callable[[str, str, AnswerKind], bool],
    kind: AnswerKind = "math",
) -> bool:
    """Whether the last `settings.agree` trials give one answer, none of them empty or in doubt.

    `same` is the grader's: answers whose equality would take algebra to decide are not equal.
    """
    answers = [trial.answer for trial in trials[-settings.agree :]]
    return (
        len(answers) == settings.agree
        and all(answer and not DOUBT.search(answer) for answer in answers)
        and all(same(answers[-1], answer, kind) for answer in answers)
    )
