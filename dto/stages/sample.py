"""Sample several responses to each problem (2505.21765 section 3: step 1)."""

from __future__ import annotations

from collections.abc import Iterator

from dto.context import Context
from dto.records import Dropped, Problem, Trajectory
from dto.runs.reader import RunReader
from dto.runs.stage import Card, Group, Stage, always, responses
from dto.trajectories import make_trajectory, no_room, prompt_ids


async def sample(problem: Problem, ctx: Context) -> list[Trajectory | Dropped]:
    """Sample and grade `recipe.sample.samples` trajectories of one problem.

    The paper samples at temperature 0.6 and top-p 0.95, at most 8,192 tokens; the remaining context
    may lower that limit. A failed request is a trajectory graded `failed`. A prompt that fills the
    context is dropped, and so is a response that uses another model's thinking tags.
    """
    settings = ctx.recipe.sample
    prompt = prompt_ids(problem.question, ctx.tokenizer, ctx.recipe.model, problem.prompt)
    if full := no_room(prompt, ctx.engine.context):
        return [Dropped(problem.id, "prompt_too_long", full)]
    seed = ctx.seed(problem.id, "sample")
    sampling = ctx.sampling(min(settings.max_tokens, ctx.engine.context - len(prompt)), seed)
    completions = await ctx.engine.complete(prompt, sampling, settings.samples)
    return [
        await make_trajectory(
            problem,
            completion,
            model=ctx.engine.model,
            sample=index,
            seed=seed + index,
            prompt_ids=prompt,
            tokenizer=ctx.tokenizer,
            grader=ctx.grader,
            tags=ctx.tags,
        )
        for index, completion in enumerate(completions)
    ]


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    return (Group(row.id, (row,)) for row in run.problems("train"))


STAGE = Stage(
    name="sample",
    about="Sample responses to the training problems.",
    amount=lambda recipe: f"{responses(recipe)} responses",
    essential="problems",
    record=Trajectory,
    reads=always("problems"),
    settings=always("sample."),
    groups=_groups,
    work=sample,
    total=lambda run: run.count("problems", split="train"),
    card=Card(2, "trajectories", "train", "sampled responses: token ids, text, thinking, grade"),
    width=lambda recipe: recipe.sample.samples,
)
