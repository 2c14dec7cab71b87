"""What is trained on as token ids: pairs, labelled chains, rewarded samples; and in which order.

The pair table holds text for people and references; what is trained on are the ids that the model
sampled, so nothing is rendered, tokenised or given an end-of-sequence token here.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from math import ceil
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dto.drqa.label import LETTERS
from dto.errors import DtoError
from dto.prompts import render
from dto.recipe import ModelSettings
from dto.records import (
    BatchResponse,
    Chain,
    Dropped,
    LabelledChain,
    OptimizedTrajectory,
    PreferencePair,
    Problem,
    Trajectory,
    derive,
)
from dto.runs.reader import RunReader
from dto.tags import ThinkTags, think_tags
from dto.trajectories import opening, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def length_harmonizing(
    correct: Sequence[bool], lengths: Sequence[int], accuracy_weight: float
) -> list[float]:
    """O1-Pruner's reward (2501.12570): mean length / length - 1 + weight · (right - accuracy).

    Mean length and accuracy are those of the reference model, estimated by the same samples, so
    that the rewards need no further baseline. Departures from the published script: it takes two of
    the samples of each problem, cuts the rewards to [-2, 4] and standardizes them over the data.
    """
    if not lengths:
        return []
    mean, share = fmean(lengths), fmean(correct)
    return [
        mean / length - 1 + accuracy_weight * (good - share)
        for good, length in zip(correct, lengths, strict=True)
    ]


BATCHES_PER_BLOCK = 8
"""Pairs are sorted by length inside blocks of so many batches: little padding, random enough."""

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """One pair: the ids of the prompt and of both responses, EOS only where it was emitted."""

    id: str
    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence that a pass over the pair reads: the prompt with either side."""
        prompt = len(self.prompt_ids)
        return prompt + len(self.chosen_ids), prompt + len(self.rejected_ids)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One response that is trained on alone; `weight` is its advantage, if the method has one."""

    id: str
    prompt_ids: Ids
    response_ids: Ids
    weight: float = 1.0

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of the one sequence that a pass over it reads."""
        return (len(self.prompt_ids) + len(self.response_ids),)


Row = TokenizedPair | Demonstration


@dataclass(frozen=True, slots=True)
class Material:
    """The rows to train on, their order, and what the model is measured by meanwhile.

    `rows` are pairs, responses, or what the model is asked anew: problems, or labelled chains.
    `order` holds indices into them, for all epochs.
    """

    dev: list[Problem]
    held_out: list[LabelledChain]
    rows: list[Any]
    dropped: list[Dropped]
    order: list[int]

    @property
    def epochs(self) -> float:
        """Passes over the rows."""
        return len(self.order) / max(1, len(self.rows))


def fitting(row: Row, context: int) -> Row | Dropped:
    """The row, or dropped as `too_long` where it has more than `context` tokens."""
    size = max(row.lengths)
    if size > context:
        return Dropped(row.id, "too_long", f"{size:,} tokens, the model's context is {context:,}")
    return row


def asked(
    row: Problem | LabelledChain, tokenizer: PreTrainedTokenizerBase, model: ModelSettings
) -> Ids:
    """The prompt of a row that responses are sampled to."""
    if isinstance(row, LabelledChain):
        return row.prompt_ids
    return prompt_ids(row.question, tokenizer, model, row.prompt)


def chosen_sides(pairs: Iterable[Row | Dropped]) -> list[Row | Dropped]:
    """What SFT sees of the pairs that the other methods see: each chosen response once."""
    rows: dict[Any, Row | Dropped] = {}
    for pair in pairs:
        if isinstance(pair, TokenizedPair):
            key = (pair.prompt_ids, pair.chosen_ids)
            rows.setdefault(key, Demonstration(pair.id, *key))
        else:
            rows[pair.id] = pair
    return list(rows.values())


