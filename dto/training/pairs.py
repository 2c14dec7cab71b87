"""Load training rows as token ids (pairs, labelled chains, weighted samples), and order them.

The pair table has text for people, and references to ids. Training uses the ids that the model
sampled, so stored responses are never rendered or tokenized again, and get no extra EOS.
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
from dto.drqa.records import BatchResponse, Chain, LabelledChain
from dto.errors import DtoError
from dto.prompts import render
from dto.recipe import ModelSettings
from dto.records import Dropped, OptimizedTrajectory, PreferencePair, Problem, Trajectory, derive
from dto.runs.reader import RunReader
from dto.tags import ThinkTags, think_tags
from dto.trajectories import opening, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def length_harmonizing(
    correct: Sequence[bool], lengths: Sequence[int], accuracy_weight: float
) -> list[float]:
    """O1-Pruner's reward (2501.12570): mean length / length - 1 + weight · (right - accuracy).

    Mean length and accuracy are the reference model's, estimated from the same samples, so the
    rewards need no further baseline. Departures from the published script: it uses two samples of
    each problem, clips the rewards to [-2, 4] and standardizes them over the data.
    """
    if not lengths:
        return []
    mean, share = fmean(lengths), fmean(correct)
    return [
        mean / length - 1 + accuracy_weight * (good - share)
        for good, length in zip(correct, lengths, strict=True)
    ]


BATCHES_PER_BLOCK = 8
"""Rows are sorted by length inside blocks of this many batches, which saves padding."""

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """One pair: the ids of the prompt and both responses, with EOS only if the model emitted it."""

    id: str
    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of the two sequences that a pass reads: the prompt with either response."""
        prompt = len(self.prompt_ids)
        return prompt + len(self.chosen_ids), prompt + len(self.rejected_ids)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One response to train on; `weight` is its advantage, if the method has one."""

    id: str
    prompt_ids: Ids
    response_ids: Ids
    weight: float = 1.0

    @property
    def lengths(self) -> tuple[int, ...]:
        """The length of the sequence that a pass reads."""
        return (len(self.prompt_ids) + len(self.response_ids),)


Row = TokenizedPair | Demonstration


@dataclass(frozen=True, slots=True)
class Material:
    """The data of one training: rows, their order, dev problems and held-out chains.

    `rows` are pairs or responses. Methods that sample have problems or labelled chains instead.
    `order` holds indices into the rows, for all epochs.
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
    """Return the row, or drop it as `too_long` if it has more than `context` tokens."""
    size = max(row.lengths)
    if size > context:
        return Dropped(row.id, "too_long", f"{size:,} tokens, the model's context is {context:,}")
    return row


def row_prompt(
    row: Problem | LabelledChain, tokenizer: PreTrainedTokenizerBase, model: ModelSettings
) -> Ids:
    """The prompt ids of a row for which responses are sampled."""
    if isinstance(row, LabelledChain):
        return row.prompt_ids
    return prompt_ids(row.question, tokenizer, model, row.prompt)


def chosen_sides(pairs: Iterable[Row | Dropped]) -> list[Row | Dropped]:
    """The rows for SFT: each chosen response of the pairs once."""
    rows: dict[Any, Row | Dropped] = {}
    for pair in pairs:
        if isinstance(pair, TokenizedPair):
            key = (pair.prompt_ids, pair.chosen_ids)
            rows.setdefault(key, Demonstration(pair.id, *key))
        else:
            rows[pair.id] = pair
    return list(rows.values())


def load_weighted(run: RunReader, context: int, accuracy_weight: float) -> list[Row | Dropped]:
    """Load all samples of a run with O1-Pruner's weights (:func:`length_harmonizing`).

    Failed samples and samples longer than `context` tokens are dropped; empty ones are skipped.
    """
    rows: list[Row | Dropped] = []
    samples = run.rows("sample", Trajectory)
    for _, group in groupby(samples, key=lambda row: row.problem_id):
        responses = [row for row in group if row.token_ids]
        graded = [row for row in responses if row.grade != "failed"]
        correct = [row.grade == "correct" for row in graded]
        lengths = [len(row.token_ids) for row in graded]
        weights = iter(length_harmonizing(correct, lengths, accuracy_weight))
        for row in responses:
            if row.grade == "failed":
                rows.append(Dropped(row.id, "failed", row.reason))
            else:
                ids = row.prompt_ids, row.token_ids
                rows.append(fitting(Demonstration(row.id, *ids, next(weights)), context))
    return rows


