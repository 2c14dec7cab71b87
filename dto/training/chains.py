"""What the controls of DRQA (2508.17803) train on: verdicts, and answers to batch prompts.

Both are responses to be imitated (`dto.training.sft`), made of the labelled chains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dto.prompts import render
from dto.recipe import ModelSettings
from dto.records import BatchResponse, Chain, Dropped, LabelledChain, Problem
from dto.tables import read
from dto.tags import ThinkTags, think_tags
from dto.training.pairs import Demonstration
from dto.trajectories import opening, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def verdicts(
    rows: Sequence[LabelledChain],
    model: ModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
) -> list[Demonstration | Dropped]:
    """Critique fine-tuning (2501.17703): question and chain are read, the verdict is imitated.

    Departure: the paper's critiques are texts of a larger model, which find the mistakes. Here the
    critique is the wording of the right option and its letter, which takes no further model; so
    it differs from DRQA in nothing but the loss.
    """
    tags = think_tags(tokenizer, model)
    found: list[Demonstration | Dropped] = []
    for row in rows:
        verdict = row.options["ABC".index(row.label)]
        text = render("verdict", model.family, tags, verdict=verdict, letter=row.label)
        response = _response(row.prompt_ids, tags.encode(tokenizer, text), tokenizer, tags)
        found.append(_fitting(row.id, row.prompt_ids, response, context))
    return found


def batch_answers(
    run: Path,
    rows: Sequence[LabelledChain],
    model: ModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
) -> list[Demonstration | Dropped]:
    """Right chains of batch prompts as responses to their questions alone: the paper's failing SFT.

    A chain's ids are those that were sampled where their text is that of the chain, else its text
    is encoded: chains lose what names the other questions. The conclusion is written anew.
    Reads the tables of chain and batch beside the labelled `rows`, of which only the concise count.
    """
    wanted = {row.id: row for row in rows if row.verdict == "concise" and row.origin == "batch"}
    chains = {
        row.id: row for row in read(run / "chain" / "rows.parquet", Chain) if row.id in wanted
    }
    sources = {row.source_id for row in chains.values()}
    sampled = {
        row.id: row.token_ids
        for row in read(run / "batch" / "rows.parquet", BatchResponse)
        if row.id in sources
    }
    asked = {row.problem_id for row in wanted.values()}
    problems = {
        row.id: row for row in read(run / "problems" / "rows.parquet", Problem) if row.id in asked
    }
    tags = think_tags(tokenizer, model)
    found: list[Demonstration | Dropped] = []
    for chain_id, row in wanted.items():
        chain, problem = chains[chain_id], problems[row.problem_id]
        prompt = prompt_ids(problem.question, tokenizer, model, problem.prompt)
        ids = sampled[chain.source_id][slice(*chain.span)]
        if str(tokenizer.decode(list(ids))).strip() != row.chain.strip():
            ids = tags.encode(tokenizer, row.chain)
        conclusion = render("conclude", model.family, tags, answer=row.answer)
        closing = tags.encode(tokenizer, conclusion)
        response = _response(prompt, (*ids, *closing), tokenizer, tags)
        found.append(_fitting(row.id, prompt, response, context))
    return found


def _response(
    prompt: Sequence[int],
    ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    tags: ThinkTags,
) -> tuple[int, ...]:
    """Thinking opened where the prompt has not, and the end of sequence."""
    begun = tags.encode(tokenizer, opening(tokenizer, prompt, tags))
    return (*begun, *ids, int(tokenizer.eos_token_id))


def _fitting(
    row_id: str, prompt: Sequence[int], response: Sequence[int], context: int
) -> Demonstration | Dropped:
    size = len(prompt) + len(response)
    if size > context:
        detail = f"{size:,} tokens, the model's context is {context:,}"
        return Dropped(row_id, "too_long", detail)
    return Demonstration(row_id, tuple(prompt), tuple(response))
