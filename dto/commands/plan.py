"""`dto run --dry-run`: what a run does and takes, without an engine, a GPU or weights.

`dto.commands.amounts` counts tokens under the assumptions that the plan prints. Hours are FLOPs
(`dto.usage`) over the GPU's peak at a utilisation of 0.2 to 0.5. `dto.takes` has the formula of the
memory. `dto run --pilot` measures instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from dto.commands import WIDTH, indented
from dto.commands.amounts import (
    BOUNDARY,
    GOOD,
    ROLLOUTS,
    TASK,
    UTILISATION,
    Counter,
    Work,
    compared,
)
from dto.commands.doctor import (
    LARGE,
    Gpu,
    disk_missing,
    fetched,
    fit_table,
    gpu_named,
    known_gpus,
    lacks,
    memory_lines,
    this_machine,
)
from dto.compare.compare import grid, methods, shared_stages
from dto.engines.checks import check_start, missing_weights, sentences, settled
from dto.errors import DtoError
from dto.extension import is_import_path
from dto.pipeline import needed, shown_prompts, stage_of
from dto.recipe import Recipe
from dto.records import Dropped, Problem
from dto.reporting.table import Table
from dto.runs.reader import RunReader
from dto.source import Source
from dto.takes import GIB, PROMPT, shape_of
from dto.tasks import TASKS
from dto.tasks.load import load_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _methods(*names: str) -> Callable[[Recipe], bool]:
    return lambda recipe: recipe.train.method in names


def _judges(*names: str) -> Callable[[Recipe], bool]:
    return lambda recipe: recipe.prune.judge in names


def _pairs(*data: str) -> Callable[[Recipe], bool]:
    return lambda recipe: recipe.pair.data in data


def _sequential(recipe: Recipe) -> bool:
    return recipe.estimate.method == "sequential"


_ONLINE, _ON_CHAINS = _methods("grpo", "drqa"), _methods("drqa", "cft", "sft_batch")
_PENALTY = ("length_penalty", "shorter_better")

_READ: dict[str, Callable[[Recipe], bool]] = {
    "estimate.rollouts": lambda recipe: not _sequential(recipe),
    **dict.fromkeys(("estimate.error_scan", "estimate.cap"), _sequential),
    "prune.rollouts": _judges("counterfactual"),
    "prune.harm": _judges("counterfactual"),
    **dict.fromkeys(("prune.max_tokens", "prune.temperature", "prune.gold"), _judges("llm")),
    "prune.max_segments": _judges("counterfactual", "llm"),
    "prune.confirmations": lambda recipe: recipe.prune.judge != "none",
    "prune.agreement": lambda recipe: bool(recipe.prune.agreement),
    "pair.margin": _pairs("token_budget"),
    **dict.fromkeys(
        ("pair.rejected", "pair.longer_correct", "pair.max_longer_correct"), _pairs("optimized")
    ),
    "label.k": lambda recipe: recipe.label.source == "batch",
    "train.beta": _methods("simpo", "dpo"),
    "train.gamma": _methods("simpo"),
    "train.nll": _methods("simpo"),
    "train.accuracy_weight": _methods("o1_pruner"),
    "train.reward": _methods("grpo"),
    "train.reward_settings": _methods("grpo"),
    "train.penalty": lambda recipe: (
        recipe.train.method == "grpo" and recipe.train.reward in _PENALTY
    ),
    **dict.fromkeys(
        ("train.group", "train.kl", "train.temperature", "train.response_tokens"), _ONLINE
    ),
    "train.no_letter": _methods("drqa"),
    "train.judgements": _ON_CHAINS,
    "evaluate.limit": lambda recipe: bool(recipe.evaluate.tasks),
}
"""When a setting that only some recipes read is read; all others of a stage are."""


def read_settings(recipe: Recipe, stage: str) -> list[str]:
    """The settings of a stage that this recipe reads, as `key=value`; those that are unset are not.

    The line of a stage tells its exits, models, tasks and sources.
    """
    settings = getattr(recipe, stage, None)
    if settings is None or stage == "problems":
        return []
    values = settings.model_dump(mode="json", exclude={"exits", "models", "tasks"})
    if stage == "train" and recipe.train.method == "none":
        values = {"method": "none"}
    return [
        f"{key}={value}"
        for key, value in values.items()
        if value not in (None, [], {}) and _is_read(recipe, f"{stage}.{key}")
    ]


def _is_read(recipe: Recipe, key: str) -> bool:
    condition = _READ.get(key)
    return condition is None or condition(recipe)


def plan(recipe: Recipe, gpu: str | None = None, place: Path | None = None) -> Iterator[str]:
    """The lines of the plan: stages and settings, what they take, what is missing, first prompts.

    `gpu` names the GPU for hours; None: this machine's. `place` is the run's directory. Nothing is
    downloaded. If a question or tokenizer is not on this machine, its line says so and the prompt
    is shown as text. Raises DtoError for an unknown GPU.
    """
    chosen = None if gpu is None else gpu_named(gpu)
    place = place or Path("runs") / recipe.name
    model = recipe.model
    yield f"{recipe.name}: {model.name} on {model.engine}, seed {recipe.seed}"
    yield ""
    recipes = methods(recipe) if recipe.compare.methods else {}
    stages = shared_stages(recipe, recipes) if recipes else needed(recipe)
    for stage in stages:
        yield f"{stage:<9} {stage_of(recipe, stage).amount(recipe)}"
        yield from indented(" ".join(read_settings(recipe, stage)))
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
    if "evaluate" in stages or recipes:
        for exit in recipe.evaluate.exits:
            yield "exit      " + " ".join(f"{key}={value}" for key, value in exit.changed().items())
    yield ""
    yield from taken(recipe, stages, recipes, chosen, place)
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


def taken(
    recipe: Recipe,
    stages: Sequence[str],
    recipes: Mapping[str, Recipe],
    gpu: Gpu | None,
    place: Path,
) -> Iterator[str]:
    """What each stage takes, peak memory, where it fits, and what is missing here."""
    machine = this_machine()
    try:
        shape, unknown = shape_of(recipe.model), ""
    except DtoError as error:
        shape, unknown = None, f"{error}; without it there are no hours and no memory"
    if shape is not None:
        yield f"Model: {_parameters(shape.parameters)} parameters ({shape.source})"
        yield ""
    run = _same_run(recipe, place)
    counter = Counter(recipe, shape, run)
    works = counter.works(stages)
    for name, method in recipes.items():
        works += compared(name, method, shape, run)
    chosen = gpu or next(iter(machine.gpus), None)
    shown = chosen or known_gpus()["h100"]
    if works:
        yield from _work_table(works, shown).text(WIDTH).splitlines()
    yield from indented(_assumptions(recipe, counter, works, shown), "", "")
    yield ""
    trains = recipe.train.method != "none" and ("train" in stages or bool(recipes))
    if unknown:
        yield from indented(unknown, "", "")
    elif shape is not None:
        cpu = chosen is None and (recipe.model.device == "cpu" or shape.parameters <= LARGE)
        yield from memory_lines(recipe, shape, trains, cpu=cpu)
        if shape.parameters > LARGE or chosen is not None:
            gpus = [chosen] if chosen else list(known_gpus().values())
            times = {each: _hours(works, each) for each in gpus}
            yield ""
            yield from fit_table(recipe, shape, trains, times).text(WIDTH).splitlines()
    yield ""
    away = shape is not None and missing_weights(recipe.model, "left")
    weights = 2.0 * shape.parameters if shape is not None and away else 0.0
    downloads = list(fetched(recipe))
    if downloads:
        size = f"; weights about {weights / GIB:,.1f} GiB" if weights else ""
        yield from indented(f"Fetched at the start: {', '.join(downloads)}{size}", "", "  ")
    missing = list(lacks(recipe, shape, machine))
    missing += disk_missing(sum(work.disk for work in works if not work.measured), weights, place)
    yield "This machine lacks nothing for it." if not missing else "This machine lacks"
    for line in missing:
        yield from indented(line, "- ", "  ")
    yield ""


def _same_run(recipe: Recipe, place: Path) -> RunReader | None:
    """The run in this directory, if it samples the same model and problems in the same way."""
    if not (place / "recipe.yaml").is_file():
        return None
    other = RunReader(place).recipe
    same = all(getattr(recipe, group) == getattr(other, group) for group in ("problems", "sample"))
    return RunReader(place, recipe) if same and recipe.model.name == other.model.name else None


def _work_table(works: Sequence[Work], gpu: Gpu) -> Table:
    total = Work("all")
    for work in works:
        total = replace(
            total,
            tokens=total.tokens + work.tokens,
            most=total.most + work.most,
            trained=total.trained + work.trained,
            disk=total.disk + work.disk,
        )
    head = ("stage", "tokens", "at most", "trained on", "disk, GiB", f"hours, {gpu.name}")
    rows = [
        (
            work.stage + (" (measured)" if work.measured else ""),
            *(_count(value) for value in (work.tokens, work.most, work.trained)),
            "" if not work.disk or isnan(work.disk) else f"{work.disk / GIB:,.1f}",
            _range(_hours(works, gpu) if work is total else _hours([work], gpu)),
        )
        for work in (*works, total)
    ]
    return Table("What it takes", head, tuple(rows))


def _hours(works: Sequence[Work], gpu: Gpu) -> tuple[float, float]:
    """Hours of all unfinished works, from and to."""
    hours = [work.hours(gpu) for work in works if not work.measured]
    return sum(low for low, _ in hours), sum(high for _, high in hours)


def _count(value: float) -> str:
    """A number of tokens for people."""
    if not value:
        return ""
    if isnan(value):
        return "unknown"
    return f"{value / 1e6:,.1f} M" if value >= 1e6 else f"{value:,.0f}"


def _parameters(count: int) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.3g} billion"
    return f"{count / 1e6:.3g} million"


def _range(hours: tuple[float, float]) -> str:
    """A range of hours; empty for none."""
    low, high = hours
    if isnan(low):
        return "unknown"
    if not high:
        return ""
    return "< 0.1" if high < 0.1 else f"{low:,.1f}–{high:,.1f}"


def _assumptions(recipe: Recipe, counter: Counter, works: Sequence[Work], gpu: Gpu) -> str:
    """What the figures rest on, in sentences."""
    mean, (low, high) = counter.means, UTILISATION
    parts = [
        f"A response takes half of its max_tokens ({mean.length:,.0f}), a question {PROMPT} tokens"
    ]
    if mean.measured:
        parts = [f"Measured in the run's tables: {' and '.join(mean.measured)}"]
    names = {work.stage for work in works if not work.measured}
    if "estimate" in names:
        parts.append(
            f"There is a boundary each {BOUNDARY} tokens (in the bound, too); half of them are "
            f"tried, with {ROLLOUTS} rollouts each (method fixed: its own number)"
        )
    if "optimize" in names:
        parts.append(
            f"{GOOD:.0%} of the responses have a good exit, in the middle; rollouts and "
            "conclusions take a quarter of their max_tokens"
        )
    if recipe.evaluate.tasks and not recipe.evaluate.limit:
        parts.append(f"{', '.join(recipe.evaluate.tasks)} have {TASK} problems each")
    parts += [
        "Every model and exit responds as long as the base model; trial answers are not counted",
        f"Hours are FLOPs over the peak of {gpu.name} at a utilisation of {low} to {high}; few "
        "requests at a time, judges and teachers on servers and work on the CPU take longer",
    ]
    return f"Assumed: {'. '.join(parts)}."


def _first_questions(recipe: Recipe) -> tuple[list[str], str]:
    """The questions of the largest batch prompt (or one), and a remark."""
    imported = recipe.sample.imported
    source = imported or recipe.problems.source
    remark = "is read by the run" if is_import_path(source) else "is not on this machine"
    unknown = [f"(a question of {source})"], f" ({source} {remark})"
    most = max(recipe.batch.k, default=1)
    local = source == "chains" or Source.parse(source, TASKS).kind == "file"
    if not local:
        return unknown
    small = recipe.problems.model_copy(update={"train": most, "dev": 0, "test": 0})
    rows: Iterator[Problem | Dropped]
    if imported:
        from dto.tasks.importing import imported_problems

        sample = recipe.sample
        rows = imported_problems(
            imported, small, recipe.seed, columns=sample.map, batch_input=sample.batch_input
        )
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
