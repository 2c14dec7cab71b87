"""Stages as published baselines have them: other pairs and other exits to train on.

Pairs are of samples of one problem: graded trajectories (none `failed`) in order of their ids. Ties
go to the first, so the order decides nothing else.

First-Correct Solutions (2412.21187) are exits where a trajectory's text first gives the right
answer. The paper lets an LLM split a response into solutions and read their answers. Ours: a
solution is a thinking pattern whose end states an answer. Nothing is generated for it, unlike for
DTO's estimates, which ask the model what it would answer.
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


class Choice(NamedTuple):
    """Two samples of one problem, and the words that the pair's columns say of them."""

    chosen: Trajectory
    rejected: Trajectory
    chosen_from: str
    rejected_from: str


def _tokens_of(row: Trajectory) -> int:
    return len(row.token_ids)


def _correct(rows: Sequence[Trajectory]) -> list[Trajectory]:
    return [row for row in rows if row.grade == "correct"]


def shortest_over_longest(rows: Sequence[Trajectory]) -> list[Choice]:
    """The shortest correct response over the longest response (2412.21187, section 4).

    The longest may be correct, wrong or truncated; the paper may have kept the right ones only. No
    pair without a correct response.
    """
    correct = _correct(rows)
    if not correct:
        return []
    chosen, rejected = min(correct, key=_tokens_of), max(rows, key=_tokens_of)
    return [Choice(chosen, rejected, "shortest_correct", "longest")]


def token_budget(rows: Sequence[Trajectory], max_tokens: int) -> float:
    """DAST's token-length budget of a problem (2503.04472): p · mean length + (1 - p) · limit.

    `p` is the share of correct samples, the mean is over those, `max_tokens` the limit on a
    response: the harder a problem, the nearer its budget to the limit.
    """
    correct = _correct(rows)
    p = len(correct) / len(rows)
    return (
        p * fmean(map(_tokens_of, correct)) + (1 - p) * max_tokens if correct else float(max_tokens)
    )


def budget_reward(correct: bool, length: int, budget: float) -> float:
    """DAST's calibrated reward of a response (2503.04472): long right ones lose, short wrong too.

    With excess = length / budget - 1: right max(0.5 - excess / 2, 0.1), wrong
    min(0.9 · excess - 0.1, -0.1).
    """
    excess = length / budget - 1
    if correct:
        return max(0.5 - 0.5 * excess, 0.1)
    return min(0.9 * excess - 0.1, -0.1)


def budget_pairs(rows: Sequence[Trajectory], max_tokens: int, margin: float) -> list[Choice]:
    """DAST's pairs (2503.04472): best over worst reward among right, and among wrong responses.

    A pair of right ones teaches to be short, one of wrong ones (the longer is chosen) to go on
    thinking; pairs across the two are left out, as in the paper. Only pairs whose rewards differ by
    more than `margin`. Truncated ones count as wrong.
    """
    budget = token_budget(rows, max_tokens)
    chosen: list[Choice] = []
    for right, name in ((True, "correct"), (False, "wrong")):
        kind = [row for row in rows if (row.grade == "correct") is right]
        if len(kind) < 2:
            continue
        rewards = [budget_reward(right, _tokens_of(row), budget) for row in kind]
        best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
        if rewards[best] - rewards[worst] > margin:
            chosen.append(Choice(kind[best], kind[worst], f"best_{name}", f"worst_{name}"))
    return chosen


def pairs_of_samples(
    problem: Problem,
    trajectories: Sequence[Trajectory],
    tokenizer: PreTrainedTokenizerBase,
    settings: PairSettings,
    max_tokens: int,
) -> list[PreferencePair | Dropped]:
    """The pairs of one problem, as `data` says; `max_tokens` limited the samples.

    Only samples that were given the same prompt. At most `max_per_problem`, the rest dropped as
    `over_limit`; dropped for other reasons as `dto.stages.pair` says, and as `no_pair` where no two
    samples qualify.
    """
    answered = sorted((row for row in trajectories if row.grade != "failed"), key=lambda r: r.id)
    alike = [row for row in answered if row.prompt_ids == answered[0].prompt_ids]
    if settings.data == "shortest":
        choices = shortest_over_longest(alike)
    else:
        choices = budget_pairs(alike, max_tokens, settings.margin) if alike else []
    if not choices:
        return [Dropped(problem.id, "no_pair", f"{len(alike)} samples, data {settings.data!r}")]
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
    """The samples of each problem."""
    samples = (run.rows("sample", Trajectory), lambda row: str(row.problem_id))
    merged = tables.merge(run.rows("problems", Problem), samples)
    return (Group(row[0].id, row) for row in merged if row[1])


PAIRS = replace(pair.STAGE, reads=always("sample"), groups=by_problem, work=_pair)
"""`pair` with `pair.data` shortest or token_budget."""

_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_STATED = re.compile(r"(?:\bis\b|\bbe\b|=|是|为|為)\s*[:：]?\s*([^=是为為]+)$")
_END = ".。!！ \t"
MAX_STATED = 100
"""Characters: what is longer is a sentence, not an answer."""


def stated(
    text: str, final_answer: Callable[[str, str], str | None], rule: str = "math"
) -> str | None:
    """The answer that a pattern ends with, or None.

    What `final_answer`, the grader's, finds anywhere in it; else what follows the last "is", "be",
    "=", "是" or "为" of its last sentence. A rule of thumb: what counts is only whether it equals
    the gold one.
    """
    answer = final_answer(text, rule)
    if answer is not None:
        return answer
    sentences = [part for part in _SENTENCE.split(text.strip()) if part.strip()]
    if not sentences:
        return None
    found = _STATED.search(sentences[-1].rstrip(_END))
    answer = found.group(1).strip(" *$") if found else ""
    return answer if 0 < len(answer) <= MAX_STATED else None


async def _optimize(
    problem: Problem, trajectory: Trajectory, segments: Sequence[Segment], ctx: Context
) -> OptimizedTrajectory | Dropped:
    """Conclude after the n-th right solution, n by `optimize.exit`; `no_exit`: there are fewer."""
    wanted = {"first_solution": 1, "second_solution": 2}[ctx.recipe.optimize.exit]
    for segment in segments:
        text = trajectory.text[slice(*segment.chars)]
        answer = stated(text, ctx.grader.final_answer, problem.rule)
        if answer is None:
            continue
        boxed = f"\\boxed{{{answer}}}"
        graded = await ctx.grader.grade_conclusion(
            boxed, problem.answer, problem.rule, problem.question
        )
        wanted -= graded.grade == "correct"
        if not wanted:
            return await conclude(problem, trajectory, segments, segment.index, ctx)
    detail = f"{len(segments)} segments: too few state the gold answer"
    return Dropped(trajectory.id, "no_exit", detail)


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    return (Group(row[1].id, row) for row in run.joined(("segment", Segment)) if row[2])


SOLUTIONS = replace(optimize.STAGE, reads=always("segment"), groups=_groups, work=_optimize)
"""`optimize` with `optimize.exit` first_solution or second_solution."""
