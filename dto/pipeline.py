"""The stages of a run in their order, and running them with one engine at a time.

A new stage is a module with a `STAGE` and a line here. Commands, plans, costs, cards and the viewer
follow from this list.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack
from functools import partial
from itertools import groupby
from pathlib import Path
from shlex import quote
from typing import Any

import yaml
from filelock import FileLock, Timeout

from dto import baselines
from dto.cluster import Fleet, Ray
from dto.cluster.seats import forget_notes, read_notes
from dto.context import Context, without_engine
from dto.drqa import batch, chain, label, teacher
from dto.drqa.label import WORDINGS
from dto.empty import check_rows
from dto.engines import check_installed
from dto.engines.checks import check_start, sentences, settled
from dto.errors import DtoError, RunConflictError, disk_errors
from dto.log import RunLog
from dto.prompts import INSERTED, JUDGE, purpose, render
from dto.recipe import Recipe
from dto.records import RULE_FAILED, Dropped
from dto.resources import Resources
from dto.runs import manifest
from dto.runs.reader import RunReader
from dto.runs.run import Consent, OpenRun, refuse
from dto.runs.stage import Runner, Stage
from dto.segmentation import LOOP
from dto.stages import estimate, evaluate, optimize, pair, prune, sample, segment
from dto.studies import pilot, trace
from dto.tags import FOREIGN, shown_tags
from dto.tasks import imported, problems
from dto.tasks.load import prompt_of
from dto.tasks.summary import log_import
from dto.training import train

logger = logging.getLogger("dto")

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        problems.STAGE, sample.STAGE, batch.STAGE, segment.STAGE, estimate.STAGE, optimize.STAGE,
        prune.STAGE, pair.STAGE, chain.STAGE, label.STAGE, train.STAGE, problems.TEST,
        evaluate.STAGE, trace.STAGE, pilot.STAGE,
    )
}  # fmt: skip


def stage_of(recipe: Recipe, name: str) -> Stage:
    """The stage of this name for a recipe: the paper's, a baseline's, or one for imported rows."""
    if name == "sample" and recipe.sample.imported:
        return imported.STAGE
    if name == "optimize" and recipe.optimize.exit != "estimate":
        return baselines.SOLUTIONS
    if name == "pair" and recipe.pair.data == "imported":
        return imported.PAIRS
    if name == "pair" and recipe.pair.data != "optimized":
        return baselines.PAIRS
    if name == "batch" and recipe.batch.teacher is not None:
        return teacher.STAGE
    return STAGES[name]


def needed(recipe: Recipe, *last: str) -> tuple[str, ...]:
    """The stages `last` and all stages that they depend on, in order.

    Without `last`: the stages of a whole run. Its report shows the evaluation, and batch prompts
    beside single questions, which a teacher is asked too, if the recipe has batch prompts.
    """
    alone = () if recipe.batch.teacher else ("sample",)
    reported = ("evaluate", *alone, "batch") if recipe.batch.k else ("evaluate",)
    pending = list(last or reported)
    names = set(pending)
    while pending:
        inputs = set(stage_of(recipe, pending.pop()).reads(recipe)) - names
        names |= inputs
        pending += inputs
    return tuple(name for name in STAGES if name in names)


def with_questions(recipe: Recipe, *names: str) -> tuple[str, ...]:
    """These stages, preceded by the stages that load their questions, which cost nothing."""
    wanted = {*names, "problems"}
    for name in names:
        wanted |= {stage for stage in needed(recipe, name) if STAGES[stage].needs == "nothing"}
    return tuple(name for name in STAGES if name in wanted)


def shown_prompts(
    recipe: Recipe, stages: Collection[str], questions: Sequence[str] = ("{the question}",)
) -> Iterator[tuple[str, str, bool]]:
    """Yield (title, text, is_message) for each prompt that a model or judge sees in these stages.

    `is_message` is true for a user message, which goes through the chat template. `questions` fill
    the prompts, as far as they last. Texts of single exit policies are left out.
    """
    family, question = recipe.model.family, questions[0]
    solve = "solve" if recipe.sample.imported else prompt_of(recipe.problems)
    text = render(recipe.model.prompt or solve, family, question=question)
    asking = [name for name in ("sample", "evaluate") if name in stages]
    yield f"{', '.join(asking) or 'evaluate'}: how a question is asked", text, True
    for name, stage in INSERTED.items():
        if stage in stages:
            text = render(name, family, shown_tags(recipe.model))
            yield f"{stage}: {purpose(name, family)}", text, False
    if "batch" in stages:
        k = next(iter(recipe.batch.k), 2)
        several = [*questions, *(f"(question {i})" for i in range(len(questions) + 1, k + 1))][:k]
        numbered = "\n".join(f"{i}. {text}" for i, text in enumerate(several, start=1))
        text = render("batch", family, questions=numbered, k=k)
        yield f"batch: a prompt of {k} questions", text, True
    if "label" in stages or recipe.train.method == "drqa":
        a, b, c = WORDINGS.values()
        text = render("compare", family, question=question, reasoning="(a chain of thinking)",
                      answer="(its answer)", a=a, b=b, c=c)  # fmt: skip
        yield "label, train: the question about a chain, with options in any order", text, True
    if recipe.prune.judge == "llm" and "prune" in stages:
        patterns = "<pattern 1>\n…\n</pattern 1>\n…"
        gold = "(its gold answer)" if recipe.prune.gold else ""
        text = render("patterns", JUDGE, question=question, answer=gold, patterns=patterns,
                      first="2", last="(the last but one)")  # fmt: skip
        yield "prune: the judge's prompt", text, False


def open_run(
    path: Path,
    recipe: Recipe,
    *,
    recompute: Consent = refuse,
    again: Sequence[str] = (),
    overwrite: bool = False,
    allow_code_execution: bool = False,
) -> OpenRun:
    """Start a run with this recipe, or continue the one in `path`.

    `recompute` is called with the stages that the recipe would compute again, or that `again`
    names; it raises or returns. Stages that cost nothing (problems) need no consent. Settings that
    only affect speed or cost (a server, slots, prices) invalidate nothing, and a finished stage
    stays valid on another engine. `overwrite` sets everything aside and starts afresh, also with
    consent. `allow_code_execution`: run programs that answer problems (`dto.grading.sandbox`); a
    recipe cannot allow that.

    Raises RunConflictError if another process uses the run, or the directory is not a run.
    """
    recipe_file = path / "recipe.yaml"
    names = {file.name for file in path.iterdir()} if path.is_dir() else set()
    begun = {".lock", ".recipe.yaml.part"}  # all that a kill at the start leaves
    foreign = recipe_file.name not in names and not names <= begun
    if foreign or (path.exists() and not path.is_dir()):
        raise RunConflictError(
            f"{path} is not a run directory, it has no recipe.yaml: choose another one with --out"
        )
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise RunConflictError(
                f"{path} is in use by another process: wait until that ends"
            ) from None
    recipe = settled(recipe)
    run = OpenRun(
        path, recipe, lock, recompute=recompute, allow_code_execution=allow_code_execution
    )
    try:
        run.agree([stage_of(recipe, name) for name in STAGES], again, overwrite)
        with disk_errors(recipe_file):
            data = recipe.model_dump(mode="json")
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
            manifest.write_text(recipe_file, text)
        run.closing.callback(RunLog(path, recipe).close)
    except BaseException:
        run.close()
        raise
    return run


def changes_of_run(changes: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The changes of a run's own recipe, in which `evaluate.engine` may have been chosen for it.

    A server of the trained model takes its place, unless an engine is among the changes, too.
    """
    served = (changes or {}).get("evaluate.server")
    return ({"evaluate.engine": None} if served else {}) | {**(changes or {})}


