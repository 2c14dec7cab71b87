"""Build preference pairs: an optimized response over a suboptimal one (2505.21765 section 3).

`dto.baselines` builds the pairs of published baselines, which choose among samples.
`dto.tasks.imported` has imported pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dto import tables
from dto.concurrency import aside
from dto.context import Context
from dto.recipe import PairSettings
from dto.records import Dropped, OptimizedTrajectory, PreferencePair, Problem, Trajectory
from dto.runs.reader import RunReader
from dto.runs.stage import Card, Group, Stage, always

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def preference_pairs(
    problem: Problem,
    trajectories: Sequence[Trajectory],
    optimized: Sequence[OptimizedTrajectory],
    tokenizer: PreTrainedTokenizerBase,
    settings: PairSettings,
) -> list[PreferencePair | Dropped]:
    """Build the pairs of one problem, at most `max_per_problem`; drop others as `over_limit`.

    First, each optimized trajectory is chosen over a rejected one: its own original, the longest
    trajectory of the problem, or the longest that is not correct. Then, with `longer_correct`, each
    wrong trajectory is rejected for the shortest correct one that is longer. Without these pairs,
    training is known to teach under-thinking on hard problems. They are ours, not the paper's, and
    have a limit of their own, `max_longer_correct` (`over_longer_correct`). With one limit for both
    kinds, a problem whose samples are all optimized would get none of them, and hard problems are
    often like that. Truncated trajectories may be rejected; failed ones are not used.

    Other reasons for dropping a pair: `no_rejected` (no trajectory qualifies), `identical`,
    `not_shorter` (the rejected side is correct, so the pair could only teach length), `too_long`
    (prompt and longer response exceed `max_length`).
    """
    answered = sorted((row for row in trajectories if row.grade != "failed"), key=lambda r: r.id)
    by_id = {row.id: row for row in answered}
    rows: list[PreferencePair | Dropped] = []
    for version in sorted(optimized, key=lambda row: row.id):
        original = by_id[version.trajectory_id]
        rejected = _rejected(original, answered, settings)
        if rejected is None:
            detail = f"no trajectory of the problem is {settings.rejected!r}"
            rows.append(Dropped(f"{version.id}/{settings.rejected}", "no_rejected", detail))
            continue
        chosen = Side(version.id, version.token_ids, version.text, "optimized")
        rows.append(make_pair(original, chosen, rejected, settings.rejected, tokenizer, settings))
    rows = limited(rows, settings.max_per_problem)
    if not settings.longer_correct:
        return rows
    further: list[PreferencePair | Dropped] = []
    for wrong in answered:
        longer = _longer_correct(wrong, answered)
        if longer is not None:
            chosen = Side(longer.id, longer.token_ids, longer.text, "longer_correct")
            further.append(make_pair(longer, chosen, wrong, "shorter_wrong", tokenizer, settings))
    limit = settings.max_longer_correct
    return rows + limited(further, limit, "over_longer_correct", "pair.max_longer_correct")


class Side(NamedTuple):
    """The chosen response of a pair, and its origin."""

    id: str
    token_ids: tuple[int, ...]
    text: str
    origin: str


def _tokens(trajectory: Trajectory) -> int:
    return len(trajectory.token_ids)


def _rejected(
    original: Trajectory, answered: Sequence[Trajectory], settings: PairSettings
) -> Trajectory | None:
    """The rejected trajectory by the settings (the first of equally long ones), or None."""
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


def make_pair(
    original: Trajectory,
    chosen: Side,
    rejected: Trajectory,
    rejected_from: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: PairSettings,
) -> PreferencePair | Dropped:
    """Make a pair, or say why not. `original` is the trajectory that `chosen` derives from."""
    row_id = f"{original.id}/{rejected_from}/{rejected.sample:03d}"
    prompt, better, worse = len(original.prompt_ids), len(chosen.token_ids), _tokens(rejected)
    if chosen.token_ids == rejected.token_ids:
        return Dropped(row_id, "identical", f"both sides are the same {worse:,} tokens")
    if rejected_from != "imported" and rejected.grade == "correct" and better >= worse:
        detail = f"both sides are right, chosen has {better:,} tokens, rejected {worse:,}"
        return Dropped(row_id, "not_shorter", detail)
    if prompt + max(better, worse) > settings.max_length:
        detail = (
            f"prompt {prompt:,} + chosen {better:,} or rejected {worse:,} tokens exceed "
            f"pair.max_length {settings.max_length:,}"
        )
        return Dropped(row_id, "too_long", detail)
    prompt_ids = list(original.prompt_ids)
    if prompt_ids[:1] == tokenizer.encode("")[:1]:  # the BOS: TRL adds it when it tokenizes text
        prompt_ids = prompt_ids[1:]
    return PreferencePair(
        id=row_id,
        problem_id=original.problem_id,
        trajectory_id=original.id,
        prompt=str(tokenizer.decode(prompt_ids, skip_special_tokens=False)),
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


def limited(
    rows: Sequence[PreferencePair | Dropped],
    limit: int,
    reason: str = "over_limit",
    setting: str = "pair.max_per_problem",
) -> list[PreferencePair | Dropped]:
    """Keep the first `limit` pairs, and drop the others with `reason`."""
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
    """Build the pairs of one problem off the event loop (:func:`preference_pairs`)."""
    tokens = sum(len(row.token_ids) for row in trajectories)
    return await aside(
        tokens, preference_pairs, problem, trajectories, optimized, ctx.tokenizer, ctx.recipe.pair
    )


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    merged = tables.merge(
        run.rows("problems", Problem),
        (run.rows("sample", Trajectory), lambda row: str(row.problem_id)),
        (run.rows("prune", OptimizedTrajectory), lambda row: str(row.problem_id)),
    )
    return (Group(row[0].id, row) for row in merged if row[1])


STAGE = Stage(
    name="pair",
    about="Build preference pairs of chosen and rejected responses.",
    amount=lambda recipe: f"at most {recipe.pair.max_per_problem:,} pairs per problem",
    essential="problems",
    record=PreferencePair,
    reads=always("prune"),
    settings=always("pair.", "sample.max_tokens"),
    groups=_groups,
    work=pair,
    total=lambda run: run.count("problems", split="train"),
    needs="tokenizer",
    window=8,
    card=Card(0, "pairs", "train", "preference pairs: prompt, chosen, rejected"),
    paper="2505.21765",
    of_method=True,
)
