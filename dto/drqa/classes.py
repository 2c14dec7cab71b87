"""Which chain is right but could be more concise, right and concise, or wrong; how many are kept.

Nothing here reads text: classes go by origin, grade and length (2508.17803, section 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from dto.errors import DtoError
from dto.records import Chain, ChainVerdict, Grade, Letter, Origin, Split
from dto.seeds import SEED_BITS, derive

if TYPE_CHECKING:
    from dto.recipe import LabelSettings

VERDICTS: tuple[ChainVerdict, ...] = ("verbose", "concise", "wrong")
LETTERS: tuple[Letter, ...] = ("A", "B", "C")
WORDINGS: Mapping[ChainVerdict, str] = {
    "verbose": "right but could be more concise",
    "concise": "right and concise",
    "wrong": "wrong",
}
Class = tuple[Split, ChainVerdict]


class ChainFacts(NamedTuple):
    """The columns of a chain that its class goes by."""

    id: str
    problem_id: str
    origin: Origin
    k: int
    grade: Grade
    tokens: int
    length: int


Judged = Chain | ChainFacts


class Verdicts(NamedTuple):
    """Of one problem: the class of each chain that has one, (reason, detail) of the others."""

    classes: Mapping[str, ChainVerdict]
    dropped: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Balance:
    """How many chains each class has, and below which rank they are kept.

    A rank is drawn from the run's seed and the chain's id: which chains are kept depends neither on
    order nor on what the others are, only how many.
    """

    found: Mapping[Class, int]
    limits: Mapping[Class, int]

    def keeps(self, chain_id: str, of: Class, seed: int) -> bool:
        """Whether a chain of the class is among those that are kept."""
        return rank(chain_id, seed) < self.limits[of]


def rank(chain_id: str, seed: int) -> int:
    """The chain's place among those of its class."""
    return derive(seed, chain_id, "balance")


def split_of(problem_id: str, seed: int, held_out: float) -> Split:
    """`dev` for the share of the problems whose chains are held out, else `train`."""
    return "dev" if derive(seed, problem_id, "held out") < held_out * 2**SEED_BITS else "train"


def verdicts(chains: Sequence[Judged], settings: LabelSettings) -> Verdicts:
    """The classes of one problem's chains.

    Dropped: `too_long` (for the judge), `other_k` and `other_source` (the settings ask for others);
    of a right batch chain, with a margin, `not_concise` (not below 1 - margin of the mean tokens
    of the problem's right vanilla chains) and `no_vanilla` (there are none). With `shortest`:
    `alone` (the problem's one right chain), `not_longer` (not above what the margin allows).
    """
    classes: dict[str, ChainVerdict] = {}
    dropped: dict[str, tuple[str, str]] = {}
    usable: list[Judged] = []
    for chain in chains:
        if settings.source == "shortest" and chain.origin == "batch":
            dropped[chain.id] = "other_source", "label.source is shortest"
        elif chain.origin == "batch" and settings.k and chain.k not in settings.k:
            dropped[chain.id] = "other_k", f"label.k is {', '.join(map(str, settings.k))}"
        elif chain.length > settings.max_tokens:
            detail = f"{chain.length:,} tokens, label.max_tokens is {settings.max_tokens:,}"
            dropped[chain.id] = "too_long", detail
        else:
            usable.append(chain)
    right = [chain for chain in usable if chain.grade == "correct"]
    classes = {chain.id: "wrong" for chain in usable if chain.grade == "wrong"}
    decide = _of_batch if settings.source == "batch" else _of_shortest
    for chain, found in decide(right, settings.margin):
        if isinstance(found, tuple):
            dropped[chain.id] = found
        else:
            classes[chain.id] = found
    return Verdicts(classes, dropped)


def _of_batch(
    right: Sequence[Judged], margin: float | None
) -> Iterator[tuple[Judged, ChainVerdict | tuple[str, str]]]:
    alone = [chain.tokens for chain in right if chain.origin == "vanilla"]
    for chain in right:
        if chain.origin == "vanilla":
            yield chain, "verbose"
        elif margin is None:
            yield chain, "concise"
        elif not alone:
            yield chain, ("no_vanilla", "no right vanilla chain to be shorter than")
        elif chain.tokens >= (most := (1 - margin) * fmean(alone)):
            yield chain, ("not_concise", f"{chain.tokens:,} tokens, concise is below {most:,.1f}")
        else:
            yield chain, "concise"


def _of_shortest(
    right: Sequence[Judged], margin: float | None
) -> Iterator[tuple[Judged, ChainVerdict | tuple[str, str]]]:
    if len(right) == 1:
        yield right[0], ("alone", "the one right chain of its problem")
        return
    shortest = min(right, key=lambda chain: (chain.tokens, chain.id), default=None)
    for chain in right:
        if chain is shortest:
            yield chain, "concise"
        elif shortest is not None and shortest.tokens < (1 - (margin or 0.0)) * chain.tokens:
            yield chain, "verbose"
        else:
            yield chain, ("not_longer", f"{chain.tokens:,} tokens are hardly above the shortest")


def balance(problems: Iterable[Sequence[Judged]], settings: LabelSettings, seed: int) -> Balance:
    """Counts the classes over the chains of each problem, and says how many are kept.

    With `balanced`, as many of each class as the smallest has, in either split; `per_class` limits
    those to train on. Raises DtoError for a class that is empty, which names it.
    """
    ranks: dict[Class, list[int]] = {}
    reasons: Counter[str] = Counter()
    for chains in problems:
        found = verdicts(chains, settings)
        reasons.update(reason for reason, _ in found.dropped.values())
        for chain_id, verdict in found.classes.items():
            place = split_of(chains[0].problem_id, seed, settings.held_out), verdict
            ranks.setdefault(place, []).append(rank(chain_id, seed))
    splits: tuple[Split, ...] = ("train", "dev") if settings.held_out else ("train",)
    counts = {(split, each): len(ranks.get((split, each), ()))
              for split in splits for each in VERDICTS}  # fmt: skip
    for (split, verdict), count in counts.items():
        if not count:
            raise _empty(split, verdict, counts, reasons, settings)
    limits = {}
    for (split, verdict), count in counts.items():
        kept = min(counts[split, each] for each in VERDICTS) if settings.balanced else count
        if split == "train" and settings.per_class is not None:
            kept = min(kept, settings.per_class)
        ordered = sorted(ranks[split, verdict])
        limits[split, verdict] = ordered[kept] if kept < count else 2**SEED_BITS
    return Balance(counts, limits)


def _empty(
    split: Split,
    verdict: ChainVerdict,
    counts: Mapping[Class, int],
    reasons: Mapping[str, int],
    settings: LabelSettings,
) -> DtoError:
    there = ", ".join(f"{counts[split, each]:,} {each}" for each in VERDICTS)
    lost = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
    way = "raise problems.train or label.held_out" if split == "dev" else "raise problems.train"
    if verdict == "concise":
        way = "set batch.k" if settings.source == "batch" and not reasons else way
        way = "lower label.margin" if settings.margin else way
    return DtoError(
        f"stage label: no {split} chain is {verdict} ({WORDINGS[verdict]}): there are {there}; "
        f"without a class {lost or 'none'}: {way}"
    )
