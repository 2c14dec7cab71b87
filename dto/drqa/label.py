"""A / B / C for the chains of one problem, and the question about each (2508.17803, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import TYPE_CHECKING

from dto.drqa.classes import VERDICTS, WORDINGS, Balance, split_of, verdicts
from dto.prompts import render
from dto.records import Chain, ChainVerdict, Dropped, LabelledChain, Letter, Problem, Split
from dto.seeds import derive
from dto.tags import think_tags
from dto.trajectories import chat_ids, closes_thinking, opening

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.recipe import Recipe

ORDERS = tuple(permutations(VERDICTS))
LETTERS: tuple[Letter, ...] = ("A", "B", "C")


def label(
    problem: Problem,
    chains: Sequence[Chain],
    balance: Balance,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
) -> list[LabelledChain | Dropped]:
    """The problem's chains with the letter that is right, the options in an order drawn for each.

    With `label.shuffled: false` the letters always mean the same, as in the paper: A right but
    could be more concise, B right and concise, C wrong. A model that cannot bind letters to words
    can learn what each letter means then. With `label.thinking: false` the prompt closes the
    judge's thinking (prompt `no_thinking`), and its response is the letter.

    Dropped are those without a class (`dto.drqa.classes.verdicts`), and as `surplus` those that the
    balance does not keep.
    """
    settings, seed = recipe.label, recipe.seed
    found = verdicts(chains, settings)
    split = split_of(problem.id, seed, settings.held_out)
    rows: list[LabelledChain | Dropped] = []
    for chain in chains:
        verdict = found.classes.get(chain.id)
        if verdict is None:
            rows.append(Dropped(chain.id, *found.dropped[chain.id]))
        elif not balance.keeps(chain.id, (split, verdict), seed):
            detail = f"one of {balance.found[split, verdict]:,} {split} chains that are {verdict}"
            rows.append(Dropped(chain.id, "surplus", detail))
        else:
            rows.append(_labelled(problem, chain, verdict, split, tokenizer, recipe))
    return rows


def _labelled(
    problem: Problem,
    chain: Chain,
    verdict: ChainVerdict,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
) -> LabelledChain:
    seed = derive(recipe.seed, chain.id, "options")
    order = ORDERS[seed % len(ORDERS)] if recipe.label.shuffled else VERDICTS
    options = tuple(WORDINGS[each] for each in order)
    prompt = chat_ids(
        judge_question(problem, chain, options, recipe.model.family), tokenizer, recipe.model
    )
    if not recipe.label.thinking:
        tags = think_tags(tokenizer, recipe.model)
        if not closes_thinking(tokenizer, prompt, tags):
            closed = render("no_thinking", recipe.model.family, tags)
            prompt += tags.encode(tokenizer, opening(tokenizer, prompt, tags) + closed)
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


def judge_question(problem: Problem, chain: Chain, options: Sequence[str], family: str) -> str:
    """What a judge is asked about a chain, with the options as A, B and C show them."""
    a, b, c = options
    return render(
        "compare", family, question=problem.question, reasoning=chain.text, answer=chain.answer,
        a=a, b=b, c=c,
    )  # fmt: skip