def load_pairs(run: RunReader, context: int) -> list[Row | Dropped]:
    """Load the pairs of a run with their token ids, in order of id.

    A pair with an empty side is dropped (`empty_response`), because its mean logprob is undefined.
    A pair longer than `context` tokens is dropped too (`too_long`). Raises DtoError if the tables
    are inconsistent. Only responses of pairs are held in memory.
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
    lengths = [None if side is None else len(side) for side in sides]
    recorded = [pair.prompt_tokens, pair.chosen_tokens, pair.rejected_tokens]
    if recorded != lengths:
        raise DtoError(
            f"pair {pair.id}: prompt, chosen, rejected have {lengths} tokens, not {recorded}: the "
            "trajectories have changed; recompute them with `dto pair RUN --recompute`"
        )
    if 0 in lengths:
        return Dropped(pair.id, "empty_response", f"prompt, chosen, rejected: {lengths} tokens")
    return fitting(TokenizedPair(pair.id, *(side or () for side in sides)), context)


def training_order(
    lengths: Sequence[int], *, epochs: float, batch_size: int, seed: int
) -> list[int]:
    """Indices of the rows in training order, over all epochs.

    The order depends only on the arguments, so a resumed training sees the same rows. Each epoch is
    shuffled and sorted by length inside blocks of batches; then the batches are shuffled. `epochs`
    may be fractional. `batch_size` is the number of rows in one optimizer step.
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
    """A `training_order` of as many rows as fit into a budget of trained tokens.

    `tokens` holds the number of tokens that one pass over each row reads.
    """
    whole = sum(tokens)
    if not whole:
        return []
    passes = ceil(budget / whole) + 1
    order = training_order(lengths, epochs=passes, batch_size=batch_size, seed=seed)
    spent = accumulate(tokens[index] for index in order)
    return order[: sum(total <= budget for total in spent)]


def _grouped(lengths: Sequence[int], batch_size: int, noise: random.Random) -> Iterable[int]:
    indices = list(range(len(lengths)))
    noise.shuffle(indices)
    block = BATCHES_PER_BLOCK * batch_size
    batches: list[list[int]] = []
    for start in range(0, len(indices), block):
        ordered = sorted(indices[start : start + block], key=lambda index: lengths[index])
        batches += [ordered[at : at + batch_size] for at in range(0, len(ordered), batch_size)]
    noise.shuffle(batches)
    # Put the short batch last: in the middle it would shift all batches after it.
    batches.sort(key=lambda batch: len(batch) < batch_size)
    return [index for batch in batches for index in batch]


def critiques(
    rows: Sequence[LabelledChain],
    model: ModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
) -> list[Row | Dropped]:
    """Build rows for critique fine-tuning (2501.17703): imitate the verdict on question and chain.

    Departure: the paper's critiques are written by a larger model and point out mistakes. Here the
    critique is the text of the right option and its letter, so no other model is needed, and the
    method differs from DRQA only in its loss.
    """
    tags = think_tags(tokenizer, model)
    demonstrations = []
    for row in rows:
        verdict = row.options[LETTERS.index(row.label)]
        text = render("verdict", model.family, tags, verdict=verdict, letter=row.label)
        ids = tags.encode(tokenizer, text)
        thought = _thought(row.id, row.prompt_ids, ids, tokenizer, tags)
        demonstrations.append(fitting(thought, context))
    return demonstrations


def batch_answers(
    run: RunReader,
    rows: Sequence[LabelledChain],
    model: ModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
) -> list[Row | Dropped]:
    """Build rows for SFT on batch chains, as responses to their questions alone.

    The paper reports that this SFT fails. Only concise rows are used. A chain keeps its sampled ids
    if they decode to its text. Otherwise its text is encoded, because references to the other
    questions were removed. The conclusion is written from a prompt file. Reads the tables of chain
    and batch.
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
    demonstrations = []
    for chain_id, row in wanted.items():
        chain, problem = chains[chain_id], problems[row.problem_id]
        prompt = row_prompt(problem, tokenizer, model)
        ids = sampled[chain.source_id][slice(*chain.span)]
        if str(tokenizer.decode(list(ids))).strip() != row.chain.strip():
            ids = tags.encode(tokenizer, row.chain)
        conclusion = render("conclude", model.family, tags, answer=row.answer)
        ids = (*ids, *tags.encode(tokenizer, conclusion))
        demonstrations.append(fitting(_thought(row.id, prompt, ids, tokenizer, tags), context))
    return demonstrations


def _thought(
    row_id: str, prompt: Ids, ids: Ids, tokenizer: PreTrainedTokenizerBase, tags: ThinkTags
) -> Demonstration:
    """A response of opening tag (unless the prompt has it), `ids` and EOS."""
    opened = tags.encode(tokenizer, opening(tokenizer, prompt, tags))
    return Demonstration(row_id, prompt, (*opened, *ids, int(tokenizer.eos_token_id)))
