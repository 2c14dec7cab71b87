"""The model judges a chain: it reads question and chain, thinks, and picks A, B or C (2508.17803).

A letter is read as the answer to any multiple-choice question is (`dto.grading`). No letter, or
several, or one that is no option, is `unreadable`: a wrong pick that is counted apart. A response
that ran out of tokens, or never closed its thinking, has no letter either.

Judging of chains that were held out is measured beside the dev problems. What stands in
`judging.jsonl`, a line for each checkpoint, is deterministic. Held out are the labelled chains of
split `dev`: those of problems that nothing is trained on.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accelerate import PartialState

from dto.context import Context
from dto.drqa.label import LETTERS
from dto.grading.compare import compare
from dto.grading.extract import final_answer
from dto.recipe import Recipe
from dto.records import LabelledChain
from dto.runs.manifest import write_text
from dto.statistics import proportion
from dto.tags import FOREIGN, foreign_detail
from dto.training.dev import respond, sampled, spread
from dto.trajectories import read_response
from dto.usage import Usage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("dto.train")

FILE = "judging.jsonl"
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


@dataclass(frozen=True, slots=True)
class JudgingScore:
    """Judging after `step` optimizer steps: the share of right letters, its 95 % interval.

    The interval is clustered by problem. `responses` have a grade, `unreadable` of them no letter,
    which counts as wrong; `failed` ones leave the denominator. `recall` is the share of right
    letters by verdict, `letters` counts what was picked (empty: nothing), `tokens_mean` is the mean
    length of a judgement.
    """

    step: int
    accuracy: float
    low: float
    high: float
    responses: int
    problems: int
    unreadable: int
    failed: int
    recall: dict[str, float]
    letters: dict[str, int]
    tokens_mean: float


def score(
    step: int, rows: Sequence[LabelledChain], judgements: Sequence[Judgement]
) -> JudgingScore:
    """Sum up the judgements of some rows; figures without any are nan-free zeros."""
    by_id = {row.id: row for row in rows}
    graded = [each for each in judgements if each.pick != "failed"]
    right = [each.pick == "correct" for each in graded]
    problems = [by_id[each.row_id].problem_id for each in graded]
    found = proportion(right, problems)
    hits: dict[str, list[bool]] = {}
    for each, good in zip(graded, right, strict=True):
        hits.setdefault(by_id[each.row_id].verdict, []).append(good)
    picked = Counter(each.letter for each in graded)
    tokens = sum(len(each.token_ids) for each in graded)
    return JudgingScore(
        step=step,
        accuracy=found.value if graded else 0.0,
        low=found.low if graded else 0.0,
        high=found.high if graded else 1.0,
        responses=len(graded),
        problems=len(set(problems)),
        unreadable=sum(each.pick == "unreadable" for each in graded),
        failed=len(judgements) - len(graded),
        recall={name: sum(each) / len(each) for name, each in sorted(hits.items())},
        letters={letter: picked[letter] for letter in (*LETTERS, "") if picked[letter]},
        tokens_mean=tokens / len(graded) if graded else 0.0,
    )


class Judging:
    """Measures judging on held-out rows and keeps the scores of a training."""

    def __init__(
        self,
        rows: Sequence[LabelledChain],
        tokenizer: PreTrainedTokenizerBase,
        recipe: Recipe,
        directory: Path,
        steps: Sequence[int],
    ) -> None:
        """Take up what `directory` has of the `steps` that a resumed training has made."""
        self.rows = list(rows)
        self.tokenizer = tokenizer
        self.recipe = sampled(recipe, recipe.train.judgements)
        self.path = directory / FILE
        self.writer = PartialState().is_main_process
        known = [row for row in read_scores(self.path) if row.step in steps]
        self.scores: list[JudgingScore] = known

    def measure(self, model: PreTrainedModel, step: int) -> Usage:
        """Measure the model as it is now, on the same noise each time."""

        def judged(rows: Sequence[LabelledChain]) -> tuple[list[Judgement], Usage]:
            groups, usage = respond(model, self.tokenizer, rows, self.recipe, work=judge)
            return [each for group in groups for each in group], usage

        judgements, usage = spread(self.rows, judged)
        found = score(step, self.rows, judgements)
        self.scores = [row for row in self.scores if row.step != step] + [found]
        if self.writer:
            lines = [json.dumps(asdict(row)) for row in self.scores]
            write_text(self.path, "\n".join(lines) + "\n")
        logger.info(
            "step %d: judging %.3f (%.3f–%.3f) of %d held-out chains, %d without a letter",
            step, found.accuracy, found.low, found.high, len(self.rows), found.unreadable,
        )  # fmt: skip
        return usage

    def summary(self, kept_step: int) -> dict[str, Any] | None:
        """Judging before the training, at its end, and of what is kept."""
        if not self.scores:
            return None
        kept = next((row for row in self.scores if row.step == kept_step), self.scores[0])
        return {
            "before": asdict(self.scores[0]),
            "after": asdict(self.scores[-1]),
            "kept": asdict(kept),
        }


def read_scores(path: Path) -> list[JudgingScore]:
    """The scores of a training; none where nothing was measured."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [JudgingScore(**json.loads(line)) for line in lines]
