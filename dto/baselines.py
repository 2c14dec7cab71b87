"""Stages of published baselines: other pairs and other exits to train on.

Pairs consist of two samples of one problem. Samples are graded (not `failed`) and sorted by id;
ties go to the first.

First-Correct Solutions (2412.21187) exit where the text of a trajectory first states the right
answer. Departure from the paper: there an LLM splits a response into solutions and reads their
answers; here a solution is a thinking pattern that ends with an answer. Unlike DTO's estimates,
this generates no tokens.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from dto import tables
from dto.context import Context
from dto.recipe import PairSettings
from dto.records import (
    Dropped,
    OptimizedTrajectory,
    PreferencePair,
    Problem,
    Segment,
    Trajectory,
)
from dto.runs.reader import RunReader
from dto.runs.stage import Group, always
from dto.stages import optimize, pair
from dto.stages.optimize import conclude
from dto.stages.pair import Side, limited, make_pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PairChoice(NamedTuple):
    """Two samples of one problem, and the values of the pair's columns for their origin."""

    chosen: Trajectory
    rejected: Trajectory
    chosen_from: str
    rejected_from: str


def _tokens_of(row: Trajectory) -> int:
    return len(row.token_ids)


def _correct(rows: Sequence[Trajectory]) -> list[Trajectory]:
    return [row for row in rows if row.grade == "correct"]


def shortest_over_longest(rows: Sequence[Trajectory]) -> list[PairChoice]:
    """Prefer the shortest correct response to the longest response (2412.21187, section 4).

    The longest can be correct, wrong or truncated; the paper may keep only correct
    ones. Without a correct response there is no pair.
    """
    correct = _correct(rows)
    if not correct:
        return []
    chosen, rejected = min(correct, key=_tokens_of), max(rows, key=_tokens_of)
    return [PairChoice(chosen, rejected, "shortest_correct", "longest")]


def token_budget(rows: Sequence[Trajectory], max_tokens: int) -> float:
    """Compute DAST's token budget of a problem (2503.04472): p · mean length + (1 - p) · limit.

    `p` is the share of correct samples, the mean is over these, and `max_tokens` is the limit of a
    response. So the budget of a harder problem is closer to the limit.
    """
    correct = _correct(rows)
    p = len(correct) / len(rows)
    return (
        p * fmean(map(_tokens_of, correct)) + (1 - p) * max_tokens if correct else float(max_tokens)
    )


def budget_reward(correct: bool, length: int, budget: float) -> float:
    """Compute DAST's reward (2503.04472), lower for longer right and for shorter wrong responses.

    With excess = length / budget - 1: max(0.5 - excess / 2, 0.1) if right, else
    min(0.9 · excess - 0.1, -0.1).
    """
    excess = length / budget - 1
    if correct:
        return max(0.5 - 0.5 * excess, 0.1)
    return min(0.9 * excess - 0.1, -0.1)


def budget_pairs(rows: Sequence[Trajectory], max_tokens: int, margin: float) -> list[PairChoice]:
    """Build DAST's pairs (2503.04472): best over worst reward, separately for right and wrong.

    A pair of right responses teaches brevity. A pair of wrong ones prefers the longer and teaches
    longer thinking. As in the paper, no pair mixes the two. Rewards must differ by more than
    `margin`. Truncated responses count as wrong.
    """
    budget = token_budget(rows, max_tokens)
    chosen: list[PairChoice] = []
    for right, name in ((True, "correct"), (False, "wrong")):
        kind = [row for row in rows if (row.grade == "correct") is right]
        if len(kind) < 2:
            continue
        rewards = [budget_reward(right, _tokens_of(row), budget) for row in kind]
        best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
        if rewards[best] - rewards[worst] > margin:
            chosen.append(PairChoice(kind[best], kind[worst], f"best_{name}", f"worst_{name}"))
    return chosen


