"""How good, and how long, are the answers of a model that is being trained?

A model that judges (2508.17803) reads question and chain, thinks, and picks A, B or C. A letter is
read as the answer to any multiple-choice question is (`dto.grading`). No letter, or several, or one
that is no option, is `unreadable`: a wrong pick that is counted apart. A response that ran out of
tokens, or never closed its thinking, has no letter either.

Judging is measured, beside the dev problems, on the labelled chains of split `dev`: those of
problems that nothing is trained on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.drqa.label import LETTERS
from dto.engines.transformers import TransformersEngine
from dto.errors import DtoError
from dto.grading import Grader
from dto.grading.compare import compare
from dto.grading.extract import final_answer
from dto.recipe import Recipe
from dto.records import Dropped, LabelledChain, Problem, Trajectory
from dto.stages.sample import sample
from dto.statistics import proportion, standard_error
from dto.training.weights import answering
from dto.trajectories import no_room, read_whole
from dto.usage import Usage, metered

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("dto.train")

BASE_STEP = 0
Pick = Literal["correct", "wrong", "unreadable", "failed"]


@dataclass(frozen=True, slots=True)
class DevScore:
    """The model after `step` optimizer steps, on the dev problems.

    `accuracy` and `truncated` are shares of the `responses` that have a grade (`failed` ones have
    none); `standard_error` is that of the accuracy, clustered by problem. `tokens_mean` is over the
    same responses. `loss` is the mean training loss since the row before (none at step 0).
    """

    step: int
    epoch: float
    accuracy: float
    standard_error: float
    tokens_mean: float
    truncated: float
    responses: int
    failed: int
    loss: float | None
    collapsed: bool = False


def summarize(
    step: int, epoch: float, responses: Sequence[Trajectory | Dropped], loss: float | None = None
) -> DevScore:
    """The score of some responses. Raises DtoError when none has a grade."""
    graded = [row for row in responses if isinstance(row, Trajectory) and row.grade != "failed"]
    if not graded:
        reasons = [row.detail if isinstance(row, Dropped) else row.reason for row in responses]
        reason = reasons[0] if reasons else "there are no dev problems"
        raise DtoError(f"train: no dev response could be graded ({reason})")
    count = len(graded)
    correct = [row.grade == "correct" for row in graded]
    return DevScore(
        step=step,
        epoch=epoch,
        accuracy=sum(correct) / count,
        standard_error=standard_error(correct, [row.problem_id for row in graded]),
        tokens_mean=sum(len(row.token_ids) for row in graded) / count,
        truncated=sum(row.grade == "truncated" for row in graded) / count,
        responses=count,
        failed=len(responses) - count,
        loss=loss,
    )


_UNTRUNCATED = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0}


def sampled(recipe: Recipe, samples: int, *, untruncated: bool = False) -> Recipe:
    """The recipe as the sample stage reads it, for what is trained on, and for judgements.

    `untruncated`: from the model's whole distribution at the temperature. That is the one whose
    logprobs are trained on, so what is trained on has to come from it.
    """
    own = recipe.train
    changes: dict[str, Any] = {"samples": samples, **(_UNTRUNCATED if untruncated else {})}
    if own.temperature is not None:
        changes["temperature"] = own.temperature
    if own.response_tokens is not None:
        changes["max_tokens"] = own.response_tokens
    return recipe.model_copy(update={"sample": recipe.sample.model_copy(update=changes)})


Work = Callable[[Any, Context], Awaitable[list[Any]]]


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Any],
    recipe: Recipe,
    label: str | None = None,
    *,
    work: Work = sample,
    allow_code_execution: bool = False,
) -> tuple[list[list[Any]], Usage]:
    """What the sample stage, or other `work`, makes of each row with the model as it is now.

    The model's mode and torch's random state are left as they were; the engine and its prefix cache
    end here, as the weights are about to change. A model with adapters answers as a merged copy,
    and all answer in the precision of their weights. `model.context` is the limit, as elsewhere.
    `label` shows a bar.
    """

    async def answers(plain: PreTrainedModel) -> tuple[list[list[Any]], Usage]:
        engine = TransformersEngine(recipe.model, loaded=(plain, tokenizer))
        bar = tqdm(total=len(rows), desc=label, leave=False, disable=None if label else True)
        grader = Grader(allow_code_execution=allow_code_execution)
        with metered() as usage, bar:
            async with engine, grader:
                ctx = Context(recipe, engine, grader)

                async def answer(row: Any) -> list[Any]:
                    made = await work(row, ctx)
                    bar.update()
                    return made

                return await gather_bounded(map(answer, rows), recipe.window), usage

    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    try:
        with answering(model) as plain, torch.random.fork_rng(), torch.inference_mode():
            return asyncio.run(answers(plain))
    finally:
        model.train(was_training)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    recipe: Recipe,
    *,
    allow_code_execution: bool = False,
) -> tuple[list[Trajectory | Dropped], Usage]:
    """`recipe.train.dev_samples` responses to each problem, from the model as it is now.

    The responses are those of the sample stage, at its temperature. A problem has the same seeds
    each time, so that two states of a model are compared on the same noise.
    """
    settings = recipe.sample.model_copy(update={"samples": recipe.train.dev_samples})
    recipe = recipe.model_copy(update={"sample": settings})
    share = partial(respond, model, tokenizer, recipe=recipe, label="dev")
    return _spread(problems, partial(share, allow_code_execution=allow_code_execution))


def _spread(
    rows: Sequence[Any], work: Callable[[Sequence[Any]], tuple[list[list[Any]], Usage]]
) -> tuple[list[Any], Usage]:
    """What each process makes of its share of the rows, and what all of it took."""
    world = PartialState()
    groups, usage = work(rows[world.process_index :: world.num_processes])
    total = Usage()
    for each in gather_object([usage]):
        total.add(each)
    return gather_object([row for group in groups for row in group]), total


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
    return next((letter for letter in LETTERS if answer and compare(letter, answer, "choice")), "")


async def judge(row: LabelledChain, ctx: Context) -> list[Judgement]:
    """`recipe.sample.samples` judgements of one chain, as the sample stage samples.

    The limit on tokens is lowered where the context is nearer.
    """
    settings = ctx.recipe.sample
    if full := no_room(row.prompt_ids, ctx.engine.context):
        return [Judgement(row.id, (), "", "failed", full)] * settings.samples
    room = ctx.engine.context - len(row.prompt_ids)
    sampling = ctx.sampling(min(settings.max_tokens, room), ctx.seed(row.id, "judge"))
    found = []
    for each in await ctx.engine.complete(row.prompt_ids, sampling, settings.samples):
        reading, ended = await read_whole(row.prompt_ids, each, ctx.tokenizer, ctx.tags)
        letter = "" if ended else read_letter(reading.text[slice(*reading.conclusion)])
        pick: Pick = "unreadable"
        if letter:
            pick = "correct" if letter == row.label else "wrong"
        elif ended and ended.grade == "failed":
            pick = "failed"
        reason = ended.reason if ended else ""
        found.append(Judgement(row.id, each.token_ids, letter, pick, reason))
    return found


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
    found = proportion(right, [by_id[each.row_id].problem_id for each in graded])
    hits: dict[str, list[bool]] = {}
    for each, good in zip(graded, right, strict=True):
        hits.setdefault(by_id[each.row_id].verdict, []).append(good)
    picked = Counter(each.letter for each in graded)
    return JudgingScore(
        step=step,
        accuracy=found.value if graded else 0.0,
        low=found.low if graded else 0.0,
        high=found.high if graded else 1.0,
        responses=len(graded),
        problems=found.problems,
        unreadable=sum(each.pick == "unreadable" for each in graded),
        failed=len(judgements) - len(graded),
        recall={name: sum(each) / len(each) for name, each in sorted(hits.items())},
        letters={letter: picked[letter] for letter in (*LETTERS, "") if picked[letter]},
        tokens_mean=sum(len(each.token_ids) for each in graded) / max(1, len(graded)),
    )


def measure_judging(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[LabelledChain],
    recipe: Recipe,
    step: int,
) -> tuple[JudgingScore, Usage]:
    """Judging of held-out rows with the model as it is now, on the same noise each time."""
    recipe = sampled(recipe, recipe.train.judgements)
    share = partial(respond, model, tokenizer, recipe=recipe, work=judge)
    judgements, usage = _spread(rows, share)
    found = score(step, rows, judgements)
    logger.info(
        "step %d: judging %.3f (%.3f–%.3f) of %d held-out chains, %d without a letter",
        step, found.accuracy, found.low, found.high, len(rows), found.unreadable,
    )  # fmt: skip
    return found, usage
