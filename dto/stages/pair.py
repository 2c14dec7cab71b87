"""Preference pairs: an optimized response over a suboptimal one (2505.21765 section 3).

Or one sample over another, as published baselines choose them: these take graded trajectories (none
`failed`) in order of their ids and give (chosen, rejected); ties go to the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from dto import tables
from dto.context import Context
from dto.recipe import PairSettings, Recipe
from dto.records import Dropped, OptimizedTrajectory, PreferencePair, Problem, Trajectory
from dto.runs.reader import RunReader
from dto.runs.stage import Card, Group, Stage, always

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


def preference_pairs(
    problem: Problem,
    trajectories: Sequence[Trajectory],
    optimized: Sequence[OptimizedTrajectory],
    tokenizer: PreTrainedTokenizerBase,
    settings: PairSettings,
    max_tokens: int = 8192,
) -> list[PreferencePair | Dropped]:
    """The pairs of one problem: at most `max_per_problem`, the rest dropped as `over_limit`.

    Pairs of `longer_correct` are not among those: of them there are at most `max_longer_correct`,
    the rest dropped as `over_longer_correct`. With one limit for both a problem whose samples are
    all optimized would have none of them, and hard problems are such.

    `data: imported` takes the samples 2k and 2k + 1 for the chosen and the rejected side of a row
    that was imported, whatever their lengths and grades. `data` other than that and `optimized`
    makes pairs of the samples as `dto.stages.pair` says; `max_tokens` is the limit that they
    were sampled under. The rest is of `optimized`.

    First each optimized trajectory over its rejected one: its own original, the longest of the
    problem's trajectories, or the longest that is not correct. Then, with `longer_correct`, for
    each wrong trajectory the shortest correct one that is longer than it: pairs of shortest over
    longest alone are known to teach under-thinking on hard problems (ours, not the paper's).
    Truncated trajectories may be rejected, failed ones take no part.

    Other reasons to drop: `no_rejected` (no trajectory qualifies), `identical`, `not_shorter` (the
    rejected one is correct, so that length is all the pair could teach), `too_long` (prompt and
    longer response exceed `max_length`).
    """
    if settings.data == "imported":
        imported = _of_sides(problem, trajectories, tokenizer, settings)
        return _limited(imported, settings.max_per_problem)
    answered = sorted((row for row in trajectories if row.grade != "failed"), key=lambda r: r.id)
    by_id = {row.id: row for row in answered}
    rows: list[PreferencePair | Dropped] = []
    if settings.data != "optimized":
        rows = _of_samples(problem, answered, tokenizer, settings, max_tokens)
        return _limited(rows, settings.max_per_problem)
    for version in sorted(optimized, key=lambda row: row.id):
        original = by_id[version.trajectory_id]
        rejected = _rejected(original, answered, settings)
        if rejected is None:
            detail = f"no trajectory of the problem is {settings.rejected!r}"
            rows.append(Dropped(f"{version.id}/{settings.rejected}", "no_rejected", detail))
            continue
        chosen = _Side(version.id, version.token_ids, version.text, "optimized")
        rows.append(_pair(original, chosen, rejected, settings.rejected, tokenizer, settings))
    rows = _limited(rows, settings.max_per_problem)
    if not settings.longer_correct:
        return rows
    further: list[PreferencePair | Dropped] = []
    for wrong in answered:
        longer = _longer_correct(wrong, answered)
        if longer is not None:
            chosen = _Side(longer.id, longer.token_ids, longer.text, "longer_correct")
            further.append(_pair(longer, chosen, wrong, "shorter_wrong", tokenizer, settings))
    limit = settings.max_longer_correct
    return rows + _limited(further, limit, "over_longer_correct", "pair.max_longer_correct")


def _of_samples(
    problem: Problem,
    answered: Sequence[Trajectory],
    tokenizer: PreTrainedTokenizerBase,
    settings: PairSettings,
    max_tokens: int,
) -> list[PreferencePair | Dropped]:
    """Pairs of samples that were given the same prompt; without any, why there is none."""
    prompt = answered[0].prompt_ids if answered else ()
    alike = [row for row in answered if row.prompt_ids == prompt]
    choices: list[Choice] = []
    if alike and settings.data == "shortest":
        choices = shortest_over_longest(alike)
    elif alike:
        choices = budget_pairs(alike, max_tokens, settings.margin)
    if not choices:
        return [Dropped(problem.id, "no_pair", f"{len(alike)} samples, data {settings.data!r}")]
    rows: list[PreferencePair | Dropped] = []
    for chosen, rejected, chosen_from, rejected_from in choices:
        side = _Side(chosen.id, chosen.token_ids, chosen.text, chosen_from)
        rows.append(_pair(chosen, side, rejected, rejected_from, tokenizer, settings))
    return rows


def _of_sides(
    problem: Problem,
    trajectories: Sequence[Trajectory],
    tokenizer: PreTrainedTokenizerBase,
    settings: PairSettings,
) -> list[PreferencePair | Dropped]:
    """The pairs that an imported table of preferences says; a side may be missing."""
    sides = {row.sample: row for row in trajectories}
    rows: list[PreferencePair | Dropped] = []
    for first in sorted({sample - sample % 2 for sample in sides}):
        chosen, rejected = sides.get(first), sides.get(first + 1)
        if chosen is None or rejected is None:
            row_id = Trajectory.make_id(problem.id, first)
            rows.append(Dropped(row_id, "no_pair", "one of its sides was dropped before"))
            continue
        side = _Side(chosen.id, chosen.token_ids, chosen.text, "imported")
        rows.append(_pair(chosen, side, rejected, "imported", tokenizer, settings))
    return rows


class _Side(NamedTuple):
    id: str
    token_ids: tuple[int, ...]
    text: str
    origin: str


def _tokens(trajectory: Trajectory) -> int:
    return len(trajectory.token_ids)


def _rejected(
    original: Trajectory, answered: Sequence[Trajectory], settings: PairSettings
) -> Trajectory | None:
    """What the settings name; of equally long trajectories the first. None: there is none."""
    if settings.rejected == "original":
        return original
    rivals = [row for row in answered if row.prompt_ids == original.prompt_ids]
    if settings.rejected == "longest_wrong":
        rivals = [row for row in rivals if row.grade != "correct"]
    return max(rivals, key=_tokens, default=None)


def _longer_correct(wrong: Trajectory, answered: Sequence[Trajectory]) -> Trajectory | None:
    """The shortest correct trajectory that is longer than a wrong one."""
    if wrong.grade != "wrong":
        return None
    longer = [
        row
        for row in answered
        if row.grade == "correct"
        and row.prompt_ids == wrong.prompt_ids
        and _tokens(row) > _tokens(wrong)
    ]
    return min(longer, key=_tokens, default=None)


def _pair(
    original: Trajectory,
    chosen: _Side,
    rejected: Trajectory,
    rejected_from: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: PairSettings,
) -> PreferencePair | Dropped:
    """The pair, or why it cannot be one. `original` is the trajectory that chosen comes from."""
    row_id = f"{original.id}/{rejected_from}/{rejected.sample:03d}"
    prompt, better, worse = len(original.prompt_ids), len(chosen.token_ids), _tokens(rejected)
    if chosen.token_ids == rejected.token_ids:
        return Dropped(row_id, "identical", f"both sides are the same {worse:,} tokens")
    if rejected_from != "imported" and rejected.grade == "correct" and better >= worse:
        detail = f"chosen has {better:,} tokens, rejected {worse:,}, and both are right"
        return Dropped(row_id, "not_shorter", detail)
    if prompt + max(better, worse) > settings.max_length:
        detail = (
            f"prompt {prompt:,} + chosen {better:,} or rejected {worse:,} tokens, "
            f"pair.max_length is {settings.max_length:,}"
        )
        return Dropped(row_id, "too_long", detail)
    asked = list(original.prompt_ids)
    if asked[:1] == tokenizer.encode("")[:1]:  # TRL's tokenizing of text puts it there again
        asked = asked[1:]
    return PreferencePair(
        id=row_id,
        problem_id=original.problem_id,
        trajectory_id=original.id,
        prompt=str(tokenizer.decode(asked, skip_special_tokens=False)),
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        chosen_from=chosen.origin,
        rejected_from=rejected_from,
        prompt_tokens=prompt,
        chosen_tokens=better,
        rejected_tokens=worse,
    )


def _limited(
    rows: Sequence[PreferencePair | Dropped],
    limit: int,
    reason: str = "over_limit",
    setting: str = "pair.max_per_problem",
) -> list[PreferencePair | Dropped]:
    """The first `limit` pairs; the others are dropped with their reason."""
    kept: list[PreferencePair | Dropped] = []
    pairs = 0
    for row in rows:
        if isinstance(row, PreferencePair):
            pairs += 1
            if pairs > limit:
                row = Dropped(row.id, reason, f"{setting} is {limit}")
        kept.append(row)
    return kept


async def pair(
    problem: Problem,
    trajectories: Sequence[Trajectory],
    optimized: Sequence[OptimizedTrajectory],
    ctx: Context,
) -> list[PreferencePair | Dropped]:
    """:func:`preference_pairs` of one problem, as the recipe says."""
    return await asyncio.to_thread(
        preference_pairs, problem, trajectories, optimized, ctx.tokenizer, ctx.recipe.pair,
        ctx.recipe.sample.max_tokens,
    )  # fmt: skip


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    optimized: Iterator[OptimizedTrajectory] = iter(())
    if ctx.recipe.pair.data == "optimized":
        optimized = run.rows("prune", OptimizedTrajectory)
    merged = tables.merge(
        run.rows("problems", Problem),
        (run.rows("sample", Trajectory), lambda row: str(row.problem_id)),
        (optimized, lambda row: str(row.problem_id)),
    )
    return (Group(row[0].id, row) for row in merged if row[1])


def _reads(recipe: Recipe) -> tuple[str, ...]:
    return ("prune",) if recipe.pair.data == "optimized" else ("sample",)


STAGE = Stage(
    name="pair",
    about="Build the pairs of chosen and rejected to train on.",
    amount=lambda recipe: f"at most {recipe.pair.max_per_problem:,} pairs of each problem",
    record=PreferencePair,
    reads=_reads,
    settings=always("pair.", "sample.max_tokens"),
    groups=_groups,
    work=pair,
    total=lambda run: run.count("problems", split="train"),
    needs="tokenizer",
    window=8,
    card=Card(0, "pairs", "train", "preference pairs: prompt, chosen, rejected"),
)
