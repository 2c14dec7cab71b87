"""The model judges a chain: it reads question and chain, thinks, and picks A, B or C (2508.17803).

A letter is read as the answer to any multiple-choice question is (`dto.grading`). No letter, or
several, or one that is no option, is `unreadable`: a wrong pick that is counted apart. A response
that ran out of tokens, or never closed its thinking, has no letter either.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from dto.context import Context
from dto.drqa.records import LabelledChain
from dto.grading.compare import compare
from dto.grading.extract import final_answer
from dto.tags import FOREIGN, foreign_detail
from dto.trajectories import read_response

LETTERS = ("A", "B", "C")

Pick = Literal["correct", "wrong", "unreadable", "failed"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One response to the question about a chain: its ids, the letter in it (or none), its grade.

    `failed` is a request that the engine did not answer, a prompt without room, or a response in
    another model's tags: `reason`.
    """

    row_id: str
    token_ids: tuple[int, ...]
    letter: str
    pick: Pick
    reason: str = ""


def read_letter(conclusion: str) -> str:
    """The one letter that a conclusion picks; empty for none, several, or another letter."""
    answer = final_answer(conclusion, "choice") or ""
    if not answer:
        return ""
    return next((letter for letter in LETTERS if compare(letter, answer, "choice")), "")


async def judge(row: LabelledChain, ctx: Context) -> list[Judgement]:
    """`recipe.sample.samples` judgements of one chain, as the sample stage samples.

    The limit on tokens is lowered where the context is nearer.
    """
    settings = ctx.recipe.sample
    room = ctx.engine.context - len(row.prompt_ids)
    if room < 1:
        reason = f"prompt has {len(row.prompt_ids):,} tokens, context is {ctx.engine.context:,}"
        return [Judgement(row.id, (), "", "failed", reason)] * settings.samples
    sampling = ctx.sampling(min(settings.max_tokens, room), ctx.seed(row.id, "judge"))
    completions = await ctx.engine.complete(row.prompt_ids, sampling, settings.samples)
    found = []
    for each in completions:
        if each.finish_reason == "failed":
            found.append(Judgement(row.id, (), "", "failed", each.error or "the engine failed"))
            continue
        reading = await asyncio.to_thread(
            read_response,
            ctx.tokenizer,
            row.prompt_ids,
            each.token_ids,
            ctx.tags,
            ended=each.finish_reason == "stop",
        )
        if reading.foreign is not None:
            reason = f"{FOREIGN}: {foreign_detail(ctx.tags, reading.foreign)}"
            found.append(Judgement(row.id, each.token_ids, "", "failed", reason))
            continue
        ended = reading.closed and each.finish_reason != "length"
        letter = read_letter(reading.text[slice(*reading.conclusion)]) if ended else ""
        found.append(Judgement(row.id, each.token_ids, letter, _pick(letter, row.label)))
    return found


def _pick(letter: str, label: str) -> Pick:
    if not letter:
        return "unreadable"
    return "correct" if letter == label else "wrong"