def run_stages(
    run: OpenRun,
    names: Iterable[str],
    run_async: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run,
    ray: Ray | None = None,
    *,
    may_be_empty: bool = False,
) -> None:
    """Run the unfinished ones of these stages, in the given order.

    Consecutive stages share one engine, which is closed before training to free its memory. Raises
    the errors of the stages, and DtoError after a stage that leaves no rows for the later ones
    (:func:`dto.empty.check_rows`), unless they `may_be_empty`; finished rows are kept. `run_async`
    runs a coroutine as `asyncio.run` does. With `ray`, the groups are processed on Ray actors.
    """
    stages = [stage_of(run.recipe, name) for name in names]
    pending = [
        stage.name
        for stage in stages
        if run.manifest(stage.name) is None or stage.name in run.agreed
    ]
    if "train" in pending:
        train.check_training(run.recipe)
    _check_splits(run, pending)
    check_start(run.recipe, pending)
    asking = {each.name for each in stages if each.needs == "model" and each.whole is None}
    if asking.intersection(pending) - ({"evaluate"} if run.recipe.evaluate.engine else set()):
        check_installed(run.recipe.model.engine)
    if "evaluate" in pending:
        for line in sentences(run.recipe, str(run / "train" / "model")):
            logger.info("evaluate  %s", line)
    for whole, several in groupby(stages, key=lambda stage: stage.whole is not None):
        if not whole:
            run_async(_compute(run, list(several), stages, ray, may_be_empty))
            continue
        for stage in several:
            _work_whole(run, stage)
    write_run_manifest(run)


