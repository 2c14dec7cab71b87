"""How good, and how long, are the answers of a model that is being trained?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.engines.transformers import TransformersEngine
from dto.errors import DtoError
from dto.grading import Grader
from dto.recipe import Recipe
from dto.records import Dropped, Grade, Problem, Trajectory
from dto.stages.sample import sample
from dto.statistics import standard_error
from dto.training.weights import answering
from dto.usage import Usage, metered

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASE_STEP = 0
T = TypeVar("T")
R = TypeVar("R")


class Response(NamedTuple):
    """What is kept of one dev response."""

    problem_id: str
    grade: Grade
    tokens: int
    reason: str


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


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    recipe: Recipe,
    *,
    allow_code_execution: bool = False,
) -> tuple[list[Response], Usage]:
    """`recipe.train.dev_samples` responses to each problem, from the model as it is now.

    The responses are those of the sample stage, at its temperature. A problem has the same seeds
    each time, so that two states of a model are compared on the same noise.
    """
    settings = recipe.sample.model_copy(update={"samples": recipe.train.dev_samples})
    recipe = recipe.model_copy(update={"sample": settings})
    groups, usage = respond(
        model, tokenizer, problems, recipe, "dev", allow_code_execution=allow_code_execution
    )
    return [_response(row) for rows in groups for row in rows], usage


def spread(
    rows: Sequence[T], work: Callable[[Sequence[T]], tuple[list[R], Usage]]
) -> tuple[list[R], Usage]:
    """What `work` makes of all rows, each process at work on its share of them, and what it took.

    Every process of a training gets the same.
    """
    world = PartialState()
    found, usage = work(rows[world.process_index :: world.num_processes])
    if world.num_processes == 1:
        return found, usage
    total = Usage()
    for each in gather_object([usage]):
        total.add(each)
    return gather_object(found), total


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


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Any],
    recipe: Recipe,
    label: str | None = None,
    *,
    work: Callable[[Any, Context], Awaitable[list[Any]]] = sample,
    allow_code_execution: bool = False,
) -> tuple[list[list[Any]], Usage]:
    """What the sample stage, or other `work`, makes of each problem with the model as it is now.

    The model's mode and torch's random state are left as they were; the engine and its prefix cache
    end here, as the weights are about to change. A model with adapters answers as a merged copy,
    and all answer in the precision of their weights. `model.context` is the limit, as elsewhere.
    `label` shows a bar.
    """
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    try:
        with answering(model) as plain, torch.random.fork_rng(), torch.inference_mode():
            grader = Grader(allow_code_execution=allow_code_execution)
            return asyncio.run(_respond(plain, tokenizer, problems, recipe, label, grader, work))
    finally:
        model.train(was_training)


async def _respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Any],
    recipe: Recipe,
    label: str | None,
    grader: Grader,
    work: Callable[[Any, Context], Awaitable[list[Any]]],
) -> tuple[list[list[Any]], Usage]:
    engine = TransformersEngine(model, tokenizer, recipe.model)
    with metered() as usage:
        async with engine, grader:
            ctx = Context(recipe, engine, grader)
            with tqdm(
                total=len(problems), desc=label, leave=False, disable=None if label else True
            ) as bar:

                async def responses(problem: Any) -> list[Any]:
                    rows = await work(problem, ctx)
                    bar.update()
                    return rows

                groups = await gather_bounded(map(responses, problems), recipe.window)
    return groups, usage


def _response(row: Trajectory | Dropped) -> Response:
    if isinstance(row, Dropped):
        return Response(row.id, "failed", 0, f"{row.reason}: {row.detail}")
    return Response(row.problem_id, row.grade, len(row.token_ids), row.reason)


def summarize(
    step: int, epoch: float, responses: Sequence[Response], loss: float | None = None
) -> DevScore:
    """The score of some responses. Raises DtoError when none has a grade."""
    graded = [response for response in responses if response.grade != "failed"]
    if not graded:
        reason = responses[0].reason if responses else "there are no dev problems"
        raise DtoError(f"train: no dev response could be graded ({reason})")
    count = len(graded)
    correct = [response.grade == "correct" for response in graded]
    return DevScore(
        step=step,
        epoch=epoch,
        accuracy=sum(correct) / count,
        standard_error=standard_error(correct, [response.problem_id for response in graded]),
        tokens_mean=sum(response.tokens for response in graded) / count,
        truncated=sum(response.grade == "truncated" for response in graded) / count,
        responses=count,
        failed=len(responses) - count,
        loss=loss,
    )
