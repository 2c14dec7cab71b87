"""The stages of a run in their order, and running them with one engine at a time.

A new stage is a module with a `STAGE` and a line here. Commands, plans, costs, cards and the viewer
follow from this list.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from shlex import quote
from typing import Any

import yaml
from filelock import FileLock, Timeout

from dto import baselines
from dto.context import Context, without_engine
from dto.drqa import batch, chain, label, teacher
from dto.drqa.label import WORDINGS
from dto.engines import check_installed, open_engine
from dto.engines.checks import (
    check_model,
    check_sampling,
    check_start,
    sentences,
    serving,
    settled,
    untrained_server,
)
from dto.engines.models import load_tokenizer
from dto.errors import DtoError, EngineError, RunConflictError, disk_errors
from dto.grading import Grader
from dto.log import RunLog
from dto.prompts import INSERTED, JUDGE, purpose, render
from dto.protocols import Engine
from dto.recipe import ModelSettings, Recipe
from dto.records import RULE_FAILED, Dropped
from dto.runs import manifest
from dto.runs.reader import RunReader
from dto.runs.run import Consent, OpenRun, refuse
from dto.runs.stage import Runner, Stage
from dto.segmentation import LOOP
from dto.segmentation.worker import Segmenter
from dto.stages import estimate, evaluate, optimize, pair, prune, sample, segment
from dto.studies import pilot, trace
from dto.tags import FOREIGN, shown_tags
from dto.tasks import imported, problems
from dto.tasks.load import prompt_of
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
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not recipe_file.exists())):
        raise RunConflictError(f"{path} is not a run directory: choose another one with --out")
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


def run_stages(
    run: OpenRun,
    names: Iterable[str],
    run_async: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run,
) -> None:
    """Run the unfinished ones of these stages, in the given order.

    Consecutive stages share one engine, which is closed before training to free its memory. Raises
    the errors of the stages; finished rows are kept. `run_async` runs a coroutine as `asyncio.run`
    does.
    """
    stages = [stage_of(run.recipe, name) for name in names]
    pending = [stage.name for stage in stages if run.manifest(stage.name) is None]
    if "train" in pending:
        train.check_trackers(run.recipe)
        train.launching(run.recipe)  # a file for accelerate that is missing
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
            run_async(_compute(run, list(several), stages))
            continue
        for stage in several:
            _work_whole(run, stage)
    write_run_manifest(run)


def _check_splits(run: OpenRun, stages: Sequence[str]) -> None:
    """Raise, before hours of work, if training or evaluation lacks problems."""
    for stage, split, default in (("train", "dev", 300), ("evaluate", "test", 400)):
        if split == "test" and run.recipe.evaluate.tasks:
            continue
        if stage in stages and not getattr(run.recipe.problems, split):
            raise DtoError(
                f"stage {stage} needs {split} problems, and problems.{split} is 0: "
                f"`dto run {quote(str(run.path))} --set problems.source=FILE|HUB "
                f"--set problems.{split}={default}`, or run the earlier stages one by one"
            )


def _work_whole(run: OpenRun, stage: Stage) -> None:
    """Run a stage that works as a whole; its journal holds only its configuration."""
    config = run.config(stage)
    if run.finished(stage, config):
        log_stage(run, stage.name, "already finished")
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


async def _compute(run: OpenRun, stages: Sequence[Stage], planned: Sequence[Stage]) -> None:
    async with Resources(run, run.allow_code_execution, planned) as resources:
        for stage in stages:  # before hours of work, check that a judge on a server answers
            judge = run.recipe.judge
            has_server = stage.asks_judge(run.recipe) and judge and judge.engine == "openai"
            if has_server and run.manifest(stage.name) is None:
                await resources.judge()
        for stage in stages:
            config = run.config(stage)
            if run.finished(stage, config):
                log_stage(run, stage.name, "already finished")
                continue
            with Runner(run / stage.name, stage.record, config) as runner:
                await _feed(run, stage, runner, resources)
                await runner.finish()
            run.done(stage.name)
            log_stage(run, stage.name)


async def _feed(run: OpenRun, stage: Stage, runner: Runner, resources: Resources) -> None:
    """Process every group of a stage, for each of its models."""
    models, total = stage.models(run.recipe), stage.total(run)
    for model in models:
        if len(models) > 1:  # open an engine only if work is left
            idle = without_engine(run.recipe, resources.grader, model=model)
            if not runner.has_pending(stage.groups(run, idle)):
                continue
        ctx = await resources.context(stage, model)

        def work(*rows: Any, ctx: Context = ctx) -> Awaitable[Any]:
            return stage.work(*rows, ctx)

        window = stage.window or run.recipe.window
        await runner.feed(stage.groups(run, ctx), work, window=window, total=total)


class Resources:
    """The engine, grader, judge and segmentation processes that consecutive stages share.

    Each is opened when a stage first needs it. At most one engine for the policy is open, since two
    would share the memory; the judge may have another. An engine is checked for all `planned`
    stages that will ask it.
    """

    def __init__(
        self, run: RunReader, allow_code_execution: bool = False, planned: Sequence[Stage] = ()
    ) -> None:
        self._run, self._recipe, self._planned = run, run.recipe, planned
        self._served = run.recipe.model
        self._opened, self._engine = AsyncExitStack(), AsyncExitStack()
        self._segmenter = Segmenter()
        self._judge: Engine | None = None
        self._context: Context | None = None
        self.grader = Grader(allow_code_execution=allow_code_execution)

    async def __aenter__(self) -> Resources:
        await self._opened.enter_async_context(self.grader)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._segmenter.close()
        await self._engine.aclose()
        await self._opened.aclose()

    async def context(self, stage: Stage, model: str) -> Context:
        """The context for a stage's work, with the engine of `model` if the stage needs one."""
        if stage.needs == "nothing":
            return without_engine(self._recipe, self.grader)
        if stage.needs == "tokenizer":
            if self._context is not None and self._context.model == "base":
                tokenizer = self._context.tokenizer
            else:
                tokenizer = load_tokenizer(self._recipe.model)
                check_model(tokenizer, self._recipe.model)
            plain = without_engine(self._recipe, self.grader, tokenizer)
            return replace(plain, cut=self._segmenter.cut)
        ctx = await self._with_engine(stage, model)
        if stage.check is not None:
            stage.check(ctx)
        return await self._with_judge(ctx) if stage.asks_judge(self._recipe) else ctx

    async def _with_engine(self, stage: Stage, model: str) -> Context:
        recipe, settings = self._recipe, serving(self._recipe, stage.name, model)
        taught = settings is recipe.batch.teacher
        model = "teacher" if taught else model
        if self._context is not None and (self._context.model, self._served) == (model, settings):
            return self._context
        path = None if model in ("base", "teacher") else model  # None: where the recipe says
        if model == "trained":
            path = str(train.trained_model(self._run))
        self._context = None
        await self._engine.aclose()
        with untrained_server(recipe, model, path):
            opened = open_engine(settings, path)
            if opened.tokenizer is not None:  # before weights are loaded
                check_model(opened.tokenizer, settings)
            engine: Engine = await self._engine.enter_async_context(opened)
        if not taught and (engine.tokenizer is None or engine.capabilities.messages_only):
            raise EngineError(
                f"{engine.model!r} is served as chat or without a tokenizer, but the stages "
                "continue the model's own tokens: set model.api to completions and "
                "model.tokenizer, or use another engine"
            )
        check_sampling(recipe, engine, ("sample",) if taught else ("sample", "evaluate"))
        ctx = Context(recipe, engine, self.grader, model=model)
        for later in self._planned if model == "base" else ():  # now, not after hours of work
            asked = serving(recipe, later.name) == settings and "base" in later.models(recipe)
            if asked and later.check is not None and self._run.manifest(later.name) is None:
                later.check(ctx)
        self._context, self._served = ctx, settings
        return ctx

    async def _with_judge(self, ctx: Context) -> Context:
        """The same context with the judge's engine."""
        ctx = replace(ctx, judge=await self.judge())
        engine = ctx.judge or ctx.engine
        if not engine.capabilities.json_schema:
            logger.warning(
                "judge     %s does not support JSON schemas: patterns stay unjudged if its reply "
                "cannot be read",
                engine.model,
            )
        return ctx

    async def judge(self) -> Engine | None:
        """The engine of the recipe's `judge`, open until the end; None without a `judge`.

        Raises EngineError if it cannot be built.
        """
        settings = self._recipe.judge
        if settings is not None and self._judge is None:
            try:
                opened = open_engine(settings)
                if opened.tokenizer is not None and not opened.capabilities.messages_only:
                    check_model(opened.tokenizer, settings)
                self._judge = await self._opened.enter_async_context(opened)
            except DtoError as error:
                keys = "|".join(ModelSettings.model_fields)
                reason = re.sub(rf"\bmodel\.({keys})\b", r"judge.\1", str(error))
                raise EngineError(f"judge: {reason}") from None
        return self._judge


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
    if isinstance(dropped, dict) and 2 * dropped.get(FOREIGN, 0) > sum(dropped.values()) + rows:
        first = next((row for row in run.dropped(name) if row.reason == FOREIGN), Dropped("", ""))
        logger.warning(
            "%-9s most responses use other thinking tags: %s", name, first.detail or FOREIGN
        )


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