def _check_splits(run: OpenRun, stages: Sequence[str]) -> None:
    """Raise, before hours of work, if training or evaluation lacks problems."""
    problems, tasks = run.recipe.problems, run.recipe.evaluate.tasks
    lacking = [
        (stage, split, f" --set problems.{split}={default}")
        for stage, split, default in (("train", "dev", 300), ("evaluate", "test", 400))
        if stage in stages and not getattr(problems, split) and not (split == "test" and tasks)
    ]
    if lacking:
        stage, split, _ = lacking[0]
        raise DtoError(
            f"stage {stage} needs {split} problems, and problems.{split} is 0: "
            f"`dto run {quote(str(run.path))} --set problems.source=FILE|HUB"
            f"{''.join(change for *_, change in lacking)}`, or run the earlier stages one by one"
        )


def _work_whole(run: OpenRun, stage: Stage) -> None:
    """Run a stage that works as a whole; its journal holds only its configuration."""
    config = run.config(stage)
    if _is_finished(run, stage, config):
        return
    assert stage.whole is not None
    start = time.perf_counter()
    directory = run / stage.name
    with disk_errors(directory):
        directory.mkdir(exist_ok=True)
        manifest.write_text(directory / "journal", json.dumps({"head": {"config": config}}) + "\n")
    result = stage.whole(run.path, run.recipe, run.allow_code_execution)
    result["seconds"] = time.perf_counter() - start
    with disk_errors(directory):
        weights = manifest.of_path(directory / "model")
        manifest.write(directory, manifest.finished(stage.name, config, weights) | result)
        (directory / "journal").unlink()
    run.done(stage.name)
    log_stage(run, stage.name)


def _is_finished(run: OpenRun, stage: Stage, config: Mapping[str, Any]) -> bool:
    """Whether a stage need not be computed. Its files, or those that it reads, are checked."""
    if check_files(run, stage) and run.finished(stage, config):
        (run / stage.name / "journal").unlink(missing_ok=True)  # after a kill between the two
        forget_notes(run / stage.name)
        run.done(stage.name)
        log_stage(run, stage.name, "already finished")
        return True
    for name in stage.reads(run.recipe):
        check_files(run, stage_of(run.recipe, name))
    return False


def check_files(run: OpenRun, stage: Stage) -> bool:
    """Whether the files of a finished stage are those that it wrote.

    Raises DtoError for one that is lost or damaged. If computing the stage again costs nothing, the
    stage is set aside instead, and the result is false.
    """
    if not (damage := find_damage(run, stage)):
        return True
    if stage.needs != "nothing":
        raise DtoError(damage)
    logger.warning("%-9s computed again: %s", stage.name, damage)
    run.set_aside(stage.name)
    return False