def load_weighted(run: RunReader, context: int, accuracy_weight: float) -> list[Row | Dropped]:
    """All samples of a run with O1-Pruner's weights, by problem (:func:`length_harmonizing`).

    Dropped are those that failed, that are empty, or longer than `context` tokens.
    """
    rows: list[Row | Dropped] = []
    samples = run.rows("sample", Trajectory)
    for _, group in groupby(samples, key=lambda row: row.problem_id):
        found = [row for row in group if row.token_ids]
        graded = [row for row in found if row.grade != "failed"]
        correct = [row.grade == "correct" for row in graded]
        lengths = [len(row.token_ids) for row in graded]
        weights = iter(length_harmonizing(correct, lengths, accuracy_weight))
        for row in found:
            if row.grade == "failed":
                rows.append(Dropped(row.id, "failed", row.reason))
            else:
                ids = row.prompt_ids, row.token_ids
                rows.append(fitting(Demonstration(row.id, *ids, next(weights)), context))
    return rows


def load_pairs(run: RunReader, context: int) -> list[Row | Dropped]:
    """The pairs of a run with their ids, and those that cannot be trained on, in order of id.

    A pair with an empty side is dropped (`empty_response`; its mean logprob is not a number), and
    so is one longer than `context` tokens (`too_long`). Raises DtoError when the tables do not
    belong together. Only the responses that pairs refer to are held in memory.
    """
    pairs = list(run.rows("pair", PreferencePair))
    optimized = {pair.chosen_id for pair in pairs if pair.chosen_from == "optimized"}
    sampled = {pair.rejected_id for pair in pairs} | {pair.trajectory_id for pair in pairs}
    sampled |= {pair.chosen_id for pair in pairs if pair.chosen_from != "optimized"}
    ids: dict[tuple[str, str], Ids] = {}
    if optimized:
        for version in run.rows("prune", OptimizedTrajectory):
            if version.id in optimized:
                ids["optimized", version.id] = version.token_ids
    for row in run.rows("sample", Trajectory) if sampled else ():
        if row.id in sampled:
            ids["prompt", row.id], ids["response", row.id] = row.prompt_ids, row.token_ids
    return [_tokenized(pair, ids, context) for pair in pairs]


def _tokenized(
    pair: PreferencePair, ids: Mapping[tuple[str, str], Ids], context: int
) -> Row | Dropped:
    chosen = "optimized" if pair.chosen_from == "optimized" else "response"
    names = (("prompt", pair.trajectory_id), (chosen, pair.chosen_id),
             ("response", pair.rejected_id))  # fmt: skip
    sides = [ids.get(name) for name in names]
    found = [None if side is None else len(side) for side in sides]
    stated = [pair.prompt_tokens, pair.chosen_tokens, pair.rejected_tokens]
    if stated != found:
        raise DtoError(
            f"pair {pair.id}: prompt, chosen, rejected have {found} tokens, not {stated}: "
            "the trajectories changed since, compute pair again"
        )
    if 0 in found:
        return Dropped(pair.id, "empty_response", f"prompt, chosen, rejected: {found} tokens")
    return fitting(TokenizedPair(pair.id, *(side or () for side in sides)), context)


def training_order(
    lengths: Sequence[int], *, epochs: float, batch_size: int, seed: int
) -> list[int]:
    """Indices of the pairs in the order in which they are trained on, over all epochs.

    A function of its arguments alone, so that a training that is resumed sees what it would have
    seen. Each epoch is shuffled, sorted by length inside blocks of some batches, and the batches
    are shuffled again. `epochs` may be a fraction; `batch_size` is that of one optimizer step.
    """
    total = round(epochs * len(lengths))
    order: list[int] = []
    epoch = 0
    while len(order) < total:
        noise = random.Random(derive(seed, "pairs", "order", epoch))
        order += _grouped(lengths, batch_size, noise)
        epoch += 1
    return order[:total]


