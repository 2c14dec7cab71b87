"""What each method trains on, in the order and as often as it is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from dto.recipe import Recipe
from dto.records import Dropped, LabelledChain, Problem
from dto.tables import read
from dto.training.pairs import (
    Demonstration,
    TokenizedPair,
    chosen_sides,
    load_pairs,
    load_weighted,
    training_order,
    within_budget,
)
from dto.trajectories import prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ONLINE = ("grpo", "drqa")
"""Methods that sample what they train on."""
LABELLED = ("drqa", "cft", "sft_batch")
"""Methods that read labelled chains, and so have some held out to measure judging by."""

Row = TokenizedPair | Demonstration


@dataclass(frozen=True, slots=True)
class Material:
    """Rows of a table, or what is asked anew (problems, labelled chains), in their order."""

    rows: list[Row] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    asked: list[Problem] | list[LabelledChain] = field(default_factory=list)
    order: list[int] = field(default_factory=list)

    @property
    def epochs(self) -> float:
        """Passes over the rows."""
        return len(self.order) / max(1, len(self.rows or self.asked))


def material(
    run: Path, recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Material:
    """The material of the recipe's method."""
    settings = recipe.train
    method = settings.method
    if method == "none":
        return Material()
    if method in ONLINE:
        return _asked(run, recipe, tokenizer)
    rows, dropped = _stored(run, recipe, _context(recipe, model), tokenizer)
    lengths, size = [row.length for row in rows], step_size(recipe)
    if settings.policy_tokens is None:
        order = training_order(lengths, epochs=settings.epochs, batch_size=size, seed=recipe.seed)
    else:
        order = within_budget(
            [row.tokens for row in rows],
            lengths,
            budget=settings.policy_tokens,
            batch_size=size,
            seed=recipe.seed,
        )
    return Material(rows, dropped, order=order)


def _asked(run: Path, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Material:
    from dto.training.grpo import longest

    asked: list[Any]
    if recipe.train.method == "drqa":
        asked = labelled(run, "train")
        sizes = [len(row.prompt_ids) for row in asked]
    else:
        asked = problems(run, "train")
        sizes = [
            len(prompt_ids(row.question, tokenizer, recipe.model, row.prompt)) for row in asked
        ]
    if not asked:
        return Material()
    times = longest(recipe, len(asked), min(sizes)) / len(asked)
    group = recipe.train.batch_size // recipe.train.group
    # Of one length all, as far as the order is concerned: batches of one length are of one class.
    order = training_order([1] * len(asked), epochs=times, batch_size=group, seed=recipe.seed)
    return Material(asked=asked, order=order)


def _stored(
    run: Path, recipe: Recipe, context: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Row], list[Dropped]]:
    from dto.training.chains import batch_answers, verdicts

    found: Sequence[Row | Dropped]
    match recipe.train.method:
        case "o1_pruner":
            found = load_weighted(run, context, recipe.train.accuracy_weight)
        case "cft":
            found = verdicts(labelled(run, "train"), recipe.model, tokenizer, context)
        case "sft_batch":
            found = batch_answers(run, labelled(run, "train"), recipe.model, tokenizer, context)
        case "sft":
            found = chosen_sides(load_pairs(run, context))
        case _:
            found = load_pairs(run, context)
    rows = [row for row in found if not isinstance(row, Dropped)]
    return rows, [row for row in found if isinstance(row, Dropped)]


def problems(run: Path, split: str) -> list[Problem]:
    """The problems of a split."""
    rows = read(run / "problems" / "rows.parquet", Problem)
    return [row for row in rows if row.split == split]


def labelled(run: Path, split: str) -> list[LabelledChain]:
    """The labelled chains of a split: `train`, or `dev`, which are held out."""
    rows = read(run / "label" / "rows.parquet", LabelledChain)
    return [row for row in rows if row.split == split]


def nouns(method: str) -> str:
    """What the rows of a method are."""
    names = {
        "sft": "responses", "sft_batch": "responses", "o1_pruner": "responses",
        "grpo": "problems", "drqa": "chains", "cft": "chains", "none": "rows",
    }  # fmt: skip
    return names.get(method, "pairs")


def step_size(recipe: Recipe) -> int:
    """Rows in one optimizer step."""
    per_process = recipe.train.batch_size * recipe.train.gradient_accumulation
    processes: int = PartialState().num_processes
    return per_process * processes


def _context(recipe: Recipe, model: PreTrainedModel) -> int:
    limit: Any = getattr(model.config, "max_position_embeddings", None)
    own = int(limit or recipe.pair.max_length)
    return min(own, recipe.model.context or own)