def find_damage(run: RunReader, stage: Stage) -> str:
    """Name a file of a finished stage that differs from its hash in the manifest, and the way out.

    Empty if there is none. Weights and the files of a training are not compared.
    """
    directory, done = run / stage.name, run.manifest(stage.name)
    wrong = []
    if stage.whole is not None:
        return ""
    if done is not None:
        check = done.pop("check", None)  # earlier versions wrote neither this nor `files`
        wrong = [] if check in (None, manifest.digest(done)) else ["manifest.json"]
        hashes = {"rows.parquet": done["content"]} if done.get("content") else {}
        hashes |= done.get("files", {})
        wrong += [name for name in hashes if manifest.of_path(directory / name) != hashes[name]]
    elif (directory / "usage.parquet").exists() and not (directory / "journal").exists():
        wrong = ["manifest.json"]  # a pulled stage without its questions has no usage either
    if not wrong:
        return ""
    path = directory / wrong[0]
    what = "is damaged: its content is not what the stage wrote" if path.exists() else "is missing"
    again = f"`dto {stage.name} {quote(str(run.path))} --recompute --yes`"
    if not stage.step:  # it has no command of its own
        again = f"`rm -r {quote(str(directory))}` and the same command"
    return (
        f"{path} {what}; restore it from a copy, or compute the stage again with {again}: later "
        "stages stay as they are if its table is the same"
    )


async def _compute(
    run: OpenRun,
    stages: Sequence[Stage],
    planned: Sequence[Stage],
    ray: Ray | None,
    may_be_empty: bool,
) -> None:
    async with AsyncExitStack() as opened:
        resources = Resources(run, run.allow_code_execution, planned)
        await opened.enter_async_context(resources)
        fleet = None if ray is None else Fleet(ray, run, run.allow_code_execution, planned)
        for stage in stages:  # before hours of work, check that a judge on a server answers
            judge = run.recipe.judge
            has_server = stage.asks_judge(run.recipe) and judge and judge.engine == "openai"
            if has_server and run.manifest(stage.name) is None:
                await resources.judge()
        for stage in stages:
            config = run.config(stage)
            if not _is_finished(run, stage, config):
                spread = fleet if stage.needs != "nothing" else None
                if spread is not None and not spread.size:
                    await opened.enter_async_context(spread)
                with Runner(run / stage.name, stage.record, config) as runner:
                    await _feed(run, stage, runner, resources, spread)
                    actors = spread.shared() if spread else read_notes(run / stage.name)
                    shares = {"actors": actors, "servers": resources.shared()}
                    await runner.finish({key: share for key, share in shares.items() if share})
                    if spread:
                        spread.close()
                    forget_notes(run / stage.name)
                run.done(stage.name)
                log_stage(run, stage.name)
                if stage is imported.STAGE:
                    await asyncio.to_thread(log_import, run)
            if not may_be_empty:
                check_rows(run, stage, needed(run.recipe, stage.name))


async def _feed(
    run: OpenRun, stage: Stage, runner: Runner, resources: Resources, fleet: Fleet | None
) -> None:
    """Process every group of a stage, for each of its models, here or on the actors of a fleet."""
    models, total = stage.models(run.recipe), stage.total(run)
    for model in models:
        idle = without_engine(run.recipe, resources.grader, model=model)
        if len(models) > 1 and not runner.has_pending(stage.groups(run, idle)):
            continue  # open an engine only if work is left
        window = stage.window or run.recipe.window
        if fleet is None:
            ctx = await resources.context(stage, model)
            work = partial(_work, stage, ctx)
            await runner.feed(stage.groups(run, ctx), work, window=window, total=total)
            continue
        ctx = await resources.context(stage, model) if stage.needs == "tokenizer" else idle
        await fleet.open(stage, model, run / stage.name)
        await runner.feed(
            stage.groups(run, ctx),
            partial(_work, stage, ctx),
            window=window * fleet.size,
            total=total,
            elsewhere=fleet.attempt,
            status=fleet.status,
        )


