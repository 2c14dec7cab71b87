"""What a run would do, told without an engine, a GPU or weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from dto.drqa.label import WORDINGS
from dto.errors import DtoError
from dto.pipeline import needed, stage_of
from dto.prompts import JUDGE, PUT_IN, purpose, render
from dto.recipe import Recipe
from dto.records import Dropped, Problem
from dto.tags import shown_tags
from dto.tasks.load import load_problems, prompt_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def plan(recipe: Recipe) -> Iterator[str]:
    """The lines of the plan: stages, amounts and settings, then the first prompt of each stage.

    Nothing is fetched: where a question or a tokenizer is not on this machine, the line says so and
    the prompt is shown as text.
    """
    model = recipe.model
    yield f"{recipe.name}: {model.name} on {model.engine}, seed {recipe.seed}"
    yield ""
    stages = _stages(recipe)
    for stage in stages:
        yield f"{stage:<9} {stage_of(recipe, stage).amount(recipe)}"
        settings = getattr(recipe, stage, None)
        if settings is not None and stage != "problems":
            shown = settings.model_dump(mode="json", exclude={"exits", "models", "tasks"})
            yield "          " + " ".join(f"{key}={value}" for key, value in shown.items())
    yield "report    report.html, report.json, tables and pictures"
    yield from _methods(recipe)
    for each in recipe.evaluate.exits:
        yield "exit      " + " ".join(f"{key}={value}" for key, value in each.changed().items())
    yield ""
    (question, *others), name, remark = _first_questions(recipe)
    alone = render(recipe.model.prompt or name, model.family, question=question)
    prompt, rendered = _asked(recipe, alone)
    yield from _block(f"sample, evaluate: the first prompt{remark}{rendered}", prompt)
    yield from _drqa(recipe, question, others, remark)
    for name, stage in PUT_IN.items():
        title = f"{stage}: {purpose(name, model.family)}"
        yield from _block(title, render(name, model.family, shown_tags(model)))
    if recipe.prune.judge == "llm":
        patterns = "<pattern 1>\n…\n</pattern 1>\n…"
        gold = "(its gold answer)" if recipe.prune.gold else ""
        asked = render("patterns", JUDGE, question=question, answer=gold, patterns=patterns,
                       first="2", last="(the last but one)")  # fmt: skip
        yield from _block("prune: what the judge is asked", asked)


def _drqa(recipe: Recipe, question: str, others: list[str], remark: str) -> Iterator[str]:
    """What is asked of a batch, and of a judge, where the recipe has them."""
    family, stages = recipe.model.family, _stages(recipe)
    if "batch" in stages:
        k = recipe.batch.k[0]
        asked = [question, *others, *(f"(question {i})" for i in range(2, k + 1))][:k]
        numbered = "\n".join(f"{i}. {each}" for i, each in enumerate(asked, start=1))
        prompt, rendered = _asked(recipe, render("batch", family, questions=numbered, k=k))
        yield from _block(f"batch: a prompt of {k} questions{remark}{rendered}", prompt)
    if "label" in stages or recipe.train.method == "drqa":
        a, b, c = WORDINGS.values()
        judged = render("compare", family, question=question, reasoning="(a chain of thinking)",
                        answer="(its answer)", a=a, b=b, c=c)  # fmt: skip
        prompt, rendered = _asked(recipe, judged)
        title = "label, train: what the model judges, the options in an order drawn for each"
        yield from _block(f"{title}{remark}{rendered}", prompt)


def _stages(recipe: Recipe) -> tuple[str, ...]:
    """What `dto run` computes; of a comparison, what its methods share."""
    if not recipe.compare.methods:
        return needed(recipe)
    from dto.compare.compare import methods, shared_stages

    return tuple(shared_stages(recipe, methods(recipe)))


def _methods(recipe: Recipe) -> Iterator[str]:
    """The methods of a comparison, each with what is tried."""
    if not recipe.compare.methods:
        return
    from dto.compare.compare import grid, methods

    yield f"compare   {recipe.compare.policy_tokens:,} policy tokens for each training"
    for name, each in methods(recipe).items():
        points = grid(each)
        tried = f"{each.compare.own} {', '.join(map(str, each.compare.values))}" if points else ""
        yield f"          {name}: {len(points)} points {tried}".rstrip()


def _block(title: str, text: str) -> Iterator[str]:
    yield f"── {title}"
    yield text.replace("\n", "⏎\n")
    yield ""


def _first_questions(recipe: Recipe) -> tuple[list[str], str, str]:
    """Questions, as many as are asked together, the prompt that asks one, and a remark."""
    imported = recipe.sample.imported
    source = imported or recipe.problems.source
    asked = "solve" if imported else prompt_of(recipe.problems)
    unknown = [f"(a question of {source})"], asked, f" ({source} is not on this machine)"
    most = max(recipe.batch.k, default=1)
    local = source == "chains" or source.endswith((".jsonl", ".parquet"))
    if not local:
        return unknown
    small = recipe.problems.model_copy(update={"train": most, "dev": 0, "test": 0})
    rows: Iterator[Problem | Dropped]
    if imported:
        from dto.tasks.importing import imported_problems

        rows = imported_problems(imported, small, recipe.seed)
    else:
        rows = load_problems(small, recipe.seed)
    found = [*islice((row for row in rows if isinstance(row, Problem)), most)]
    return ([row.question for row in found], found[0].prompt, "") if found else unknown


def _asked(recipe: Recipe, user: str) -> tuple[str, str]:
    """A user message with the chat template around it, and a remark."""
    from dto.engines.models import load_tokenizer
    from dto.trajectories import chat_ids

    try:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(recipe.model, local=True)
    except DtoError:
        system = f"[system] {recipe.model.system}\n" if recipe.model.system else ""
        text = f"{system}[user] {user}"
        return text, " (the tokenizer is not on this machine: without the chat template)"
    ids = chat_ids(user, tokenizer, recipe.model)
    return str(tokenizer.decode(list(ids))), f" ({len(ids)} tokens)"
