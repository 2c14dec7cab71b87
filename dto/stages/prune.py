"""Prune needless patterns (2505.21765 section 3: pruning, with its re-check).

Departure from the paper: it re-checks that the answer is still reached; we test it statistically.
The exit was chosen for a high estimate, which biases that estimate upwards, so every check uses
fresh rollouts. The rollouts of a passed test are biased too: with the defaults, E[share right |
above] is 0.91 at a true p of 0.70 and 0.92 at 0.85. The reported p therefore comes from further
rollouts, whose number is fixed in advance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from math import exp, nan

from dto import judges
from dto.context import Context
from dto.errors import DtoError, EngineError
from dto.extension import is_import_path, load
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
"""Maximum number of tests per trajectory; each costs up to `estimate.cap` rollouts."""
JOIN_TOKENS = 8
"""Tokens after a join that enter its perplexity: a cue and the next words."""


async def prune(
    problem: Problem,
    trajectory: Trajectory,
    segments: Sequence[Segment],
    optimized: OptimizedTrajectory,
    ctx: Context,
) -> OptimizedTrajectory:
    """Remove the segments that the judge finds needless, and verify the result.

    All candidates are removed at once. Then a sequential test, with the threshold, margin and cap
    of `estimate`, checks that the success rate is still above the threshold. After each failed test
    the lowest-ranked candidate is restored; after the fourth, all are. Repeating a test until it
    passes would inflate the error, so each test gets an equal share of `estimate.error`
    (Bonferroni). A version that passes is finalized again, since its conclusion must follow from
    the pruned thinking. The pruning is undone if no completion is right or the result is not
    shorter.

    `verified_p` is the share of right answers among `prune.confirmations` fresh rollouts, used
    neither for the choice nor for the test. It is unbiased for this version and decides nothing.
    (Its mean over many versions is still a mean over versions that passed.) If nothing is pruned,
    the trajectory is returned unchanged, with the verdicts. For a share `prune.agreement` of the
    trajectories with a verdict, the counterfactual judge is asked too; its verdicts prune
    nothing. Raises DtoError for verdicts that `dto.judges.check` refuses.
    """
    settings = ctx.recipe.prune
    if settings.judge == "none":
        return optimized
    whole = [segments[index] for index in optimized.kept]
    name = judges.BUILT_IN.get(settings.judge, settings.judge)
    judge: judges.Judge = load(name, settings.judge_settings)
    verdicts = await judge(problem, trajectory, whole, ctx)
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
    """The segments whose removal passed the test."""
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
    """Fresh rollouts of the final version, which decide nothing."""
    count = ctx.recipe.prune.confirmations
    if not count:
        return Tally()
    ids = kept_ids(trajectory, kept)
    seed = ctx.seed(trajectory.id, "confirm")
    return await roll_out(trajectory.prompt_ids + ids, problem, ctx, seed, count, written=len(ids))


def _tests(candidates: int, settings: EstimateSettings) -> list[SequentialTest]:
    """One test per candidate, at most four, and fewer if the cap is too small for their error.

    Raises DtoError if the cap is too small for a single test.
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
    """Perplexity of the text after the joins, under the policy and before temperature.

    A join is where a segment was removed. The first 8 tokens after each join count, given all kept
    text before them: exp of the mean negative logprob of these tokens. The model's own text has a
    perplexity of a few units; a much higher value marks a join that the model would not write. nan
    without a join, or if the engine cannot score.
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
        # The verification uses the settings of `estimate` even if that stage does not run.
        keys.append("estimate.")
    if _asks_judge(recipe):
        keys.append("judge")
    return tuple(keys)


def _asks_judge(recipe: Recipe) -> bool:
    name = recipe.prune.judge
    return name == "llm" or (recipe.judge is not None and is_import_path(name))


def _amount(recipe: Recipe) -> str:
    name = f"judge {recipe.prune.judge}"
    if not _asks_judge(recipe):
        return name
    judge = recipe.judge
    return f"{name}: " + (f"{judge.name} on {judge.engine}" if judge else "the policy's own model")


STAGE = Stage(
    name="prune",
    about="Judge patterns; prune those that rollouts confirm are needless.",
    amount=_amount,
    record=OptimizedTrajectory,
    reads=always("optimize"),
    settings=_settings,
    groups=_groups,
    work=prune,
    total=lambda run: run.count("optimize"),
    asks_judge=_asks_judge,
    card=Card(6, "optimized", "train", "finalized trajectories after pruning, with verdicts"),
    paper="2505.21765",
    width=lambda recipe: recipe.prune.rollouts,
    of_method=True,
)
