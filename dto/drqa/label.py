"""A / B / C for the chains of one problem, and the question about each (2508.17803, section 3)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import groupby, permutations

from dto import tables
from dto.context import Context
from dto.drqa.classes import (
    LETTERS,
    VERDICTS,
    WORDINGS,
    Balance,
    ChainFacts,
    balance,
    split_of,
    verdicts,
)
from dto.errors import DtoError
from dto.prompts import render
from dto.records import (
    Chain,
    ChainVerdict,
    Dropped,
    LabelledChain,
    Problem,
    Split,
)
from dto.runs.reader import RunReader
from dto.runs.stage import RENDERING, Card, Group, Stage, always
from dto.trajectories import chat_ids, closes_thinking, opening

ORDERS = tuple(permutations(VERDICTS))


def labels(
    problem: Problem, chains: Sequence[Chain], kept: Balance, ctx: Context
) -> list[LabelledChain | Dropped]:
    """The problem's chains with the letter that is right, the options in an order drawn for each.

    With `label.shuffled: false` the letters always mean the same, as in the paper: A right but
    could be more concise, B right and concise, C wrong. A model that cannot bind letters to words
    can learn what each letter means then. With `label.thinking: false` the prompt closes the
    judge's thinking (prompt `no_thinking`), and its response is the letter.

    Dropped are those without a class (`dto.drqa.classes.verdicts`), and as `surplus` those that the
    balance does not keep.
    """
    settings, seed = ctx.recipe.label, ctx.recipe.seed
    found = verdicts(chains, settings)
    split = split_of(problem.id, seed, settings.held_out)
    rows: list[LabelledChain | Dropped] = []
    for chain in chains:
        verdict = found.classes.get(chain.id)
        if verdict is None:
            rows.append(Dropped(chain.id, *found.dropped[chain.id]))
        elif not kept.keeps(chain.id, (split, verdict), seed):
            detail = f"one of {kept.found[split, verdict]:,} {split} chains that are {verdict}"
            rows.append(Dropped(chain.id, "surplus", detail))
        else:
            rows.append(_labelled(problem, chain, verdict, split, ctx))
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


async def label(
    problem: Problem, chains: Sequence[Chain], kept: Balance, ctx: Context
) -> list[LabelledChain | Dropped]:
    """:func:`labels` of one problem's chains, as the recipe says."""
    return await asyncio.to_thread(labels, problem, chains, kept, ctx)


def _by_problem(run: RunReader) -> Iterator[list[ChainFacts]]:
    """The chains of each problem, without their text."""
    frame = run.frame("chain", *ChainFacts._fields).collect()
    rows = (ChainFacts(*row) for row in frame.iter_rows())
    for _, chains in groupby(rows, key=lambda row: row.problem_id):
        yield list(chains)


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    recipe = ctx.recipe
    unknown = sorted(set(recipe.label.k) - set(recipe.batch.k))
    if unknown:
        there = ", ".join(map(str, recipe.batch.k)) or "none"
        raise DtoError(f"label.k {unknown[0]} is no number of questions in batch.k: {there}")
    kept = balance(_by_problem(run), recipe.label, recipe.seed)
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
