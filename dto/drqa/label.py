"""Label: give each chain a class, and a question about it with options (2508.17803, section 3).

The classes are A, right but could be more concise, B, right and concise, and C, wrong. The class of
a chain, and whether it is kept, depend on its origin, grade and length, not on its text.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, permutations
from statistics import fmean
from typing import TYPE_CHECKING

from dto import tables
from dto.context import Context
from dto.drqa.records import Chain, ChainVerdict, LabelledChain, Letter
from dto.errors import DtoError
from dto.prompts import render
from dto.records import SEED_BITS, Dropped, Problem, Split, derive
from dto.runs.reader import RunReader
from dto.runs.stage import RENDERING, Card, Group, Stage, always
from dto.trajectories import chat_ids, closes_thinking, opening

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


Fate = ChainVerdict | tuple[str, str]
"""The class of a chain, or the reason and detail of its dropped row."""


@dataclass(frozen=True, slots=True)
class Balance:
    """The number of chains of each class, and the rank below which they are kept.

    A rank is drawn from the run's seed and the chain's id. Which chains are kept depends on their
    number, not on their order or on the other chains.
    """

    found: Mapping[Class, int]
    limits: Mapping[Class, int]

    def keeps(self, chain_id: str, of: Class, seed: int) -> bool:
        """Whether a chain of the class is kept."""
        return rank(chain_id, seed) < self.limits[of]


def rank(chain_id: str, seed: int) -> int:
    """Draw the rank of a chain within its class."""
    return derive(seed, chain_id, "balance")


def split_of(problem_id: str, seed: int, held_out: float) -> Split:
    """Draw the split of a problem: `dev` with probability `held_out`, else `train`."""
    return "dev" if derive(seed, problem_id, "held out") < held_out * 2**SEED_BITS else "train"


def classes(chains: Sequence[Chain], settings: LabelSettings) -> dict[str, Fate]:
    """Return by chain id the class of each chain, or the reason and detail for dropping it.

    `too_long`: above `label.max_tokens`. `other_k`, `other_source`: excluded by the settings. With
    source `batch` and a margin, a right batch chain is `not_concise` if it has at least 1 - margin
    of the mean tokens of the problem's right vanilla chains, and `no_vanilla` if there are none.
    With `shortest`: `alone`, the only right chain; `not_longer`, within the margin of the shortest.
    """
    fates: dict[str, Fate] = {}
    right: list[Chain] = []
    for chain in chains:
        if settings.source == "shortest" and chain.origin == "batch":
            fates[chain.id] = "other_source", "label.source is shortest"
        elif chain.origin == "batch" and settings.k and chain.k not in settings.k:
            fates[chain.id] = "other_k", f"label.k is {', '.join(map(str, settings.k))}"
        elif chain.length > settings.max_tokens:
            detail = f"{chain.length:,} tokens, label.max_tokens is {settings.max_tokens:,}"
            fates[chain.id] = "too_long", detail
        elif chain.grade == "correct":
            right.append(chain)
        else:
            fates[chain.id] = "wrong"
    compared = _with_vanilla if settings.source == "batch" else _with_shortest
    return fates | {chain.id: compared(chain, right, settings.margin) for chain in right}


def _with_vanilla(chain: Chain, right: Sequence[Chain], margin: float | None) -> Fate:
    if chain.origin == "vanilla":
        return "verbose"
    if margin is None:
        return "concise"
    alone = [each.tokens for each in right if each.origin == "vanilla"]
    if not alone:
        return "no_vanilla", "no right vanilla chain to compare with"
    most = (1 - margin) * fmean(alone)
    if chain.tokens < most:
        return "concise"
    return "not_concise", f"{chain.tokens:,} tokens, concise is below {most:,.1f}"


def _with_shortest(chain: Chain, right: Sequence[Chain], margin: float | None) -> Fate:
    if len(right) == 1:
        return "alone", "the only right chain of its problem"
    shortest = min(right, key=lambda each: (each.tokens, each.id))
    if chain is shortest:
        return "concise"
    if shortest.tokens < (1 - (margin or 0.0)) * chain.tokens:
        return "verbose"
    return "not_longer", f"{chain.tokens:,} tokens are within the margin of the shortest"


def balance(problems: Iterable[Sequence[Chain]], settings: LabelSettings, seed: int) -> Balance:
    """Count the chains of each class, and decide how many are kept.

    With `balanced`, each class keeps as many as the smallest class of its split. `per_class` limits
    the training split. Raises DtoError, which names the class, for an empty class.
    """
    ranks: dict[Class, list[int]] = {}
    reasons: Counter[str] = Counter()
    for chains in problems:
        split = split_of(chains[0].problem_id, seed, settings.held_out) if chains else "train"
        for chain_id, fate in classes(chains, settings).items():
            if isinstance(fate, tuple):
                reasons[fate[0]] += 1
            else:
                ranks.setdefault((split, fate), []).append(rank(chain_id, seed))
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
    by_class = ", ".join(f"{counts[split, each]:,} {each}" for each in VERDICTS)
    unclassified = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
    way = "raise problems.train or label.held_out" if split == "dev" else "raise problems.train"
    if verdict == "concise":
        way = "set batch.k" if settings.source == "batch" and not reasons else way
        way = "lower label.margin" if settings.margin else way
    return DtoError(
        f"stage label: no {split} chain is {verdict} ({WORDINGS[verdict]}); chains by class: "
        f"{by_class}, {unclassified or 'none'} without a class: {way}"
    )


ORDERS = tuple(permutations(VERDICTS))


async def label(
    problem: Problem, chains: Sequence[Chain], kept: Balance, ctx: Context
) -> list[LabelledChain | Dropped]:
    """Label the problem's chains: options in an order drawn for each chain, and the right letter.

    With `label.shuffled: false` the letters have the fixed meanings of the paper: A right but could
    be more concise, B right and concise, C wrong. A model too weak to match letters to words can
    learn fixed meanings. With `label.thinking: false` the prompt closes the judge's thinking
    (prompt `no_thinking`), and the response is the letter.

    Chains without a class are dropped (:func:`classes`), and as `surplus` those that the balance
    does not keep.
    """
    settings, seed = ctx.recipe.label, ctx.recipe.seed
    fates = classes(chains, settings)
    split = split_of(problem.id, seed, settings.held_out)
    rows: list[LabelledChain | Dropped] = []
    for chain in chains:
        fate = fates[chain.id]
        if isinstance(fate, tuple):
            rows.append(Dropped(chain.id, *fate))
        elif not kept.keeps(chain.id, (split, fate), seed):
            detail = f"one of {kept.found[split, fate]:,} {split} chains that are {fate}"
            rows.append(Dropped(chain.id, "surplus", detail))
        else:
            rows.append(await asyncio.to_thread(_labelled, problem, chain, fate, split, ctx))
    return rows


def _labelled(
    problem: Problem, chain: Chain, verdict: ChainVerdict, split: Split, ctx: Context
) -> LabelledChain:
    recipe, tokenizer = ctx.recipe, ctx.tokenizer
    seed = ctx.seed(chain.id, "options")
    order = ORDERS[seed % len(ORDERS)] if recipe.label.shuffled else VERDICTS
    options = tuple(WORDINGS[each] for each in order)
    a, b, c = options
    question = render(
        "compare", recipe.model.family, question=problem.question, reasoning=chain.text,
        answer=chain.answer, a=a, b=b, c=c,
    )  # fmt: skip
    prompt = chat_ids(question, tokenizer, recipe.model)
    if not recipe.label.thinking and not closes_thinking(tokenizer, prompt, ctx.tags):
        prompt += ctx.encode(opening(tokenizer, prompt, ctx.tags) + ctx.text("no_thinking"))
    return LabelledChain(
        id=chain.id,
        problem_id=problem.id,
        split=split,
        question=problem.question,
        chain=chain.text,
        answer=chain.answer,
        verdict=verdict,
        label=LETTERS[order.index(verdict)],
        options=options,
        origin=chain.origin,
        k=chain.k,
        tokens=chain.tokens,
        length=chain.length,
        seed=seed,
        prompt=str(tokenizer.decode(list(prompt), skip_special_tokens=False)),
        prompt_ids=prompt,
    )


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    recipe = ctx.recipe
    unknown = sorted(set(recipe.label.k) - set(recipe.batch.k))
    if unknown:
        available = ", ".join(map(str, recipe.batch.k)) or "none"
        raise DtoError(f"label.k {unknown[0]} is not in batch.k ({available}): add it there")
    by_problem = groupby(run.rows("chain", Chain), key=lambda row: row.problem_id)
    kept = balance((list(chains) for _, chains in by_problem), recipe.label, recipe.seed)
    rows = tables.merge(
        run.rows("problems", Problem),
        (run.rows("chain", Chain), lambda row: str(row.problem_id)),
    )
    for problem, chains in rows:
        if chains:
            yield Group(problem.id, (problem, chains, kept))


STAGE = Stage(
    name="label",
    about="Label chains as concise, verbose or wrong (DRQA).",
    amount=lambda recipe: "A, B or C for each chain",
    essential="problems",
    record=LabelledChain,
    reads=always("chain"),
    settings=always("label.", *RENDERING),
    groups=_groups,
    work=label,
    total=lambda run: run.count("problems", split="train"),
    needs="tokenizer",
    renders=True,
    window=8,
    card=Card(1, "labels", "", "chains with the question about each, and the letter that is right"),
    paper="2508.17803",
    of_method=True,
)
