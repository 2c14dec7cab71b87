"""`dto run --dry-run`: the plan of a run, without an engine, a GPU or weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from dto.compare.compare import grid, methods, shared_stages
from dto.engines.checks import check_start, sentences, settled
from dto.errors import DtoError
from dto.extension import is_import_path
from dto.pipeline import needed, shown_prompts, stage_of
from dto.recipe import Recipe
from dto.records import Dropped, Problem
from dto.tasks.load import load_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def plan(recipe: Recipe) -> Iterator[str]:
    """The lines of the plan: stages, amounts and settings, then the first prompt of each stage.

    Nothing is downloaded. If a question or tokenizer is not on this machine, its line says so and
    the prompt is shown as text.
    """
    model = recipe.model
    yield f"{recipe.name}: {model.name} on {model.engine}, seed {recipe.seed}"
    yield ""
    recipes = methods(recipe) if recipe.compare.methods else {}
    stages = shared_stages(recipe, recipes) if recipes else needed(recipe)
    for stage in stages:
        yield f"{stage:<9} {stage_of(recipe, stage).amount(recipe)}"
        settings = getattr(recipe, stage, None)
        if settings is not None and stage != "problems":
            shown = settings.model_dump(mode="json", exclude={"exits", "models", "tasks"})
            yield "          " + " ".join(f"{key}={value}" for key, value in shown.items())
    yield "report    report.html, report.json, tables and pictures"
    if recipes:
        yield f"compare   {recipe.compare.policy_tokens:,} policy tokens for each training"
    for name, method in recipes.items():
        points, own = grid(method), method.compare
        values = f"{own.own} {', '.join(map(str, own.values))}" if points else ""
        yield f"          {name}: {len(points)} points {values}".rstrip()
    recipe = settled(recipe)
    yield from (f"engine    {sentence}" for sentence in sentences(recipe))
    try:
        check_start(recipe, stages, online=False)
    except DtoError as error:
        yield f"refused   {error}"
    for exit in recipe.evaluate.exits:
        yield "exit      " + " ".join(f"{key}={value}" for key, value in exit.changed().items())
    yield ""
    questions, remark = _first_questions(recipe)
    all_stages = {*stages, *(stage for method in recipes.values() for stage in needed(method))}
    for title, prompt, is_message in shown_prompts(recipe, all_stages, questions):
        text = prompt
        if is_message:
            text, rendered = _rendered(recipe, prompt)
            title += remark + rendered
        yield f"── {title}"
        yield text.replace("\n", "⏎\n")
        yield ""


def _first_questions(recipe: Recipe) -> tuple[list[str], str]:
    """The questions of the largest batch prompt (or one), and a remark."""
    imported = recipe.sample.imported
    source = imported or recipe.problems.source
    remark = "is read by the run" if is_import_path(source) else "is not on this machine"
    unknown = [f"(a question of {source})"], f" ({source} {remark})"
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
    questions = [*islice((row.question for row in rows if isinstance(row, Problem)), most)]
    return (questions, "") if questions else unknown


def _rendered(recipe: Recipe, user: str) -> tuple[str, str]:
    """A user message inside the chat template, and a remark."""
    from dto.engines.models import load_tokenizer
    from dto.trajectories import chat_ids

    try:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(recipe.model, local=True)
    except DtoError:
        system = f"[system] {recipe.model.system}\n" if recipe.model.system else ""
        text = f"{system}[user] {user}"
        return text, " (without the chat template: the tokenizer is not on this machine)"
    ids = chat_ids(user, tokenizer, recipe.model)
    return str(tokenizer.decode(list(ids))), f" ({len(ids)} tokens)"
