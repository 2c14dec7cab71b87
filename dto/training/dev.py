"""Measure a model during training: accuracy and length on dev problems, and judging of chains.

For judging (2508.17803), a model reads a question and a chain, thinks, and picks A, B or C. The
letter is read like the answer to any multiple-choice question (`dto.grading`). If there is no
letter, or several, or one that is not an option, the pick is `unreadable`: it counts as wrong and
is also counted separately. So is a response that ran out of tokens or never closed its thinking.
Judging is measured on the labelled chains of split `dev`, whose problems are not trained on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.drqa.label import LETTERS
from dto.drqa.records import LabelledChain
from dto.engines.transformers import TransformersEngine
from dto.errors import DtoError
from dto.grading import Grader
from dto.grading.compare import compare
from dto.grading.extract import final_answer
from dto.recipe import Recipe
from dto.records import Dropped, Problem, Trajectory
from dto.stages.sample import sample
from dto.statistics import mean, proportion, standard_error
from dto.training.weights import answering
from dto.trajectories import no_room, read_whole
from dto.usage import Usage, metered

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dto.protocols import Engine
    from dto.training.beside import Beside

logger = logging.getLogger("dto.train")

BASE_STEP = 0
Pick = Literal["correct", "wrong", "unreadable", "failed"]
ThinkingState = Literal["valid", "empty", "missing", "truncated"]
THINKING: tuple[ThinkingState, ...] = get_args(ThinkingState)


@dataclass(frozen=True, slots=True)
class DevScore:
    """The model's score on the dev problems after `step` optimizer steps.

    `accuracy` and `truncated` are shares of the graded `responses`, without `failed` ones.
    `standard_error` is the accuracy's, clustered by problem. `tokens_mean` is over the same
    responses. `loss` is the mean training loss since the previous score (None at step 0).

    `low` and `high` are the ends of the accuracy's 95 % interval, `tokens_low` and `tokens_high`
    those of the tokens, clustered by problem. `thinking` has the share of responses by
    :func:`thinking_state`, and `accuracy`, `low` and `high` over those with valid thinking (pass@1
    given valid thinking). None: not known, as in scores of earlier versions.
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
    low: float | None = None
    high: float | None = None
    tokens_low: float | None = None
    tokens_high: float | None = None
    thinking: dict[str, float | None] | None = None


def thinking_state(row: Trajectory) -> ThinkingState:
    """Classify the thinking of a response, from its spans (`dto.trajectories.read_response`).

    `missing`: the prompt leaves no thinking open and the response has no tags; the text is all
    conclusion. `truncated`: it is opened and never closed. `empty`: it holds nothing but white
    space. Any other thinking is `valid`, also if the answer after it is cut off.
    """
    size = len(row.text)
    if row.thinking.end == 0 and row.conclusion == (0, size) and (size or row.grade != "truncated"):
        return "missing"
    if row.thinking.end == size:  # a closing tag would follow
        return "truncated"
    return "valid" if row.text[slice(*row.thinking)].strip() else "empty"


def _thinking(rows: Sequence[Trajectory]) -> dict[str, float | None]:
    states = [thinking_state(row) for row in rows]
    valid = [row for row, state in zip(rows, states, strict=True) if state == "valid"]
    right = proportion([row.grade == "correct" for row in valid], [row.problem_id for row in valid])
    shares = {state: states.count(state) / len(rows) for state in THINKING}
    given = {"accuracy": right.value, "low": right.low, "high": right.high}
    return shares | {name: _finite(value) for name, value in given.items()}


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def summarize(
    step: int, epoch: float, responses: Sequence[Trajectory | Dropped], loss: float | None = None
) -> DevScore:
    """Score responses. Raises DtoError if none has a grade."""
    graded = [row for row in responses if isinstance(row, Trajectory) and row.grade != "failed"]
    if not graded:
        reasons = [row.detail if isinstance(row, Dropped) else row.reason for row in responses]
        reason = reasons[0] if reasons else "there are no dev problems"
        raise DtoError(f"train: no dev response could be graded ({reason})")
    count = len(graded)
    correct = [row.grade == "correct" for row in graded]
    problems = [row.problem_id for row in graded]
    accuracy, tokens = proportion(correct, problems), [len(row.token_ids) for row in graded]
    length = mean(tokens, problems)
    return DevScore(
        step=step,
        epoch=epoch,
        accuracy=sum(correct) / count,
        standard_error=standard_error(correct, problems),
        tokens_mean=sum(tokens) / count,
        truncated=sum(row.grade == "truncated" for row in graded) / count,
        responses=count,
        failed=len(responses) - count,
        loss=loss,
        low=accuracy.low,
        high=accuracy.high,
        tokens_low=_finite(length.low),
        tokens_high=_finite(length.high),
        thinking=_thinking(graded),
    )


