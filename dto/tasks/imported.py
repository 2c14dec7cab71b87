"""The stages of a run on imported rows: `sample` makes trajectories of them, `pair` pairs.

Imported responses are text, so their ids are encoded once and marked (`ids_from` is `encoded`): a
model may have written the same text with other tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dto.baselines import by_problem
from dto.concurrency import aside
from dto.context import Context
from dto.grading.compare import numeric
from dto.protocols import Completion
from dto.records import Dropped, PreferencePair, Problem, Trajectory
from dto.runs.reader import RunReader
from dto.runs.stage import RENDERING, Group, always
from dto.stages.pair import STAGE as PAIR
from dto.stages.pair import Side, limited, make_pair
from dto.stages.sample import STAGE as SAMPLE
from dto.tags import DEFAULT_TAGS, FOREIGN, ThinkTags, foreign_detail, think_tags
from dto.tasks.importing import Response, read_responses, rule_of
from dto.tasks.load import NOT_NUMERIC
from dto.text import split_thinking
from dto.trajectories import make_trajectory, opens_thinking, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.protocols import Grader
    from dto.recipe import ModelSettings, PairSettings, Recipe


async def to_trajectory(
    response: Response, tokenizer: PreTrainedTokenizerBase, settings: ModelSettings, grader: Grader
) -> Trajectory | Dropped:
    """The trajectory of a response, with the ids that the model would have in its context.

    The chat template decides whether the prompt or the response opens the thinking. A response that
    closes its thinking ends with EOS; one that does not, or that the limit of tokens cut off, is
    graded `truncated`, and one without a gold answer `failed` (`no_gold_answer`). A response with
    other tags than `model.think` is dropped as `foreign_tags`. Raises DtoError if the chat template
    cannot render the question.
    """
    tags = think_tags(tokenizer, settings)
    foreign = tags.foreign(response.text, ended=not response.cut)
    if foreign is not None:
        row_id = Trajectory.make_id(response.problem.id, response.sample)
        return Dropped(row_id, FOREIGN, foreign_detail(tags, foreign))
    size = len(response.text) // 4  # about four characters make a token
    prompt, ids, ended = await aside(size, _encode, response, tokenizer, settings, tags)
    completion = Completion(tuple(ids), "", "stop" if ended else "length", ids_from="encoded")
    return await make_trajectory(
        response.problem,
        completion,
        model=settings.name,
        sample=response.sample,
        seed=0,
        prompt_ids=prompt,
        tokenizer=tokenizer,
        grader=grader,
        tags=tags,
    )


def _encode(
    response: Response,
    tokenizer: PreTrainedTokenizerBase,
    settings: ModelSettings,
    tags: ThinkTags,
) -> tuple[tuple[int, ...], list[int], bool]:
    prompt = prompt_ids(response.problem.question, tokenizer, settings)
    text = response.text.lstrip()
    opened = opens_thinking(tokenizer, prompt, tags)
    if opened:
        text = text.removeprefix(tags.open).lstrip("\n")
    if opened and response.whole and tags.close not in text and tags.open not in response.text:
        text = f"{tags.close}\n\n{text}"
    elif not opened and tags.close in text and tags.open not in text.partition(tags.close)[0]:
        text = f"{tags.open}\n{text}"
    ids = list(tags.encode(tokenizer, text))
    ended = split_thinking(text, opened, tags).closed and not response.cut
    if ended and tokenizer.eos_token_id is not None:
        ids.append(int(tokenizer.eos_token_id))
    return prompt, ids, ended


async def imported(
    response: Response, problem_ids: Collection[str], ctx: Context
) -> Trajectory | Dropped:
    """The trajectory of an imported response; dropped if its problem was dropped."""
    problem = response.problem
    if problem.id not in problem_ids:
        detail = f"gold answer {problem.answer[:100]!r} of problem {problem.id}"
        row_id = Trajectory.make_id(problem.id, response.sample)
        filtered = ctx.recipe.problems.filter and not numeric(problem.answer, problem.rule)
        return Dropped(row_id, NOT_NUMERIC if filtered else "unreadable_gold", detail)
    return await to_trajectory(response, ctx.tokenizer, ctx.recipe.model, ctx.grader)


def responses_of(recipe: Recipe, tags: ThinkTags = DEFAULT_TAGS) -> Iterator[Response | Dropped]:
    """Read the responses that a recipe imports. Raises DtoError as `read_responses` does."""
    sample, rule = recipe.sample, rule_of(recipe.problems)
    return read_responses(
        str(sample.imported),
        tags=tags,
        rule=rule,
        columns=sample.map,
        batch_input=sample.batch_input,
    )


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    problem_ids = {row.id for row in run.problems("train")}
    for row in responses_of(ctx.recipe, think_tags(ctx.tokenizer, ctx.recipe.model)):
        if isinstance(row, Dropped):
            yield Group(f"{row.id} {row.detail}", (row,))  # files of a folder have a line 1 each
        else:
            yield Group(Trajectory.make_id(row.problem.id, row.sample), (row, problem_ids))


def _files(recipe: Recipe) -> tuple[str, ...]:
    files = (recipe.sample.imported, recipe.sample.batch_input)
    return tuple(file for file in files if file is not None)


STAGE = replace(
    SAMPLE,
    reads=always(),
    settings=always(
        "sample.imported",
        "sample.map.",
        "sample.batch_input",
        "problems.rule",
        "problems.rule_settings",
        "problems.filter",
        "model.prompt",
        *RENDERING,
    ),
    groups=_groups,
    work=imported,
    total=lambda run: None,
    needs="tokenizer",
    renders=True,
    files=_files,
)
"""The stage `sample` of a run with imported responses."""


def imported_pairs(
    problem: Problem,
    trajectories: Sequence[Trajectory],
    tokenizer: PreTrainedTokenizerBase,
    settings: PairSettings,
) -> list[PreferencePair | Dropped]:
    """The pairs of a table of preferences: samples 2k and 2k + 1 are chosen and rejected.

    Lengths and grades do not matter. At most `max_per_problem`; the rest are dropped as
    `over_limit`, and a pair with a dropped side as `no_pair`.
    """
    sides = {row.sample: row for row in trajectories}
    rows: list[PreferencePair | Dropped] = []
    for first in sorted({sample - sample % 2 for sample in sides}):
        chosen, rejected = sides.get(first), sides.get(first + 1)
        if chosen is None or rejected is None:
            row_id = Trajectory.make_id(problem.id, first)
            rows.append(Dropped(row_id, "no_pair", "one of its sides is dropped"))
            continue
        side = Side(chosen.id, chosen.token_ids, chosen.text, "imported")
        rows.append(make_pair(chosen, side, rejected, "imported", tokenizer, settings))
    return limited(rows, settings.max_per_problem)


async def _pair(
    problem: Problem, trajectories: Sequence[Trajectory], ctx: Context
) -> list[PreferencePair | Dropped]:
    return await asyncio.to_thread(
        imported_pairs, problem, trajectories, ctx.tokenizer, ctx.recipe.pair
    )


PAIRS = replace(PAIR, reads=always("sample"), groups=by_problem, work=_pair)
"""The stage `pair` of a run with imported preferences."""
