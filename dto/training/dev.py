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
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

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
from dto.records import Dropped, Grade, LabelledChain, Problem, Trajectory
from dto.runs.manifest import write_text
from dto.stages.sample import sample
from dto.statistics import proportion, standard_error
from dto.tags import FOREIGN, foreign_detail
from dto.training.weights import answering
from dto.trajectories import read_response
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
    engine = TransformersEngine(
        model,
        tokenizer,
        name=recipe.model.name,
        context=recipe.model.context,
        slots=recipe.model.slots,
        cache_bytes=recipe.model.cache_bytes,
        kv_bytes=recipe.model.kv_bytes,
        template=recipe.model.template,
    )
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