def within_budget(
    tokens: Sequence[int], lengths: Sequence[int], *, budget: int, batch_size: int, seed: int
) -> list[int]:
    """A `training_order` of as many passes as the budget of trained tokens allows, whole rows.

    `tokens` is what one pass over each row reads.
    """
    whole = sum(tokens)
    if not whole:
        return []
    passes = ceil(budget / whole) + 1
    order = training_order(lengths, epochs=passes, batch_size=batch_size, seed=seed)
    spent = accumulate(tokens[index] for index in order)
    return order[: sum(each <= budget for each in spent)]


def _grouped(lengths: Sequence[int], batch_size: int, noise: random.Random) -> Iterable[int]:
    indices = list(range(len(lengths)))
    noise.shuffle(indices)
    block = BATCHES_PER_BLOCK * batch_size
    batches: list[list[int]] = []
    for start in range(0, len(indices), block):
        ordered = sorted(indices[start : start + block], key=lambda index: lengths[index])
        batches += [ordered[at : at + batch_size] for at in range(0, len(ordered), batch_size)]
    noise.shuffle(batches)
    # Only the last batch may be short: a short one in the middle would shift all that follow.
    batches.sort(key=lambda batch: len(batch) < batch_size)
    return [index for batch in batches for index in batch]


def critiques(
    rows: Sequence[LabelledChain],
    model: ModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
) -> list[Row | Dropped]:
    """Critique fine-tuning (2501.17703): question and chain are read, the verdict is imitated.

    Departure: the paper's critiques are texts of a larger model, which find the mistakes. Here the
    critique is the wording of the right option and its letter, which takes no further model; so
    it differs from DRQA in nothing but the loss.
    """
    tags = think_tags(tokenizer, model)
    found = []
    for row in rows:
        verdict = row.options[LETTERS.index(row.label)]
        text = render("verdict", model.family, tags, verdict=verdict, letter=row.label)
        ids = tags.encode(tokenizer, text)
        found.append(fitting(_thought(row.id, row.prompt_ids, ids, tokenizer, tags), context))
    return found


def batch_answers(
    run: RunReader,
    rows: Sequence[LabelledChain],
    model: ModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
) -> list[Row | Dropped]:
    """Right chains of batch prompts as responses to their questions alone: the paper's failing SFT.

    A chain's ids are those that were sampled where their text is that of the chain, else its text
    is encoded: chains lose what names the other questions. The conclusion is written anew.
    Reads the tables of chain and batch beside the labelled `rows`, of which only the concise count.
    """
    wanted = {row.id: row for row in rows if row.verdict == "concise" and row.origin == "batch"}
    chains = {row.id: row for row in run.rows("chain", Chain) if row.id in wanted}
    sources = {row.source_id for row in chains.values()}
    sampled = {
        row.id: row.token_ids for row in run.rows("batch", BatchResponse) if row.id in sources
    }
    named = {row.problem_id for row in wanted.values()}
    problems = {row.id: row for row in run.rows("problems", Problem) if row.id in named}
    tags = think_tags(tokenizer, model)
    found = []
    for chain_id, row in wanted.items():
        chain, problem = chains[chain_id], problems[row.problem_id]
        prompt = asked(problem, tokenizer, model)
        ids = sampled[chain.source_id][slice(*chain.span)]
        if str(tokenizer.decode(list(ids))).strip() != row.chain.strip():
            ids = tags.encode(tokenizer, row.chain)
        conclusion = render("conclude", model.family, tags, answer=row.answer)
        ids = (*ids, *tags.encode(tokenizer, conclusion))
        found.append(fitting(_thought(row.id, prompt, ids, tokenizer, tags), context))
    return found


def _thought(
    row_id: str, prompt: Ids, ids: Ids, tokenizer: PreTrainedTokenizerBase, tags: ThinkTags
) -> Demonstration:
    """Thinking opened where the prompt has not, the ids, and the end of sequence."""
    begun = tags.encode(tokenizer, opening(tokenizer, prompt, tags))
    return Demonstration(row_id, prompt, (*begun, *ids, int(tokenizer.eos_token_id)))