_UNTRUNCATED = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0}


def sampled(recipe: Recipe, samples: int, *, untruncated: bool = False) -> Recipe:
    """The recipe with `sample` settings for training responses or judgements.

    `untruncated`: sample from the model's whole distribution at the temperature, without top-p and
    the like. Training needs that, because it uses the logprobs of that distribution.
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
    beside: Beside | None = None,
) -> tuple[list[list[Any]], Usage]:
    """Run the sample stage, or other `work`, on each row with the model in its current state.

    `beside` is the engine beside the training, which gets the model's weights first and computes
    in its own precision. Without it the model itself responds, in the transformers engine and in
    the precision of the weights: its mode and torch's random state are restored, the engine and
    its prefix cache are closed at the end, since the weights will change, and a model with adapters
    responds as a merged copy. `label` shows a progress bar.
    """

    async def answers(engine: Engine, rows: Sequence[Any]) -> tuple[list[list[Any]], Usage]:
        bar = tqdm(total=len(rows), desc=label, leave=False, disable=None if label else True)
        grader = Grader(allow_code_execution=allow_code_execution)
        with metered() as usage, bar:
            async with grader:
                ctx = Context(recipe, engine, grader)

                async def answer(row: Any) -> list[Any]:
                    results = await work(row, ctx)
                    bar.update()
                    return results

                return await gather_bounded(map(answer, rows), recipe.window), usage

    async def own_answers(plain: PreTrainedModel) -> tuple[list[list[Any]], Usage]:
        async with TransformersEngine(recipe.model, loaded=(plain, tokenizer)) as engine:
            return await answers(engine, rows)

    if beside is not None:
        return beside.answer(model, rows, answers)
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    own = [model.device] if model.device.type == "cuda" else []  # else every GPU is initialised
    try:
        with torch.random.fork_rng(own), answering(model, recipe) as plain, torch.inference_mode():
            return asyncio.run(own_answers(plain))
    finally:
        model.train(was_training)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    recipe: Recipe,
    *,
    allow_code_execution: bool = False,
    beside: Beside | None = None,
) -> tuple[list[Trajectory | Dropped], Usage]:
    """Sample `recipe.train.dev_samples` responses to each problem from the current model.

    Sampling is as in the sample stage. A problem has the same seeds each time, so two states of the
    model are compared on the same noise.
    """
    settings = recipe.sample.model_copy(update={"samples": recipe.train.dev_samples})
    recipe = recipe.model_copy(update={"sample": settings})
    label = "dev" if PartialState().is_main_process else None
    share = partial(respond, model, tokenizer, recipe=recipe, label=label, beside=beside)
    return _spread(problems, partial(share, allow_code_execution=allow_code_execution))


def _spread(
    rows: Sequence[Any], work: Callable[[Sequence[Any]], tuple[list[list[Any]], Usage]]
) -> tuple[list[Any], Usage]:
    """Split the rows among the processes; return the results and usage of all of them."""
    world = PartialState()
    groups, usage = work(rows[world.process_index :: world.num_processes])
    total = Usage()
    for share in gather_object([usage]):
        total.add(share)
    return gather_object([row for group in groups for row in group]), total


@dataclass(frozen=True, slots=True)
class Judgement:
    """One response to the question about a chain: its ids, its letter (or none), and its `pick`.

    `unreadable`: it has no single valid letter. `failed`: the request failed, the prompt fills the
    context, or the response uses another model's tags; `reason` says which.
    """

    row_id: str
    token_ids: tuple[int, ...]
    letter: str
    pick: Pick
    reason: str = ""


def read_letter(conclusion: str) -> str:
    """The letter that a conclusion picks; empty for none, several, or a letter not offered."""
    answer = final_answer(conclusion, "choice") or ""
    return next((letter for letter in LETTERS if answer and compare(letter, answer, "choice")), "")


async def judge(row: LabelledChain, ctx: Context) -> list[Judgement]:
    """Sample `recipe.sample.samples` judgements of one chain.

    The remaining context may lower the limit on tokens.
    """
    settings = ctx.recipe.sample
    if full := no_room(row.prompt_ids, ctx.engine.context):
        return [Judgement(row.id, (), "", "failed", full)] * settings.samples
    room = ctx.engine.context - len(row.prompt_ids)
    sampling = ctx.sampling(min(settings.max_tokens, room), ctx.seed(row.id, "judge"))
    judgements = []
    for completion in await ctx.engine.complete(row.prompt_ids, sampling, settings.samples):
        reading, ended = await read_whole(row.prompt_ids, completion, ctx.tokenizer, ctx.tags)
        letter = "" if ended else read_letter(reading.text[slice(*reading.conclusion)])
        pick: Pick = "unreadable"
        if letter:
            pick = "correct" if letter == row.label else "wrong"
        elif ended and ended.grade == "failed":
            pick = "failed"
        reason = ended.reason if ended else ""
        judgements.append(Judgement(row.id, completion.token_ids, letter, pick, reason))
    return judgements


@dataclass(frozen=True, slots=True)
class JudgingScore:
    """Judging after `step` optimizer steps: the share of right letters, and its 95 % interval.

    The interval is clustered by problem. `responses` counts graded judgements; `unreadable` of them
    have no letter and count as wrong. `failed` ones leave the denominator. `recall` is the share of
    right letters by verdict, `letters` counts the picked letters (empty: none), `tokens_mean` is
    the mean length of a judgement.
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
    """Score judgements; without any, the figures are 0 instead of nan."""
    by_id = {row.id: row for row in rows}
    graded = [judgement for judgement in judgements if judgement.pick != "failed"]
    right = [judgement.pick == "correct" for judgement in graded]
    accuracy = proportion(right, [by_id[row.row_id].problem_id for row in graded])
    hits: dict[str, list[bool]] = {}
    for judgement, good in zip(graded, right, strict=True):
        hits.setdefault(by_id[judgement.row_id].verdict, []).append(good)
    picked = Counter(judgement.letter for judgement in graded)
    tokens = sum(len(judgement.token_ids) for judgement in graded)
    return JudgingScore(
        step=step,
        accuracy=accuracy.value if graded else 0.0,
        low=accuracy.low if graded else 0.0,
        high=accuracy.high if graded else 1.0,
        responses=len(graded),
        problems=accuracy.problems,
        unreadable=sum(judgement.pick == "unreadable" for judgement in graded),
        failed=len(judgements) - len(graded),
        recall={verdict: sum(good) / len(good) for verdict, good in sorted(hits.items())},
        letters={letter: picked[letter] for letter in (*LETTERS, "") if picked[letter]},
        tokens_mean=tokens / max(1, len(graded)),
    )


def measure_judging(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[LabelledChain],
    recipe: Recipe,
    step: int,
    beside: Beside | None = None,
) -> tuple[JudgingScore, Usage]:
    """Measure judging of held-out rows with the current model, on the same noise each time."""
    recipe = sampled(recipe, recipe.train.judgements)
    share = partial(respond, model, tokenizer, recipe=recipe, work=judge, beside=beside)
    judgements, usage = _spread(rows, share)
    result = score(step, rows, judgements)
    logger.info(
        "step %d: judging %.3f (%.3f–%.3f) of %d held-out chains, %d without a letter",
        step, result.accuracy, result.low, result.high, len(rows), result.unreadable,
    )  # fmt: skip
    return result, usage
