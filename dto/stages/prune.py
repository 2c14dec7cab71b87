"""Take needless patterns out of the middle (2505.21765 section 3: pruning, with its re-check).

Departure from the paper: it re-checks that the answer is still reached; we test it. The exit was
chosen for a high estimate, which flatters it, so every check is made on fresh rollouts. The
rollouts of a test that passed are flattered too: with the defaults E[share right | above] is 0.91
at a true p of 0.70 and 0.92 at 0.85. The p that is shown therefore comes from further rollouts,
whose number was fixed before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from math import exp, nan

from dto import judges
from dto.context import Context
from dto.errors import DtoError, EngineError
from dto.extension import is_import_path
from dto.recipe import EstimateSettings, Recipe
from dto.records import (
    SEED_BITS,
    STAYS,
    Dropped,
    OptimizedTrajectory,
    Problem,
    Segment,
    Trajectory,
    Verdict,
)
from dto.rollouts import Tally, kept_ids, roll_out, roll_out_until_decided
from dto.runs.reader import RunReader
from dto.runs.stage import SAMPLING, Card, Group, Stage, always
from dto.sequential import SequentialTest
from dto.stages.optimize import finalize

MAX_VERIFICATIONS = 4
"""Tests of one trajectory at the most: each costs up to `estimate.cap` rollouts."""
JOIN_TOKENS = 8
"""Tokens after a join whose perplexity is kept: a cue and the words that follow it."""


async def prune(
    problem: Problem,
    trajectory: Trajectory,
    segments: Sequence[Segment],
    optimized: OptimizedTrajectory,
    ctx: Context,
) -> OptimizedTrajectory:
    """The optimized trajectory without the segments that its judge finds needless.

    All candidates go at once. If the sequential test, with threshold, margin and cap of `estimate`,
    does not put the success rate above the threshold, they are restored in reverse rank: one after
    each test that fails, and all that are left after the fourth. Testing again until
    one test passes would inflate the error; each therefore gets an equal share of `estimate.error`
    (Bonferroni). What passes is finalized anew, since its conclusion has to follow from the pruned
    thinking; the prune is undone where no completion is right, or the result is not shorter.
    `verified_p` is the share of right answers among `prune.confirmations` rollouts that neither
    test nor choice has seen: unbiased for the version that stays, whatever the test saw. It decides
    nothing; over many versions its mean is still that of those that passed.
    Returned unchanged, with the verdicts, when nothing is pruned. The counterfactual judge also
    judges the share `prune.agreement` of the trajectories that have a verdict; its verdicts prune
    nothing. Raises DtoError for verdicts that `dto.judges.check` refuses.
    """
    settings = ctx.recipe.prune
    if settings.judge == "none":
        return optimized
    whole = [segments[index] for index in optimized.kept]
    verdicts = await judges.judge_of(settings)(problem, trajectory, whole, ctx)
    judges.check(verdicts, whole, settings.judge)
    compared: list[Verdict] = []
    drawn = ctx.seed(trajectory.id, "agreement") < settings.agreement * 2.0**SEED_BITS
    if drawn and any(verdict.verdict != "unjudged" for verdict in verdicts):
        compared = await judges.counterfactual(problem, trajectory, whole, ctx)
    proposed = [verdict for verdict in verdicts if verdict.verdict not in STAYS]
    removed = [row.segment for row in sorted(proposed, key=lambda row: (-row.score, row.segment))]
    removed = await _verify(problem, trajectory, whole, removed, ctx)
    fate, result = "restored: the test failed without it", optimized
    if removed:
        kept = _without(whole, removed)
        seed = ctx.seed(trajectory.id, "finalize", len(kept))
        finalized = await finalize(problem, trajectory, kept, ctx, seed)
        if isinstance(finalized, Dropped):
            removed, fate = [], f"restored: {finalized.reason} without it"
        elif finalized.tokens_after >= optimized.tokens_after:
            removed, fate = [], "restored: not shorter without it"
        else:
            perplexity = await join_perplexity(trajectory, kept, ctx)
            confirmed = await _confirm(problem, trajectory, kept, ctx)
            result = replace(
                finalized,
                verified_p=confirmed.p,
                verified_rollouts=confirmed.trials,
                join_perplexity=perplexity,
            )
    fates = tuple(_with_fate(verdict, removed, fate) for verdict in verdicts)
    return replace(result, verdicts=fates, counterfactual=tuple(compared))


async def _verify(
    problem: Problem,
    trajectory: Trajectory,
    whole: Sequence[Segment],
    ranked: Sequence[int],
    ctx: Context,
) -> list[int]:
    """The segments that may go."""
    settings = ctx.recipe.estimate
    removed = list(ranked)
    for attempt, test in enumerate(_tests(len(removed), settings)):
        ids = kept_ids(trajectory, _without(whole, removed))
        seed = ctx.seed(trajectory.id, "verify", attempt)
        _, decision = await roll_out_until_decided(
            trajectory.prompt_ids + ids, problem, ctx, seed, test, len(ids)
        )
        if decision == "above":
            return removed
        removed.pop()
    return []


async def _confirm(
    problem: Problem, trajectory: Trajectory, kept: Sequence[Segment], ctx: Context
) -> Tally:
    """Rollouts of the version that stays, which nothing was decided by."""
    count = ctx.recipe.prune.confirmations
    if not count:
        return Tally()
    ids = kept_ids(trajectory, kept)
    seed = ctx.seed(trajectory.id, "confirm")
    return await roll_out(trajectory.prompt_ids + ids, problem, ctx, seed, count, written=len(ids))


def _tests(candidates: int, settings: EstimateSettings) -> list[SequentialTest]:
    """One test per candidate, four at most, and fewer where the cap is too small for their error.

    Raises DtoError when it is too small for a single one.
    """
    for count in range(min(candidates, MAX_VERIFICATIONS), 0, -1):
        with suppress(*([DtoError] if count > 1 else [])):
            error = settings.error / count
            test = SequentialTest(settings.threshold, settings.margin, error, settings.cap)
            return [test] * count
    return []


def _without(whole: Sequence[Segment], removed: Sequence[int]) -> list[Segment]:
    return [segment for segment in whole if segment.index not in removed]


def _with_fate(verdict: Verdict, removed: Sequence[int], fate: str) -> Verdict:
    if verdict.segment in removed:
        return replace(verdict, pruned=True)
    if verdict.verdict in STAYS:
        return verdict
    return replace(verdict, reason=f"{verdict.reason}; {fate}")


async def join_perplexity(trajectory: Trajectory, kept: Sequence[Segment], ctx: Context) -> float:
    """Perplexity under the policy of what follows the joins, before temperature.

    Over the first 8 tokens of every kept segment whose predecessor was taken out, each given all
    that is kept before it; exp of the mean negative logprob over all these tokens together. The
    model's own text is a few units at most; a much higher value marks a join that it would not have
    written. nan without a join, and on an engine that cannot score.
    """
    logprobs: list[float] = []
    for position in range(1, len(kept)):
        before, segment = kept[position - 1], kept[position]
        if segment.index == before.index + 1:
            continue
        end = segment.exit if position == len(kept) - 1 else segment.tokens.end
        end = min(end, segment.tokens.start + JOIN_TOKENS)
        continuation = trajectory.token_ids[segment.tokens.start : end]
        if not continuation:
            continue
        prefix = trajectory.prompt_ids + kept_ids(trajectory, kept[:position])
        prefix += trajectory.token_ids[before.exit : before.tokens.end]
        try:
            logprobs += await ctx.engine.score(prefix, continuation)
        except EngineError:
            return nan
    return exp(-sum(logprobs) / len(logprobs)) if logprobs else nan


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    rows = run.joined(("segment", Segment), ("optimize", OptimizedTrajectory))
    for problem, trajectory, segments, optimized in rows:
        if optimized:
            yield Group(trajectory.id, (problem, trajectory, segments, optimized[0]))


def _settings(recipe: Recipe) -> tuple[str, ...]:
    keys = ["prune.", *SAMPLING]
    if recipe.prune.judge != "none" and recipe.optimize.exit != "estimate":
        # It verifies by the test of `estimate`, which is a stage before it for that exit alone.
        keys.append("estimate.")
    if _asks_judge(recipe):
        keys.append("judge")
    return tuple(keys)


def _asks_judge(recipe: Recipe) -> bool:
    own = recipe.judge is not None and is_import_path(recipe.prune.judge)
    return own or recipe.prune.judge == "llm"


def _amount(recipe: Recipe) -> str:
    name = f"judge {recipe.prune.judge}"
    if not _asks_judge(recipe):
        return name
    judge = recipe.judge
    return f"{name}: " + (f"{judge.name} on {judge.engine}" if judge else "the policy's own model")


STAGE = Stage(
    name="prune",
    about="Judge patterns; drop what rollouts confirm is spare.",
    amount=_amount,
    record=OptimizedTrajectory,
    reads=always("optimize"),
    settings=_settings,
    groups=_groups,
    work=prune,
    total=lambda run: run.count("optimize"),
    asks_judge=_asks_judge,
    card=Card(6, "optimized", "train", "the same after pruning, with the judge's verdicts"),
    paper="2505.21765",
    width=lambda recipe: recipe.prune.rollouts,
    of_method=True,
)