def pairs_of_samples(
    problem: Problem,
    trajectories: Sequence[Trajectory],
    tokenizer: PreTrainedTokenizerBase,
    settings: PairSettings,
    max_tokens: int,
) -> list[PreferencePair | Dropped]:
    """Build the pairs of one problem by `settings.data`; `max_tokens` is the limit of the samples.

    Only samples with the same prompt are paired. Pairs above `max_per_problem` are dropped as
    `over_limit`, others for the reasons in `dto.stages.pair`. Without a suitable pair the problem
    is dropped as `no_pair`.
    """
    graded = sorted((row for row in trajectories if row.grade != "failed"), key=lambda r: r.id)
    samples = [row for row in graded if row.prompt_ids == graded[0].prompt_ids]
    if settings.data == "shortest":
        choices = shortest_over_longest(samples)
    else:
        choices = budget_pairs(samples, max_tokens, settings.margin) if samples else []
    if not choices:
        return [Dropped(problem.id, "no_pair", f"{len(samples)} samples, data {settings.data!r}")]
    rows = []
    for chosen, rejected, chosen_from, rejected_from in choices:
        side = Side(chosen.id, chosen.token_ids, chosen.text, chosen_from)
        rows.append(make_pair(chosen, side, rejected, rejected_from, tokenizer, settings))
    return limited(rows, settings.max_per_problem)


async def _pair(
    problem: Problem, trajectories: Sequence[Trajectory], ctx: Context
) -> list[PreferencePair | Dropped]:
    recipe = ctx.recipe
    return await asyncio.to_thread(
        pairs_of_samples, problem, trajectories, ctx.tokenizer, recipe.pair,
        recipe.sample.max_tokens,
    )  # fmt: skip


def by_problem(run: RunReader, ctx: Context) -> Iterator[Group]:
    """Yield the samples of each problem as a group."""
    samples = (run.rows("sample", Trajectory), lambda row: str(row.problem_id))
    merged = tables.merge(run.rows("problems", Problem), samples)
    return (Group(row[0].id, row) for row in merged if row[1])


PAIRS = replace(pair.STAGE, reads=always("sample"), groups=by_problem, work=_pair)
"""The stage `pair` with `pair.data` shortest or token_budget."""

_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_STATED = re.compile(r"(?:\bis\b|\bbe\b|=|是|为|為)\s*[:：]?\s*([^=是为為]+)$")
_END = ".。!！ \t"
MAX_STATED = 100
"""Characters of an answer; a longer match is a sentence."""


def stated_answer(
    text: str, final_answer: Callable[[str, str], str | None], rule: str = "math"
) -> str | None:
    """Extract the answer at the end of a pattern, or None.

    Return what the grader's `final_answer` finds in the text, else the words after the last "is",
    "be", "=", "是" or "为" of the last sentence. This heuristic can be wrong, but only answers
    equal to the gold answer count.
    """
    answer = final_answer(text, rule)
    if answer is not None:
        return answer
    sentences = [part for part in _SENTENCE.split(text.strip()) if part.strip()]
    if not sentences:
        return None
    match = _STATED.search(sentences[-1].rstrip(_END))
    answer = match.group(1).strip(" *$") if match else ""
    return answer if 0 < len(answer) <= MAX_STATED else None


async def _optimize(
    problem: Problem, trajectory: Trajectory, segments: Sequence[Segment], ctx: Context
) -> OptimizedTrajectory | Dropped:
    """Conclude after the n-th right solution, n by `optimize.exit`; drop as `no_exit` if fewer."""
    remaining = {"first_solution": 1, "second_solution": 2}[ctx.recipe.optimize.exit]
    for segment in segments:
        text = trajectory.text[slice(*segment.chars)]
        answer = stated_answer(text, ctx.grader.final_answer, problem.rule)
        if answer is None:
            continue
        boxed = f"\\boxed{{{answer}}}"
        graded = await ctx.grader.grade_conclusion(
            boxed, problem.answer, problem.rule, problem.question
        )
        remaining -= graded.grade == "correct"
        if not remaining:
            return await conclude(problem, trajectory, segments, segment.index, ctx)
    detail = f"too few of {len(segments)} segments state the gold answer"
    return Dropped(trajectory.id, "no_exit", detail)


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    return (Group(row[1].id, row) for row in run.joined(("segment", Segment)) if row[2])


SOLUTIONS = replace(optimize.STAGE, reads=always("segment"), groups=_groups, work=_optimize)
"""The stage `optimize` with `optimize.exit` first_solution or second_solution."""