def _work(stage: Stage, ctx: Context, *rows: Any) -> Awaitable[Any]:
    return stage.work(*rows, ctx)


def log_stage(run: RunReader, name: str, remark: str = "") -> None:
    """Log one line about a finished stage, with every dropped row counted by reason."""
    done = run.manifest(name) or {}
    rows = done["rows"] if isinstance(done.get("rows"), int) else 0
    parts = [f"{rows:,} rows"] if isinstance(done.get("rows"), int) else []
    dropped = done.get("dropped")
    if isinstance(dropped, dict):
        parts += [f"{amount:,} dropped: {reason}" for reason, amount in dropped.items()]
    for reason, amount in (done.get("given_up") or {}).items():
        graded = "without a grade" if reason.startswith(RULE_FAILED) else "graded wrong"
        parts.append(f"{amount:,} answers {graded}: {reason}")
    if name == "segment" and (loops := run.count(name, kind=LOOP)):
        parts.append(f"repeated sentences cut as one segment: {loops:,} times")
    teacher = run.recipe.batch.teacher if run.recipe.batch.k else None
    if name in ("batch", "chain", "label") and teacher is not None:
        encoded = run.count(name, ids_from="encoded") if name == "batch" else 0
        again = f", {encoded:,} encoded again with the model's tokenizer" if encoded else ""
        parts.append(f"written by {teacher.name}{again}")
    if failed := done.get("usage", {}).get("failed"):
        parts.append(f"{failed:,} requests failed")
    if judge := done.get("judge_usage"):
        if judge["failed"]:
            parts.append(f"{judge['failed']:,} requests to the judge failed")
        parts.append(f"judge {judge['prompt']:,} tokens read, {judge['generated']:,} generated")
    parts.append(remark or f"{done['usage']['generated']:,} tokens, {done['seconds']:.1f} s")
    logger.info("%-9s %s", name, ", ".join(parts))
    for share in [] if remark else done.get("servers", ()):
        logger.info("%-9s %s", name, share_line(share))
    if isinstance(dropped, dict) and 2 * dropped.get(FOREIGN, 0) > sum(dropped.values()) + rows:
        first = next((row for row in run.dropped(name) if row.reason == FOREIGN), Dropped("", ""))
        logger.warning(
            "%-9s most responses use other thinking tags: %s", name, first.detail or FOREIGN
        )


def share_line(share: Mapping[str, Any]) -> str:
    """What one of several servers did in a stage, as text."""
    seconds = share["seconds"]
    parts = [
        f"{share['server']}: {share['requests']:,} requests",
        f"{share['generated']:,} tokens",
        f"{share['generated'] / seconds if seconds else 0:,.0f} tokens/s",
    ]
    parts += [f"{share['lost']:,} requests lost"] if share["lost"] else []
    return ", ".join(parts)


def write_run_manifest(run: RunReader) -> dict[str, object]:
    """Write the manifest of the run: digests, counts, costs and engines of its stages."""
    keys = ("digest", "rows", "dropped", "given_up", "usage", "judge_usage", "seconds",
            "peak_memory")  # fmt: skip
    stages = {}
    for stage in STAGES:
        done = run.manifest(stage)
        if done is not None:
            stages[stage] = {key: done[key] for key in keys if key in done}
            config = done.get("config", {})
            own = ("evaluate.engine", "batch.teacher.engine", "model.engine")
            engine = next((config[key] for key in own if config.get(key)), None)
            stages[stage] |= {"engine": engine} if engine else {}
    whole = {"name": run.recipe.name, "seed": run.recipe.seed, "stages": stages}
    with disk_errors(run.path):
        manifest.write(run.path, whole | manifest.provenance())
    return whole
